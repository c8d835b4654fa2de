"""record.json: the schema, its documentation, and files that are whole or not there."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.schema import json_schema
from kdrun.tasks.metric import ACCURACY

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")


@pytest.fixture
def example() -> dict:
    """The last example of docs/records.md: what is documented is what is validated."""
    return json.loads(re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)[-1])


def key_paths(node: dict, prefix: str = ""):
    node = node.get("items", node)
    node = next((one for one in node.get("anyOf", ()) if "$ref" in one), node)
    node = json_schema()["$defs"][node["$ref"].removeprefix("#/$defs/")] if "$ref" in node else node
    for key, value in node.get("properties", {}).items():
        yield prefix + key
        yield from key_paths(value, f"{prefix}{key}.")


def test_every_key_is_documented_and_no_other():
    paths = set(key_paths(json_schema()))
    assert {"time.train_s", "last.epoch", "holdout.test_score", "git.dirty"} <= paths
    tables = DOCS[DOCS.index("## record.json") : DOCS.index("## curves.jsonl")]
    named = {key for row in re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE) for key in re.findall(r"`(.+?)`", row)}
    assert named == paths


def test_the_example_is_valid_and_complete(example):
    records.validate(example)
    assert set(json_schema()["required"]) == set(json_schema()["properties"]) - {"weights_auto"} == set(example)


MUTATIONS = {
    "a key too many": {"accuracy": 0.9},
    "other schema": {"schema": 1},
    "id is no hash": {"id": "kd-0"},
    "seed is text": {"seed": "0"},
    "unknown status": {"status": "finished"},
    "percent": {"time.data_wait": 93.13},
    "unknown protocol": {"protocol": "median"},
    "no method": {"method": []},
    "weight is text": {"weights": {"kd.kl": "1"}},
    "done without a score": {"score": None},
    "done without weights": {"student.sha256": None},
    "done without an end": {"time.end": None},
    "local time": {"time.start": "2025-01-01T10:00:00+02:00"},
    "epochs count from 1": {"last.epoch": 0},
    "failed without an error": {"status": "failed"},
    "holdout asked for and absent": {"protocol": "holdout"},
    "half a holdout": {"holdout": {"epoch": 3, "score": 0.9, "loss": 0.1, "metrics": {}}},
    "unknown key inside": {"engine.cudnn": True},
}


@pytest.mark.parametrize("changes", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_wrong_record_is_refused(example, changes):
    for path, value in changes.items():
        *parents, key = path.split(".") if path not in example else [path]
        (example[parents[0]] if parents else example)[key] = value
    with pytest.raises(KdrunError, match="not a valid record"):
        records.validate(example)


@pytest.mark.parametrize("key", json_schema()["required"])
def test_a_missing_key_is_named(example, key):
    del example[key]
    with pytest.raises(KdrunError, match=f"'{key}' is a required"):
        records.validate(example)


def test_unfinished_records_are_valid(example):
    nothing = {"score": None, "last": None, "best": None, "agreement": None}
    example |= nothing | {"status": "running", "teacher": None}
    example["student"]["sha256"] = example["time"]["end"] = example["time"]["samples_per_s"] = None
    records.validate(example)
    error = {"type": "DivergedError", "message": "loss became NaN", "stage": "distil", "step": 7, "term": "kd.kl"}
    records.validate(example | {"status": "nan", "error": error})
    records.validate(example | {"status": "failed", "error": error | {"stage": None, "step": None, "term": None}})


def test_write_and_read(tmp_path, example):
    assert records.read(tmp_path) is None
    records.write(tmp_path, example)
    assert records.read(tmp_path) == example
    example["last"]["loss"] = math.inf
    records.write(tmp_path, example)
    assert records.read(tmp_path)["last"]["loss"] is None


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, example):
    records.write(tmp_path, example)
    with pytest.raises(TypeError):
        records.write(tmp_path, example | {"host": object()})
    assert records.read(tmp_path) == example
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema": 1, "id"', "truncated or not JSON"),
        (b"", "truncated or not JSON"),
        (b"\xff\xfe\x00", "truncated or not JSON"),
        (b"[1, 2]", "not a record of a kdrun run"),
        (b'{"epoch": 3}', "not a record of a kdrun run"),
        (b'{"schema": 3}', "has schema 3; this kdrun reads schemas 1 and 2"),
    ],
)
def test_foreign_files_are_named(tmp_path, content, message):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(KdrunError, match=message) as caught:
        records.read(tmp_path)
    assert str(tmp_path / "record.json") in str(caught.value)


def test_now_is_utc():
    moment = datetime.fromisoformat(records.now())
    assert moment.utcoffset() == timedelta(0)
    assert re.match(json_schema()["$defs"]["Time"]["properties"]["start"]["pattern"], records.now())


def test_git_state(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert records.git_state(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("1")
    (tmp_path / "venv").mkdir()
    assert records.git_state(tmp_path) is None  # no commit yet
    git("add", "file")
    git("commit", "-m", "first")
    state = records.git_state(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", state["commit"])
    assert not state["dirty"]
    assert records.git_state(tmp_path / "venv") is None  # inside, but not tracked
    (tmp_path / "file").write_text("2")
    assert records.git_state(tmp_path) == state | {"dirty": True}
    monkeypatch.setenv("PATH", "")
    assert records.git_state(tmp_path) is None  # git is missing


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from kdrun.runs import record; record.versions()\n"
        "print({'torch', 'numpy', 'hydra', 'jsonschema', 'torchvision'} & set(sys.modules))"
    )
    root = Path(__file__).parents[1]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
    versions = records.versions()
    assert {"python", "torch", "hydra"} <= versions.keys()
    assert all(isinstance(version, str) for version in versions.values())


def test_a_record_of_schema_1_is_read_as_one_of_schema_2(tmp_path):
    """The committed benchmark was written in schema 1; reading it loses nothing, and what is read can be written and read again."""
    (path, *_) = sorted((ROOT / "results" / "cifar10-jpeg").rglob("record.json"))
    old, new = json.loads(path.read_text()), records.read(path.parent)
    assert old["schema"] == 1
    assert new["schema"] == 2
    records.validate(new)
    assert new["metrics"] == [ACCURACY.as_dict()]
    assert new["last"] == {**old["last"], "metrics": {"accuracy": old["last"]["score"]}}
    assert new["dataset"]["preprocessing"] == {key: old["dataset"][key] for key in ("size", "mean", "std")}
    assert new["details"] == {key: old[key] for key in ("calibration", "class_scores")}
    assert new["time"]["samples_per_s"] == old["time"]["images_per_s"]
    same = set(old) & set(new) - {"schema", "dataset", "time", "last", "best", "holdout"}
    assert {key: new[key] for key in same} == {key: old[key] for key in same}
    records.write(tmp_path, new)
    assert records.read(tmp_path) == new


def test_the_schema_on_disk_is_made_from_the_types():
    spec = importlib.util.spec_from_file_location("docs_record", ROOT / "scripts" / "docs_record.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.FILE.read_text(encoding="utf-8") == script.text(), "run: python scripts/docs_record.py"
