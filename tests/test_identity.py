"""Who a run is: ordinary runs keep the hashes that they had, and names that are shown are no part of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.schema import Config, conf_folder
from kdrun.runs import record as records
from kdrun.runs.identity import digest, folder, group, identity, teacher_config
from kdrun.runs.labels import dataset_label, label, label_of

DOCS = (Path(__file__).parents[1] / "docs" / "records.md").read_text(encoding="utf-8")
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


# Labels --------------------------------------------------------------------------------------------------------------------

IMPORTED = ("student=import", "student.path=my_models:small_net")


@pytest.mark.parametrize(
    ("asked", "student", "teacher", "dataset"),
    [
        ((), "resnet20", "resnet110", "cifar10"),
        (IMPORTED, "small_net", "resnet110", "cifar10"),
        ((*IMPORTED, "student.label=tiny"), "tiny", "resnet110", "cifar10"),
        (("teacher=import", "teacher.path=tea:big", "dataset.label=CIFAR"), "resnet20", "big", "CIFAR"),
        (("dataset=image_folder", "dataset.root=photos/birds/", "teacher.label=T one"), "resnet20", "T one", "birds"),
        (("dataset=image_folder", "dataset.root='~/ducks'", "dataset.label="), "resnet20", "resnet110", "ducks"),
        (("dataset=image_folder", "dataset.root=/"), "resnet20", "resnet110", "image_folder"),
        (("dataset=digits", "dataset.root=elsewhere", "method=none"), "resnet20", "none", "digits"),
    ],
)
def test_labels_name_what_is_shown(asked, student, teacher, dataset):
    """A label; else the last part of an imported model's path, or the folder's name; else the name."""
    config = composed(*asked)
    assert (label(config.student), label(config.teacher), dataset_label(config.dataset)) == (student, teacher, dataset)


def test_labels_are_no_part_of_the_identity(weights):
    """Nor of the teacher's, whether it is trained, given, or a peer."""
    labels = ("student.label=a", "teacher.label=b", "dataset.label=c")
    for asked in ("method=kd", "method=dml", f"teacher.checkpoint={weights}", " ".join(IMPORTED)):
        plain, labelled = (composed(*asked.split(), *more) for more in ((), labels))
        assert identity(plain, CHECKSUM) == identity(labelled, CHECKSUM)
    assert label(teacher_config(composed("method=kd", *labels)).student) == "b"


def test_records_of_before_have_labels_too():
    """What an older record calls its models: by the path in the identity, or by the name; one with labels by these."""
    config = composed("teacher=import", "teacher.path=tea:big", *IMPORTED, "method=dml", "dataset=digits")
    record = {
        "student": {"name": "import"}, "teacher": None, "dataset": {"name": "digits"}, "identity": identity(config, CHECKSUM),
    }  # fmt: skip
    assert [label_of(record, role) for role in ("student", "teacher", "dataset")] == ["small_net", "big", "digits"]
    alone = composed("student=resnet8", "method=none")
    record["identity"] = identity(alone, CHECKSUM)
    assert label_of({**record, "student": {"name": "resnet8"}}, "student") == "resnet8"
    assert label_of(record, "teacher") == "none"
    labelled = {role: {"name": "import", "label": f"my {role}"} for role in ("student", "teacher", "dataset")}
    assert [label_of({**record, **labelled}, role) for role in labelled] == ["my student", "my teacher", "my dataset"]
    assert (
        label_of({**record, "teacher": {"name": "import"}, "identity": {"teacher": {"name": "import"}}}, "teacher")
        == "import"
    )


@pytest.mark.parametrize(
    "given",
    ["../../up", "a/b\\c", ".hidden", "..", "-rf", " ", "a\nb", "\udcff", "é" * 300, "con:net", "x" * 300, "///"],
)
def test_a_label_is_always_one_safe_folder(given, tmp_path):
    """No label leaves the folder of runs, hides in it, or is too long for a file system."""
    config = composed("method=kd", f"outputs={tmp_path}")
    config.student.label = config.teacher.label = config.dataset.label = given
    found = folder(config, identity(config, CHECKSUM))
    assert len(found.relative_to(tmp_path / "runs").parts) == 5
    for part in found.relative_to(tmp_path).parts:
        assert not part.startswith((".", "-"))
        assert part.strip()
    found.mkdir(parents=True)


def test_a_run_under_another_label_is_found(tmp_path):
    """Of all places below runs the one whose record has this id; a folder of another run with the same name is not taken."""
    plain, labelled = (
        composed(f"outputs={tmp_path}", *more) for more in ((), ("student.label=mine", "dataset.label=cs"))
    )
    found = identity(plain, CHECKSUM)
    before, expected = folder(plain, found), folder(labelled, found)
    assert before != expected
    assert before.relative_to(tmp_path) == Path("runs/cifar10/kd/resnet110-resnet20") / group(found)[:8] / "seed0"
    assert expected.relative_to(tmp_path) == Path("runs/cs/kd/resnet110-mine") / group(found)[:8] / "seed0"
    before.mkdir(parents=True)
    (before / "record.json").write_text("{")
    assert folder(labelled, found) == expected
    record = json.loads(re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)[-1])
    records.write(before, {**record, "id": "0" * 16})
    assert folder(labelled, found) == expected
    records.write(before, {**record, "id": digest(found)})
    assert folder(labelled, found) == before
    expected.mkdir(parents=True)
    records.write(expected, {**record, "id": digest(found)})
    assert folder(labelled, found) == expected
