"""`kdrun verify RUN`: whether a run's files are still what its record says; `kdrun diff A B`: what differs between two runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdrun.engine import record as records
from kdrun.errors import KdrunError
from kdrun.identity import digest, group
from kdrun.report.command import Parser
from kdrun.report.groups import flat


def verify(arguments: Sequence[str]) -> int:
    """The verb: a line per check; exit status 1 where one of them fails."""
    found = Parser("kdrun verify", description="Check that the files of runs are what their records say.")
    found.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder (the one of its record.json)")
    failed = 0
    for run in found.parse_args(arguments).runs:
        record = _record(run)
        print(f"{run}")
        for what, wrong in checks(Path(run), record):
            failed += wrong is not None
            print(f"  {'ok' if wrong is None else 'WRONG':<6} {what}" + (f": {wrong}" if wrong else ""))
    return 1 if failed else 0


def checks(folder: Path, record: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(what was checked, what is wrong with it or None), for one run."""
    yield (
        "id and group are the hashes of the identity",
        _unequal((digest(record["identity"]), group(record["identity"])), (record["id"], record["group"])),
    )
    yield "the run is done", None if record["status"] == "done" else record["status"]
    if record["status"] != "done":
        return
    curve = _curve(folder)
    last = [line for line in curve if line["stage"] == "distil"][-1:]
    scores = (last[0]["test"]["score"], last[0]["epoch"]) if last else None
    yield (
        "curves.jsonl ends in the score of the record",
        _unequal(scores, (record["last"]["score"], record["last"]["epoch"])),
    )
    if not (folder / "student.safetensors").is_file():
        yield "weights and logits", "they are not here (portable records have none)"
        return
    from kdrun.engine.checkpoint import load_weights, weights_sha256

    found = weights_sha256(load_weights(folder / "student.safetensors"))
    yield "student.safetensors has the hash of the record", _unequal(found[:12], record["student"]["sha256"][:12])
    tested = load_weights(folder / "test_logits.safetensors")
    right = (tested["logits"].argmax(1) == tested["labels"]).double().mean().item()
    yield (
        "test_logits.safetensors gives the score of the record",
        _unequal(round(right, 6), round(record["last"]["score"], 6)),
    )


def diff(arguments: Sequence[str]) -> int:
    """The verb: configuration, environment, results and curve of two runs, where they differ."""
    found = Parser(
        "kdrun diff", description="What differs between two runs: configuration, environment, results, curve."
    )
    found.add_argument("first", metavar="A")
    found.add_argument("second", metavar="B")
    asked = found.parse_args(arguments)
    first, second = Path(asked.first), Path(asked.second)
    for line in differences(_record(asked.first), _record(asked.second), first, second):
        print(line)
    return 0


def differences(a: dict[str, Any], b: dict[str, Any], a_folder: Path, b_folder: Path) -> list[str]:
    """A line per difference, under the part that it belongs to; one line where there is none."""
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
    curves = [
        [(line["stage"], line["epoch"], line["test"]["score"]) for line in _curve(f) if line["test"]]
        for f in (a_folder, b_folder)
    ]
    apart = next((i for i, (x, y) in enumerate(zip(*curves, strict=False)) if x != y), None)
    if apart is not None:
        (stage, epoch, ours), (_, _, theirs) = curves[0][apart], curves[1][apart]
        lines.append(
            f"{'curve':<14} first apart at epoch {epoch} of {stage}: test {100 * ours:.2f} | {100 * theirs:.2f}"
        )
    elif len(curves[0]) != len(curves[1]):
        lines.append(
            f"{'curve':<14} alike for {min(map(len, curves))} epochs; {len(curves[0])} | {len(curves[1])} epochs"
        )
    return lines or ["no difference in configuration, environment, results or curve"]


def _environment(record: dict[str, Any]) -> dict[str, Any]:
    found = {f"versions.{key}": value for key, value in record["versions"].items()}
    found |= {f"engine.{key}": value for key, value in record["engine"].items()}
    found |= {f"code.{key}": (value or "")[:12] for key, value in (record["code"]["method"] or {}).items()}
    return found | {"host": record["host"], "git": (record["git"] or {}).get("commit")}


def _weights(record: dict[str, Any]) -> dict[str, Any]:
    teacher = record["teacher"] or {}
    return {
        "initial student": record["student"]["init_sha256"][:12],
        "student": (record["student"]["sha256"] or "")[:12],
        "teacher": (teacher.get("sha256") or "")[:12],
    }


def _results(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"status": record["status"], "agreement": _percent(record["agreement"])}
    for which in ("last", "best"):
        found[which] = _percent(record[which]["score"]) if record[which] else "-"
    return found


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _record(run: str) -> dict[str, Any]:
    record = records.read(run)
    if record is None:
        raise KdrunError(
            f"{run} has no {records.NAME}; give a run's folder, as outputs/runs/DATASET/METHOD/PAIR/HASH/seed0"
        )
    return record


def _curve(folder: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (folder / "curves.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _unequal(found: Any, wanted: Any) -> str | None:
    return None if found == wanted else f"{found}, and the record says {wanted}"
