"""`kdrun verify RUN`: whether a run's files are still what its record says; `kdrun diff A B`: what differs between two runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.command import Parser
from kdrun.runs import record as records
from kdrun.runs.identity import canonical, digest, file_sha256, flat, group

BROKEN = (
    KdrunError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
)  # what a bad file raises
SCORED = {"last": "student", "best": "student-best", "holdout": "student-holdout"}  # its weights


@dataclass(frozen=True)
class Check:
    """What was checked and how it came out: a file that is not there is absent, a source that has changed since a note."""

    what: str
    state: str = "ok"  # ok, absent, note, WRONG
    told: str = ""


def verify(arguments: Sequence[str]) -> int:
    """The verb: a line per check of one run, a line per run of several; exit status 1 where a check is WRONG."""
    found = Parser("kdrun verify", description="Check that the files of runs are what their records say.")
    found.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder (the one of its record.json), or one of many runs"
    )
    given = found.parse_args(arguments).runs
    runs = [run for place in given for run in _runs(Path(place))]
    alone = len(given) == 1 and runs == [Path(given[0])]
    is_wrong = _detailed(runs[0]) if alone else _brief(runs)
    return 1 if is_wrong else 0


def _runs(place: Path) -> list[Path]:
    """The folders with a record at or below a place."""
    found = []
    for root, folders, files in os.walk(place):
        folders.sort()
        if records.NAME in files:
            found.append(Path(root))
            folders.clear()
    if not found:
        raise _no_record(place)
    return found


def _no_record(place: Path) -> KdrunError:
    return KdrunError(
        f"{place} has no {records.NAME}; give a run's folder, as outputs/runs/DATASET/METHOD/PAIR/HASH/seed0"
    )


def _detailed(run: Path) -> bool:
    """Every check of a run, a line each; whether one is WRONG."""
    print(run)
    found = checks(run)
    for check in found:
        print(f"  {check.state:<6} {check.what}" + (f": {check.told}" if check.told else ""))
    return any(check.state == "WRONG" for check in found)


def _brief(runs: list[Path]) -> bool:
    """A line per run with what is absent or to be noted, below it what is WRONG; the counts last."""
    counts: Counter[str] = Counter()
    for run in runs:
        found = checks(run)
        by = {state: [check for check in found if check.state == state] for state in ("absent", "note", "WRONG")}
        state = "WRONG" if by["WRONG"] else "ok"
        absent = [f"absent: {', '.join(check.what for check in by['absent'])}"] if by["absent"] else []
        print(
            "   ".join(
                [
                    f"{state:<6} {run}",
                    *absent,
                    *(f"{note.what}{': ' * bool(note.told)}{note.told}" for note in by["note"]),
                ]
            ),
            flush=True,
        )
        for check in by["WRONG"]:
            print(f"         {check.what}: {check.told}")
        counts.update([state, *(["with files absent"] if absent else [])])
    told = [f"{counts[what]} {what}" for what in ("ok", "WRONG", "with files absent") if counts[what]]
    print("   ".join([f"{len(runs)} run{'s' * (len(runs) != 1)}", *told]))
    return counts["WRONG"] > 0


def checks(folder: Path) -> list[Check]:
    """Every check of one run. The scores of other epochs than the last cannot be checked: they need the data."""
    try:
        record = _record(folder)
    except KdrunError as error:
        return [Check(records.NAME, "WRONG", str(error))]
    found = [
        _check("id and group are the hashes of the identity", _ids, record),
        _file(folder / "config.yaml", "asks for what the identity says", _config, record),
    ]
    if record["status"] != "done":
        return [*found, Check(f"{record['status']}: there is no result to check yet", "note")]
    return [
        *found,
        _file(folder / "curves.jsonl", "has the scores of the record", _scores, record),
        *_weights_files(folder, record),
        _file(folder / "test_logits.safetensors", "gives the score of the record", _logits, record),
        *_teacher(folder, record),
        *_code(folder, record),
    ]


def _check(what: str, look: Callable[..., str | None], *arguments: Any) -> Check:
    """WRONG with what `look` returns or raises; ok where it finds nothing."""
    try:
        wrong = look(*arguments)
    except BROKEN as error:
        wrong = str(error) if isinstance(error, KdrunError) else f"it cannot be read ({type(error).__name__}: {error})"
    return Check(what, "WRONG" if wrong else "ok", " ".join((wrong or "").split()))


def _file(path: Path, what: str, look: Callable[..., str | None], *arguments: Any) -> Check:
    """The same for a file, which may be absent: portable records are without most."""
    return _check(f"{path.name} {what}", look, path, *arguments) if path.is_file() else Check(path.name, "absent")


def _ids(record: dict[str, Any]) -> str | None:
    return _unequal((digest(record["identity"]), group(record["identity"])), (record["id"], record["group"]))


def _config(path: Path, record: dict[str, Any]) -> str | None:
    """The first key in which the configuration is not the identity's; the teacher's run stands in it as a hash, by name alone."""
    config = records.config(path.parent)
    identity = record["identity"]
    asked = {
        "dataset": {key: value for key, value in config["dataset"].items() if key in identity["dataset"]},
        "student": {
            key: config["student"].get(key) for key in identity["student"] if key not in ("checkpoint", "source")
        },
        "method": config["method"],
        "task_weight": config["loss"]["task"],
        "recipe": {key: value for key, value in config["recipe"].items() if key != "name"},
        "seed": config["seed"],
        "precision": config["engine"]["precision"],
        "deterministic": config["engine"]["deterministic"],
    }
    ours = flat({"config": canonical(asked, "")})
    theirs = flat({"config": {key: identity[key] for key in asked}})
    not_in = ("config.dataset.checksum", "config.student.checkpoint", "config.student.source")  # hashes of content
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in not_in and ours.get(key) != theirs.get(key):
            return f"{key.removeprefix('config.')} is {ours.get(key, 'not there')}, and the identity says {theirs.get(key, 'nothing')}"
    return None


def _scores(path: Path, record: dict[str, Any]) -> str | None:
    """The curve against last, best and holdout: the earliest epoch with the highest score."""
    curve = [line for line in _curve(path) if line["stage"] == "distil"]
    if [line["epoch"] for line in curve] != [*range(1, record["last"]["epoch"] + 1)]:
        return f"it has {len(curve)} epochs, and the record says {record['last']['epoch']}"
    chosen = {"last": curve[-1], "best": max(curve, key=lambda line: line["test"]["score"])}
    found = {key: (line["test"]["score"], line["epoch"]) for key, line in chosen.items()}
    if record["holdout"]:
        line = max(curve, key=lambda line: line["holdout"]["score"])
        found["holdout"] = (line["holdout"]["score"], line["epoch"])
    for key, value in found.items():
        if wrong := _unequal(value, (record[key]["score"], record[key]["epoch"])):
            return f"{key} is {wrong}"
    return None


def _weights_files(folder: Path, record: dict[str, Any]) -> Iterator[Check]:
    """The hash of the last weights, and of others of that epoch; those of an earlier epoch have the same tensors."""
    for which, stem in SCORED.items():
        path = folder / f"{stem}.safetensors"
        if record[which] and record[which]["epoch"] == record["last"]["epoch"]:
            yield _file(path, "has the hash of the record", _hash, record["student"]["sha256"])
        elif record[which]:
            yield _file(path, "has the tensors of student.safetensors", _tensors, folder / "student.safetensors")


def _hash(path: Path, wanted: str) -> str | None:
    from kdrun.runs.checkpoint import load_weights, weights_sha256

    return _unequal(weights_sha256(load_weights(path)), wanted)


def _tensors(path: Path, last: Path) -> str | None:
    """Names and shapes; where the last weights are absent, that the file loads."""
    from kdrun.runs.checkpoint import load_weights

    ours = {name: tuple(value.shape) for name, value in load_weights(path).items()}
    try:
        theirs = {name: tuple(value.shape) for name, value in load_weights(last).items()}
    except KdrunError:
        return None  # absent or broken, which its own line says
    unlike = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    return f"{unlike[0]} is {ours.get(unlike[0])}, there {theirs.get(unlike[0])}" if unlike else None


def _logits(path: Path, record: dict[str, Any]) -> str | None:
    from kdrun.runs.checkpoint import load_weights

    tested = load_weights(path)
    for key in ("logits", "labels"):
        if key not in tested:
            return f"{path} has no '{key}'"
    right = (tested["logits"].argmax(1) == tested["labels"]).double().mean().item()
    return _unequal(round(right, 6), round(record["last"]["score"], 6))


def _teacher(folder: Path, record: dict[str, Any]) -> list[Check]:
    """The weights of the teacher's run, where it lies among the same runs; one from outside has no run."""
    teacher, places = record["teacher"], folder.resolve().parents
    if not teacher or not teacher["run_id"]:
        return []
    which = (record["identity"].get("teacher") or {}).get("weights", "last")
    runs = f"none/none-*/*/seed*/{records.NAME}"
    beside = places[3].glob(runs) if len(places) > 3 else ()
    elsewhere = places[4].glob(f"*/{runs}") if len(places) > 4 else ()  # below another label of the dataset
    for path in chain(beside, elsewhere):
        try:
            found = records.read(path.parent) or {}
        except KdrunError:
            continue
        if found.get("id") == teacher["run_id"]:
            file = path.with_name(f"{SCORED.get(which, 'student')}.safetensors")
            if file.is_file():
                wrong = _unequal(file_sha256(file), teacher["sha256"])
                return [
                    Check(
                        "the teacher's weights have the hash of the record",
                        *(("WRONG", f"{file}: {wrong}") if wrong else ()),
                    )
                ]
    return [Check("the teacher's weights", "absent")]


