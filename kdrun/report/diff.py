"""`kdrun diff A B`: what differs between two runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.report.command import Parser
from kdrun.report.display import Display, display_of, percent
from kdrun.report.files import read_epochs, read_record
from kdrun.runs.folder import CURVES
from kdrun.runs.identity import flat


def diff(arguments: Sequence[str]) -> int:
    """The verb: print where configuration, environment, results and curve of two runs differ."""
    parser = Parser(
        "kdrun diff", description="What differs between two runs: configuration, environment, results, curve."
    )
    parser.add_argument("first", metavar="A")
    parser.add_argument("second", metavar="B")
    options = parser.parse_args(arguments)
    first, second = Path(options.first), Path(options.second)
    for line in differences(read_record(first), read_record(second), first, second):
        print(line)
    return 0


def differences(a: dict[str, Any], b: dict[str, Any], a_folder: Path, b_folder: Path) -> list[str]:
    """A line for each difference, beginning with the part of the run; one line where there is no difference."""
    lines = []
    parts = {
        "configuration": ({**flat(a["identity"]), "seed": a["seed"]}, {**flat(b["identity"]), "seed": b["seed"]}),
        "environment": (_environment(a), _environment(b)),
        "weights": (_weights(a), _weights(b)),
        "results": (_results(a), _results(b)),
    }
    for part, (ours, theirs) in parts.items():
        changed = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
        lines += [f"{part:<14} {key}: {ours.get(key, '-')} | {theirs.get(key, '-')}" for key in changed]
    lines += _curves(_scores(a_folder), _scores(b_folder), display_of(a))
    return lines or ["no difference in configuration, environment, results or curve"]


def _scores(folder: Path) -> list[tuple[str, int, float]]:
    """(stage, epoch, test score) of the epochs that were tested; none where there is no curve."""
    path = folder / CURVES
    if not path.is_file():
        return []
    return [(line["stage"], line["epoch"], line["test"]["score"]) for line in read_epochs(path) if line["test"]]


def _curves(first: list[tuple[str, int, float]], second: list[tuple[str, int, float]], display: Display) -> list[str]:
    """The first epoch in which two curves differ, or that one curve is shorter; nothing where they are equal."""
    for ours, theirs in zip(first, second, strict=False):
        if ours != theirs:
            stage, epoch, score = ours
            scores = f"test {display.text(score)} | {display.text(theirs[2])}"
            return [f"{'curve':<14} first difference at epoch {epoch} of {stage}: {scores}"]
    if len(first) == len(second):
        return []
    lengths = " | ".join(f"{len(curve)} epochs" if curve else "-" for curve in (first, second))
    equal = min(len(first), len(second))
    return [f"{'curve':<14} " + (f"equal for {equal} epochs; " if equal else "") + lengths]


def _environment(record: dict[str, Any]) -> dict[str, Any]:
    values = {f"versions.{key}": value for key, value in record["versions"].items()}
    values |= {f"engine.{key}": value for key, value in record["engine"].items()}
    sources = {**record["code"]["method"], **{role: record["code"].get(role) for role in ("student", "teacher")}}
    values |= {f"code.{key}": value[:12] for key, value in sources.items() if value}
    return values | {"host": record["host"], "git": (record["git"] or {}).get("commit")}


def _weights(record: dict[str, Any]) -> dict[str, Any]:
    teacher = record["teacher"] or {}
    return {
        "initial student": record["student"]["init_sha256"][:12],
        "student": (record["student"]["sha256"] or "")[:12],
        "teacher": (teacher.get("sha256") or "")[:12],
    }


def _results(record: dict[str, Any]) -> dict[str, Any]:
    display = display_of(record)
    results = {"status": record["status"], "agreement": percent(record["agreement"]) or "-"}
    for epoch in ("last", "best"):
        results[epoch] = display.text(record[epoch]["score"]) if record[epoch] else "-"
    return results
