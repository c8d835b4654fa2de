"""The contract, held against a real run: identity, folder, files, record, protocols, TensorBoard's tags, seed streams."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

import kdrun
from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.schema import Config, conf_folder
from kdrun.runs import record as records
from kdrun.runs.checkpoint import weights_sha256
from kdrun.runs.identity import NEUTRAL, digest, group, identity, teacher_config

OVERRIDES = (
    "dataset=digits dataset.holdout=200 teacher=resnet8 student=resnet8 method=[kd,rkd] recipe=quick recipe.epochs=2 "
    "teacher.recipe.epochs=2 engine.threads=1 engine.log_every=3"
)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def composed(*overrides: str) -> Config:
    register_nodes()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(compose("config", list(overrides)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    done = command(root, *OVERRIDES.split())
    assert done.returncode == 0, done.stderr
    (root / "stdout.txt").write_text(done.stdout)
    return root


@pytest.fixture(scope="module")
def folder(finished: Path) -> Path:
    (found,) = (finished / "outputs/runs/digits/kd+rkd/resnet8-resnet8").glob("*/seed0")
    return found


def test_record_matches_its_schema_and_its_documentation(folder: Path) -> None:
    """A real record validates, and every key of it stands in docs/records.md."""
    record = records.read(folder)
    assert record is not None
    records.validate(record)
    text = (Path(__file__).parent.parent / "docs/records.md").read_text()
    free = {"identity", "weights", "recipe", "versions"}  # objects whose keys depend on the run
    for key, value in record.items():
        assert f"`{key}`" in text or f"`{key}." in text, key
        if isinstance(value, dict) and key not in free:
            assert not [inner for inner in value if f"`{key}.{inner}`" not in text and f"`{inner}`" not in text]
    assert record["status"] == "done"
    assert record["method"] == ["kd", "rkd"]
    assert record["weights"] == {"task": 1.0, "kd.soft": 0.1, "rkd.distance": 25.0, "rkd.angle": 50.0}
    assert (record["dataset"]["train_n"], record["dataset"]["holdout_n"]) == (1000, 200)


def test_files_of_a_run(folder: Path) -> None:
    """Exactly the files that the contract names (and the lock)."""
    names = {path.name for path in folder.iterdir()} - {".lock"}
    expected = (
        "config.yaml record.json curves.jsonl student.safetensors student-best.safetensors student-holdout.safetensors"
    )
    assert names == {*expected.split(), "last.ckpt", "test_logits.safetensors", "tb", "log.txt"}


def test_curves_and_record_agree(folder: Path) -> None:
    """last is the last line's score, best the highest (the earliest of equals), holdout the choice on the holdout."""
    record = records.read(folder) or {}
    lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    tests, held = [line["test"]["score"] for line in lines], [line["holdout"]["score"] for line in lines]
    assert record["last"]["score"] == tests[-1]
    assert (record["best"]["score"], record["best"]["epoch"]) == (max(tests), 1 + tests.index(max(tests)))
    assert record["holdout"]["test_score"] == tests[held.index(max(held))]
    weighted = sum(record["weights"][term] * value for term, value in lines[0]["loss"].items() if term != "total")
    assert lines[0]["loss"]["total"] == pytest.approx(weighted, rel=1e-5)