def _code(folder: Path, record: dict[str, Any]) -> list[Check]:
    """Notes where the source is another by now: what was run stays what it was. The run's plug-ins are imported for it."""
    from kdrun.config.registry import import_plugins
    from kdrun.runs.source import changed_code

    try:
        asked = records.config(folder)
        import_plugins(asked.get("plugins") or [])
        student = {"path": record["identity"].get("student", {}).get("path"), "name": record["student"]["name"]}
        nodes = {"student": student, **{key: node for key, node in asked.items() if key == "teacher"}}
        shape: Any = SimpleNamespace(**{role: SimpleNamespace(**node) for role, node in nodes.items()})
        changed = changed_code(shape, record)
    except Exception as error:  # a plug-in may raise anything
        said = str(error) if isinstance(error, KdrunError) else f"{type(error).__name__}: {error}"
        return [Check("the source cannot be compared", "note", " ".join(said.split()))]
    if changed:
        return [Check(f"the source of {', '.join(changed)} has changed since", "note")]
    return [Check("the source is that of the record")]


def diff(arguments: Sequence[str]) -> int:
    """The verb: configuration, environment, results and curve of two runs, where they differ."""
    found = Parser(
        "kdrun diff", description="What differs between two runs: configuration, environment, results, curve."
    )
    found.add_argument("first", metavar="A")
    found.add_argument("second", metavar="B")
    asked = found.parse_args(arguments)
    first, second = Path(asked.first), Path(asked.second)
    for line in differences(_record(first), _record(second), first, second):
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
    lines += _curves_apart(_tested(a_folder), _tested(b_folder))
    return lines or ["no difference in configuration, environment, results or curve"]


