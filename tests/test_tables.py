"""Published tables: each cell is a command that composes, with the table's own weights."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from kdrun.config import conf_folder, register_nodes, validate
from kdrun.errors import KdrunError
from kdrun.registry import MODELS
from kdrun.tables import Cell, cells, table_names


@pytest.mark.parametrize("name", table_names())
def test_every_cell_composes(name):
    """A key that no method has, a model that does not exist or a wrong type would be an error here, not after a week."""
    register_nodes()
    unlike = {(cell.method, cell.overrides): cell for cell in cells(name)}  # pairs that say the same are composed once
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder().resolve())):
        for cell in unlike.values():
            validate(compose("config", cell.command()))
    for cell in cells(name):
        MODELS.entry(cell.teacher)
        MODELS.entry(cell.student)


def test_kdzoo_has_its_rows_and_pairs():
    found = cells("kdzoo_cifar10")
    assert len({cell.method for cell in found}) == 22
    assert {(cell.teacher, cell.student) for cell in found} == {
        ("resnet20", "resnet20"), ("resnet110", "resnet20"), ("resnet110", "resnet110"),
    }  # fmt: skip


def test_a_pair_has_its_own_settings():
    """RepDistiller sums four layers for VGG, trains small students at 0.01, and has no FSP where channels differ."""
    found = {(cell.teacher, cell.student, cell.method): cell for cell in cells("crd_cifar100")}
    assert "method.at.weights.attention=3000" in found["resnet56", "resnet20", "at"].overrides
    assert "method.at.weights.attention=4000" in found["vgg13", "vgg8", "at"].overrides
    assert "recipe.lr=0.01" in found["resnet32x4", "shufflenetv2", "kd"].overrides
    assert "recipe.lr=0.01" not in found["resnet32x4", "resnet8x4", "kd"].overrides
    assert ("wrn_40_2", "wrn_40_1", "fsp") not in found
    assert ("wrn_40_2", "wrn_16_2", "fsp") in found
    assert isinstance(found["vgg13", "vgg8", "ab"], Cell)


def test_an_unknown_table_names_the_others():
    with pytest.raises(KdrunError, match=r"no table 'kdzoo_cifar'. Did you mean kdzoo_cifar10"):
        cells("kdzoo_cifar")