def test_tensorboard_tags(folder: Path) -> None:
    """The tag names of the contract, x in optimiser steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tb"))
    board.Reload()
    terms = ["task", "kd.soft", "rkd.distance", "rkd.angle"]
    expected = {f"distil/{kind}/{term}" for kind in ("loss", "weight", "share") for term in terms}
    expected |= {
        "distil/loss/total",
        "distil/lr",
        "distil/train/accuracy",
        "eval/test/accuracy",
        "eval/holdout/accuracy",
        "eval/test/loss",
        "eval/holdout/loss",
    }
    expected |= {"eval/test/agreement", "teacher/test/accuracy", "speed/images_per_s", "speed/data_wait"}
    expected |= {"hparam/last", "hparam/best"} | {f"eval/test/class/{name}" for name in range(10)}
    assert set(board.Tags()["scalars"]) == expected
    assert set(board.Tags()["images"]) == {"train/augmented", "eval/test/confusion"}
    of_classes = [board.Scalars(f"eval/test/class/{name}")[0].value for name in range(10)]
    test = board.Scalars("eval/test/accuracy")[-1].value
    assert min(of_classes) <= test <= max(of_classes)
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= {tag for tag in board.summary_metadata}
    assert [event.step for event in board.Scalars("eval/test/accuracy")] == [8, 16]
    assert [event.step for event in board.Scalars("hparam/last")] == [16]


def test_asked_again_it_answers_at_once_and_by_any_protocol(finished: Path, folder: Path) -> None:
    """A finished run is not trained again; another protocol is another look at the same record."""
    before = (folder / "record.json").read_bytes()
    again = command(finished, *OVERRIDES.split(), "protocol=holdout")
    assert again.returncode == 0
    assert again.stdout.startswith("already done: kd+rkd resnet8 seed 0")
    assert (folder / "record.json").read_bytes() == before


def test_load_gives_the_student_with_its_preprocessing(folder: Path, finished: Path) -> None:
    """kdrun.load(...).student on raw uint8 images gives the recorded score."""
    from kdrun.tasks.image import data

    run = kdrun.load(folder)
    dataset = data.load(composed("dataset=digits").dataset, str(finished / "outputs"))
    with torch.no_grad():
        logits = run.student(dataset.test.images)
    score = (logits.argmax(1) == dataset.test.labels).float().mean().item()
    assert score == pytest.approx(run.record["last"]["score"], abs=0.01)  # trained in bf16 where there is one
    kept, labels = run.logits()
    assert (kept.argmax(1) == labels).float().mean().item() == pytest.approx(run.record["last"]["score"], abs=1e-6)
    assert weights_sha256(run.student.model.state_dict()) == run.record["student"]["sha256"]
    with pytest.raises(kdrun.errors.KdrunError, match="no weights 'nope'"):
        kdrun.load(folder, "nope")


BASE = ["dataset=digits", "teacher=resnet14", "student=resnet8", "recipe=quick"]
SAME = [
    ["outputs=elsewhere"], ["protocol=best"], ["rerun=true"], ["engine.device=cpu"], ["engine.threads=1"], ["engine.log_every=7"],
    ["engine.debug=true"], ["method.kd.temperature=4"], ["recipe.name=other"], ["dataset.memory=always"],
]  # fmt: skip
OTHER = [
    ["dataset.holdout=100"], ["student.shortcut=A"], ["teacher=resnet8"], ["teacher.seed=1"], ["teacher.weights=best"],
    ["teacher.recipe.lr=0.2"], ["method.kd.temperature=5"], ["method.kd.weights.soft=0.2"], ["method=[kd,rkd]"], ["recipe.lr=0.2"],
    ["engine.precision=fp32"], ["loss.task=0.5"], ["engine.deterministic=false"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", SAME, ids=" ".join)
def test_what_is_no_part_of_the_identity(overrides: list[str]) -> None:
    """Where and how loudly a run is computed does not make it another one; 4 and 4.0 are one number."""
    assert digest(identity(composed(*BASE, *overrides), "c")) == digest(identity(composed(*BASE), "c"))


@pytest.mark.parametrize("overrides", OTHER, ids=" ".join)
def test_what_makes_another_run(overrides: list[str]) -> None:
    """Everything that changes the result changes the group, too."""
    assert group(identity(composed(*BASE, *overrides), "c")) != group(identity(composed(*BASE), "c"))


def test_seed_is_in_the_identity_and_not_in_the_group() -> None:
    one, two = identity(composed(*BASE), "c"), identity(composed(*BASE, "seed=1"), "c")
    assert digest(one) != digest(two)
    assert group(one) == group(two)
    assert digest(one) != digest(identity(composed(*BASE), "another dataset"))


def test_all_students_share_one_teacher() -> None:
    """seed, the student's recipe, method and model leave the teacher's run as it is."""
    teacher = digest(identity(teacher_config(composed(*BASE)), "c"))
    for overrides in (
        ["seed=3"],
        ["recipe.lr=0.2"],
        ["method=rkd"],
        ["student=resnet14"],
        ["protocol=best"],
        ["loss.task=0.1"],
    ):
        assert digest(identity(teacher_config(composed(*BASE, *overrides)), "c")) == teacher


def test_a_teacher_is_the_run_that_method_none_asks_for() -> None:
    """`teacher=none method=none student=resnet14` is the very run that trains resnet14 as a teacher."""
    alone = composed("dataset=digits", "teacher=none", "method=none", "student=resnet14", "recipe=quick")
    assert digest(identity(alone, "c")) == digest(identity(teacher_config(composed(*BASE)), "c"))


def test_a_new_knob_does_not_orphan_finished_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that has its neutral value is left out of the identity; another value is in it."""
    with_knob = identity(composed(*BASE), "c")
    monkeypatch.setitem(NEUTRAL, "recipe.gamma", 0.1)
    without = identity(composed(*BASE), "c")
    assert "gamma" in with_knob["recipe"]
    assert "gamma" not in without["recipe"]
    assert "gamma" in identity(composed(*BASE, "recipe.gamma=0.2"), "c")["recipe"]


def test_identity_is_frozen() -> None:
    """The digest of a fixed config: a change here orphans every finished run and needs a new schema number or NEUTRAL."""
    found = identity(composed(*BASE), "c")
    assert sorted(found) == [
        "dataset", "deterministic", "method", "precision", "recipe", "schema", "seed", "student", "task", "task_weight", "teacher",
    ]  # fmt: skip
    assert digest(found) == "1ea3324e7bf6eaf3"


def test_a_student_depends_on_its_seed_alone(tmp_path: Path) -> None:
    """Initial weights and batches of one seed are those of `none`, whatever method and teacher were built beside them."""
    from kdrun.engine.build import build
    from kdrun.engine.precision import resolve

    def first(*overrides: str) -> tuple[str, Any]:
        config = composed("dataset=digits", "student=resnet8", "recipe=quick", *overrides)
        parts = build(dataclasses.replace(config, outputs=str(tmp_path)), resolve(config.engine))
        return weights_sha256(parts.distillation.student.module.state_dict()), next(iter(parts.train.epoch(0)))

    weights, batch = first("method=none", "teacher=none")
    for method in ("kd", "crd", "dml", "fitnet", "[at,sobolev]"):
        mine, other = first(f"method={method}", "teacher=resnet14")
        assert mine == weights
        assert all(other[key].equal(batch[key]) for key in batch)
    assert first("method=none", "teacher=none", "seed=1")[0] != weights
