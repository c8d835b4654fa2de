"""Who a run is: ordinary runs keep the hashes that they had, and names that are shown are no part of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from kdrun.config import Config, conf_folder, register_nodes, validate
from kdrun.identity import digest, group, identity

CHECKSUM = "ab12"
# What a run asks for, its id and its group: from before labels and sources were known. A run that is done keeps its name.
ORDINARY = {
    "the defaults": ("", "bdb50975c4f21536", "0d518baed62c0a8a"),
    "digits, quick": (
        "dataset=digits recipe=quick teacher=resnet8 student=resnet8", "dbf7f8de7ae9cc24", "3c7c3616efa3c51b",
    ),
    "cifar100, rkd, seed": (
        "dataset=cifar100 method=rkd teacher=wrn_40_2 student=wrn_16_2 seed=3", "f656f26344609dc9", "6b37f5e52a0df991",
    ),
    "two methods, a holdout": (
        "method=[rkd,kd] dataset.holdout=5000 protocol=holdout", "08bf2903ed294034", "878af11086e35fbb",
    ),
    "fitnet, its stage": (
        "method=fitnet teacher=resnet32x4 student=resnet8x4 method.fitnet.stages.hints.epochs=0.1",
        "a4a6941864f61d89", "f14a6d5dcf0bacea",
    ),
    "dml, three networks": (
        "method=dml method.dml.networks=3 teacher=resnet20", "5f751b8845a0252f", "fddf01c349af7a56",
    ),
    "crd, its recipe": (
        "method=crd recipe=crd240 teacher=vgg13 student=mobilenetv2 dataset=cifar100",
        "787698b45e7f5a52", "971e2739fe8ef5ea",
    ),
    "the student alone": ("method=none student=mlp student.width=64", "6ce4e6eb328783d2", "d2700537ff5bcea0"),
    "a checkpoint as teacher": ("teacher.checkpoint={weights}", "e55b22b94786787e", "c13391041410e5f8"),
    "recipe, weights, the teacher's seed": (
        "recipe.epochs=10 recipe.lr=0.2 teacher.seed=2 teacher.weights=best teacher.recipe.epochs=5 "
        "method.kd.weights.soft=0.9",
        "bf7d855f24100289", "b3ac17bc3f55b022",
    ),
    "its own mean, a student's checkpoint": (
        "dataset=digits dataset.mean=[0.3,0.3,0.3] dataset.std=[0.4,0.4,0.4] student.checkpoint={weights} "
        "engine.precision=fp32",
        "43b00d5aeccab97f", "86f426d9019776f7",
    ),
}  # fmt: skip


def composed(*overrides: str) -> Config:
    register_nodes()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(compose("config", list(overrides)))


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "teacher.bin"
    path.write_bytes(b"weights of a teacher")
    return path


@pytest.mark.parametrize(("asked", "run_id", "group_id"), ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_runs_keep_their_names(asked, run_id, group_id, weights):
    """The hash of a run that was made before is the one that its folder and its record have."""
    config = composed(*asked.format(weights=weights).split())
    found = identity(config, CHECKSUM)
    assert (digest(found), group(found)) == (run_id, group_id)
