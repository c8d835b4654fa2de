"""`kdrun verify RUN`: whether the files of a run still agree with its record."""

from __future__ import annotations

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
from kdrun.report.facts import right_answers
from kdrun.report.files import no_record, read_epochs, read_record
from kdrun.runs import record as records
from kdrun.runs.folder import CONFIG, CURVES, PREDICTIONS, WEIGHTS
from kdrun.runs.identity import canonical, digest, file_sha256, flat, group
from kdrun.tasks.metric import metric_of

BROKEN = (
    KdrunError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
)  # the errors of a damaged file


@dataclass(frozen=True)
class Check:
    """One check and its outcome: ok, absent (a file that is not there), note (a source that has changed since), or WRONG."""

    name: str
    state: str = "ok"
    detail: str = ""


def verify(arguments: Sequence[str]) -> int:
    """The verb: for one run a line for each check, for several a line for each run; exit status 1 where a check is WRONG."""
    parser = Parser("kdrun verify", description="Check that the files of runs agree with their records.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="the folder of a run (with its record.json), or a folder of many runs"
    )
    folders = parser.parse_args(arguments).runs
    runs = [run for folder in folders for run in _runs(Path(folder))]
    alone = len(folders) == 1 and runs == [Path(folders[0])]
    is_wrong = _detailed(runs[0]) if alone else _brief(runs)
    return 1 if is_wrong else 0


def _runs(place: Path) -> list[Path]:
    """The folders with a record at or below a place."""
    runs = []
    for root, folders, files in os.walk(place):
        folders.sort()
        if records.NAME in files:
            runs.append(Path(root))
            folders.clear()
    if not runs:
        raise no_record(place)
    return runs


def _detailed(run: Path) -> bool:
    """Print every check of a run; True where one is WRONG."""
    print(run)
    results = checks(run)
    for check in results:
        print(f"  {check.state:<6} {check.name}" + (f": {check.detail}" if check.detail else ""))
    return any(check.state == "WRONG" for check in results)


def _brief(runs: list[Path]) -> bool:
    """Print a line for each run with its absent files and notes, below it what is WRONG, and at the end the counts."""
    counts: Counter[str] = Counter()
    for run in runs:
        results = checks(run)
        by = {state: [check for check in results if check.state == state] for state in ("absent", "note", "WRONG")}
        state = "WRONG" if by["WRONG"] else "ok"
        absent = [f"absent: {', '.join(check.name for check in by['absent'])}"] if by["absent"] else []
        print(
            "   ".join(
                [
                    f"{state:<6} {run}",
                    *absent,
                    *(f"{note.name}{': ' * bool(note.detail)}{note.detail}" for note in by["note"]),
                ]
            ),
            flush=True,
        )
        for check in by["WRONG"]:
            print(f"         {check.name}: {check.detail}")
        counts.update([state, *(["with files absent"] if absent else [])])
    each = [f"{counts[name]} {name}" for name in ("ok", "WRONG", "with files absent") if counts[name]]
    print("   ".join([f"{len(runs)} run{'s' * (len(runs) != 1)}", *each]))
    return counts["WRONG"] > 0


def checks(folder: Path) -> list[Check]:
    """Every check of one run. Only the score of the last epoch is computed again: other epochs would need the data."""
    try:
        record = read_record(folder)
    except KdrunError as error:
        return [Check(records.NAME, "WRONG", str(error))]
    settings = [
        _check("id and group are the hashes of the identity", _ids, record),
        _file(folder / CONFIG, "has the settings of the identity", _config, record),
    ]
    if record["status"] != "done":
        return [*settings, Check(f"{record['status']}: there is no result to check yet", "note")]
    return [
        *settings,
        _file(folder / CURVES, "has the scores of the record", _scores, record),
        *_weights_files(folder, record),
        *_predictions(folder, record),
        *_teacher(folder, record),
        *_code(folder, record),
    ]


def _check(name: str, test: Callable[..., str | None], *arguments: Any) -> Check:
    """WRONG with the text that `test` returns or raises; ok where it returns None."""
    try:
        wrong = test(*arguments)
    except BROKEN as error:
        wrong = str(error) if isinstance(error, KdrunError) else f"it cannot be read ({type(error).__name__}: {error})"
    return Check(name, "WRONG" if wrong else "ok", " ".join((wrong or "").split()))


def _file(path: Path, name: str, test: Callable[..., str | None], *arguments: Any) -> Check:
    """The same for a file, which may be absent: portable records have few files."""
    return _check(f"{path.name} {name}", test, path, *arguments) if path.is_file() else Check(path.name, "absent")


def _ids(record: dict[str, Any]) -> str | None:
    return _unequal((digest(record["identity"]), group(record["identity"])), (record["id"], record["group"]))


# What an identity says by content and a config by its place.
CONTENT = (
    "config.dataset.checksum", "config.dataset.tokenizer", "config.student.checkpoint", "config.student.source",
    "config.student.pretrained",
)  # fmt: skip