def _tested(folder: Path) -> list[tuple[str, int, float]]:
    """(stage, epoch, test score) of the epochs that were tested; none where there is no curve."""
    path = folder / "curves.jsonl"
    if not path.is_file():
        return []
    return [(line["stage"], line["epoch"], line["test"]["score"]) for line in _curve(path) if line["test"]]


def _curves_apart(first: list[tuple[str, int, float]], second: list[tuple[str, int, float]]) -> list[str]:
    """Where two curves part, or that one is shorter; nothing where they are the same."""
    for (stage, epoch, ours), (their_stage, their_epoch, theirs) in zip(first, second, strict=False):
        if (stage, epoch, ours) != (their_stage, their_epoch, theirs):
            return [
                f"{'curve':<14} first apart at epoch {epoch} of {stage}: test {100 * ours:.2f} | {100 * theirs:.2f}"
            ]
    if len(first) == len(second):
        return []
    if not first or not second:
        return [
            f"{'curve':<14} {f'{len(first)} epochs' if first else '-'} | {f'{len(second)} epochs' if second else '-'}"
        ]
    alike = min(len(first), len(second))
    return [f"{'curve':<14} alike for {alike} epochs; {len(first)} | {len(second)} epochs"]


def _environment(record: dict[str, Any]) -> dict[str, Any]:
    found = {f"versions.{key}": value for key, value in record["versions"].items()}
    found |= {f"engine.{key}": value for key, value in record["engine"].items()}
    sources = {**record["code"]["method"], **{role: record["code"].get(role) for role in ("student", "teacher")}}
    found |= {f"code.{key}": value[:12] for key, value in sources.items() if value}
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


def _record(run: Path) -> dict[str, Any]:
    """The record of a run; one that lacks a key is an error that names the file."""
    record = records.read(run)
    if record is None:
        raise _no_record(run)
    return record


def _curve(path: Path) -> list[dict[str, Any]]:
    """The lines of curves.jsonl; one that is broken or lacks a key is an error that names file and line."""
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            _ = line["stage"], line["epoch"], line["test"] and line["test"]["score"]
        except (ValueError, LookupError, TypeError) as error:
            raise KdrunError(f"{path} is broken in line {number} ({type(error).__name__}: {error})") from error
        found.append(line)
    return found


def _unequal(found: Any, wanted: Any) -> str | None:
    return None if found == wanted else f"{found}, and the record says {wanted}"
