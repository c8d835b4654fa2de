"""Published tables: each cell is a command that composes, with the table's own weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from kdrun.config import conf_folder, register_nodes, validate
from kdrun.errors import KdrunError
from kdrun.registry import MODELS
from kdrun.sweep import expand
from kdrun.tables import Cell, cells, jobs, table_names

SCRIPT = Path(__file__).parents[1] / "scripts" / "reproduce.sh"


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


def test_a_table_is_the_jobs_of_a_sweep():
    """One pair, some rows, a budget; what the command says wins over the table."""
    found = jobs("kdzoo_cifar10", ["method=kd", "seed=0", "recipe=quick"], "resnet110-resnet20", "smoke")
    (job,) = found
    assert job[:3] == ["teacher=resnet110", "student=resnet20", "method=kd"]
    assert set(job[3:]) == {
        "dataset=cifar10", "recipe=quick", "recipe.epochs=1", "teacher.recipe.epochs=1", "seed=0",
    }  # fmt: skip
    assert len(jobs("kdzoo_cifar10", ["seed=0"])) == 66
    assert expand([["method=kd", "seed=1"]]) == [["method=kd", "seed=1"]]
    twice = expand([["table=kdzoo_cifar10", "pair=resnet20-resnet20", "method=kd", f"seed={seed}"] for seed in (0, 1)])
    assert [job[-1] for job in twice] == ["seed=0", "seed=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["method=dkd"],), "table kdzoo_cifar10 has no row 'dkd'. Did you mean kd"),
        (([], "resnet20-resnet8"), "table kdzoo_cifar10 has no pair 'resnet20-resnet8'"),
        (([], None, "tiny"), "no budget 'tiny'. Choices: full, short, smoke"),
    ],
)
def test_what_a_table_lacks_is_told(arguments, message):
    with pytest.raises(KdrunError, match=re.escape(message)):
        jobs("kdzoo_cifar10", *arguments)


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not part of the source distribution")
def test_reproduce_trains_and_reports(tmp_path):
    """A pair of a table on other images, at the smallest budget: two rows, two seeds, a table at the end; again, all is done."""
    arguments = [
        str(SCRIPT),
        "kdzoo_cifar10_r20_r20",
        "seeds=2",
        "budget=smoke",
        "method=none,kd",
        "dataset=digits",
        "recipe=quick",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for told in ("4 runs asked for: 2 seed; 1 teacher to train first", "4 runs asked for: 2 seed; 4 done, 0 to do"):
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == told
        assert "resnet20 -> resnet20" in done.stdout
        assert "differences to none paired by seed" in done.stdout