def _config(path: Path, record: dict[str, Any]) -> str | None:
    """The first key in which configuration and identity differ; the teacher is left out, since the identity has only its hash."""
    config = records.config(path.parent)
    identity = record["identity"]
    settings = {
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
    ours = flat({"config": canonical(settings, "")})
    theirs = flat({"config": {key: identity[key] for key in settings}})
    for key in dict.fromkeys([*ours, *theirs]):
        if not key.startswith(CONTENT) and ours.get(key) != theirs.get(key):
            return f"{key.removeprefix('config.')} is {ours.get(key, 'not there')}, and the identity says {theirs.get(key, 'nothing')}"
    return None


def _scores(path: Path, record: dict[str, Any]) -> str | None:
    """Whether the curve gives last, best and holdout: of equal scores, the earliest epoch."""
    curve = [line for line in read_epochs(path) if line["stage"] == "distil"]
    if [line["epoch"] for line in curve] != [*range(1, record["last"]["epoch"] + 1)]:
        return f"it has {len(curve)} epochs, and the record says {record['last']['epoch']}"
    chosen = {"last": curve[-1], "best": _best(curve, "test", record)}
    scores = {key: (line["test"]["score"], line["epoch"]) for key, line in chosen.items()}
    if record["holdout"]:
        line = _best(curve, "holdout", record)
        scores["holdout"] = (line["holdout"]["score"], line["epoch"])
    for key, value in scores.items():
        if wrong := _unequal(value, (record[key]["score"], record[key]["epoch"])):
            return f"{key} is {wrong}"
    return None


def _best(curve: list[dict[str, Any]], split: str, record: dict[str, Any]) -> dict[str, Any]:
    """The earliest epoch with the best score."""
    metric, best = metric_of(record), curve[0]
    for line in curve[1:]:
        best = line if metric.is_better(line[split]["score"], best[split]["score"]) else best
    return best


def _weights_files(folder: Path, record: dict[str, Any]) -> Iterator[Check]:
    """The weights of the last epoch have the hash of the record; weights of an earlier epoch have the same names and shapes."""
    last = folder / WEIGHTS["last"]
    for which, name in WEIGHTS.items():
        path = folder / name
        if record[which] and record[which]["epoch"] == record["last"]["epoch"]:
            yield _file(path, "has the hash of the record", _hash, record["student"]["sha256"])
        elif record[which]:
            yield _file(path, f"has the tensors of {last.name}", _tensors, last)


def _hash(path: Path, wanted: str) -> str | None:
    from kdrun.runs.checkpoint import load_weights, weights_sha256

    return _unequal(weights_sha256(load_weights(path)), wanted)


def _tensors(path: Path, last: Path) -> str | None:
    """Compare names and shapes of tensors with those of the last weights; where these are absent, only load the file."""
    from kdrun.runs.checkpoint import load_weights

    ours = {name: tuple(value.shape) for name, value in load_weights(path).items()}
    try:
        theirs = {name: tuple(value.shape) for name, value in load_weights(last).items()}
    except KdrunError:
        return None  # it is absent or broken: its own line says so
    unlike = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    return f"{unlike[0]} is {ours.get(unlike[0])}, there {theirs.get(unlike[0])}" if unlike else None


def _predictions(folder: Path, record: dict[str, Any]) -> list[Check]:
    """The score of the last epoch again, from the logits that it gave; only a share of right answers can be computed here."""
    if not metric_of(record).counts:
        return []
    return [_file(folder / PREDICTIONS, "gives the score of the record", _logits, record)]


def _logits(path: Path, record: dict[str, Any]) -> str | None:
    from kdrun.runs.checkpoint import load_weights

    try:
        right = right_answers(load_weights(path))
    except KeyError as error:
        return f"{path} has no {error}"
    return _unequal(round(right.double().mean().item(), 6), round(record["last"]["score"], 6))


def _teacher(folder: Path, record: dict[str, Any]) -> list[Check]:
    """The weights of the teacher's run, where it lies beside this run; a checkpoint from outside has no run."""
    teacher, places = record["teacher"], folder.resolve().parents
    if not teacher or not teacher["run_id"]:
        return []
    which = (record["identity"].get("teacher") or {}).get("weights", "last")
    runs = f"none/none-*/*/seed*/{records.NAME}"
    beside = places[3].glob(runs) if len(places) > 3 else ()
    elsewhere = places[4].glob(f"*/{runs}") if len(places) > 4 else ()  # below another label of the dataset
    for path in chain(beside, elsewhere):
        try:
            other = records.read(path.parent) or {}
        except KdrunError:
            continue
        if other.get("id") == teacher["run_id"]:
            file = path.with_name(WEIGHTS.get(which, WEIGHTS["last"]))
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
    """A note where the source has changed since the run. The plug-ins of the run are imported to compare it."""
    from kdrun.config.registry import import_plugins
    from kdrun.runs.source import TREE, changed_code

    try:
        config = records.config(folder)
        import_plugins(config.get("plugins") or [])
        student = {"path": record["identity"].get("student", {}).get("path"), "name": record["student"]["name"]}
        nodes = {"student": student, **{key: node for key, node in config.items() if key == "teacher"}}
        shape: Any = SimpleNamespace(**{role: SimpleNamespace(**node) for role, node in nodes.items()})
        changed = changed_code(shape, record)
    except Exception as error:  # a plug-in may raise anything
        reason = str(error) if isinstance(error, KdrunError) else f"{type(error).__name__}: {error}"
        return [Check("the source cannot be compared", "note", " ".join(reason.split()))]
    texts = [name for name, then in record["code"]["method"].items() if not then.startswith(TREE)]
    if texts:  # schema 1 held the hash of a text
        return [
            Check(
                f"the source of {', '.join([*texts, *changed])} cannot be compared: an older kdrun wrote the record",
                "note",
            )
        ]
    if changed:
        return [Check(f"the source of {', '.join(changed)} has changed since", "note")]
    return [Check("the source is that of the record")]


def _unequal(value: Any, recorded: Any) -> str | None:
    """None where a value is that of the record."""
    return None if value == recorded else f"{value}, and the record says {recorded}"
