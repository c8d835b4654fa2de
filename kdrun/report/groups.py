"""What a table and a picture are made of: runs sorted into blocks and rows, and what each row is called.

A row is the runs that differ in nothing but the seed. Rows are compared within a block: one dataset, one student.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kdrun.report.labels import Settings, Telling, settings
from kdrun.report.models import Models, teacher_node
from kdrun.report.stats import paired
from kdrun.runs.identity import flat, label_of


@dataclass
class Row:
    """The done runs of one group. A seed with different results is in `disputed`, and in nothing that is averaged."""

    label: str = ""
    runs: dict[int, dict] = field(default_factory=dict)
    disputed: dict[int, list[dict]] = field(default_factory=dict)

    @property
    def first(self) -> dict:
        """A run to read the group's settings from."""
        return next(iter(self.runs.values()), None) or next(iter(self.disputed.values()))[0]

    @property
    def baseline(self) -> bool:
        return self.first["method"] == ["none"]

    def scores(self, column: str) -> list[float]:
        return [value for run in self.runs.values() if (value := score(run, column)) is not None]


@dataclass
class Block:
    """What can stand in one table: the groups of one dataset and student, the baselines first."""

    records: list[dict]  # all of them, the unfinished ones too
    rows: list[Row]
    models: Models | None = None  # what their teachers and students are called
    notes: list[str] = field(default_factory=list)  # what a reader must know of its rows

    @property
    def done(self) -> list[dict]:
        return [record for record in self.records if record["status"] == "done"]

    def baseline_of(self, row: Row) -> Row | None:
        return nearest(row, [other for other in self.rows if other.baseline and setting(other) == setting(row)])

    def why_alone(self, row: Row) -> str:
        return why_alone(row, [other for other in self.rows if other.baseline])


SHARED = {"recipe": "recipe", "precision": "precision", "dataset": "data settings", "student": "student"}


def setting(row: Row, keys: Iterable[str] = SHARED) -> str:
    """What a row and its baseline share: student, data, recipe and precision. What its tensors are called does not count."""
    identity = row.first["identity"]
    student = {key: value for key, value in (identity.get("student") or {}).items() if key != "taps"}
    shared = {
        "dataset": identity.get("dataset"),
        "recipe": identity.get("recipe"),
        "precision": identity.get("precision"),
    }
    shared["student"] = [row.first["student"]["name"], student]
    return json.dumps([shared[key] for key in keys], sort_keys=True)


def why_alone(row: Row, baselines: Sequence[Row]) -> str:
    """Why a row is compared with none of these baselines: the first thing that no one of them shares with it."""
    if not baselines:
        return "no baseline"
    for key, what in SHARED.items():
        if all(setting(row, [key]) != setting(other, [key]) for other in baselines):
            return f"no baseline with the same {what}"
    return "no baseline with the same settings"


def nearest(row: Row, baselines: list[Row]) -> Row | None:
    """Of several runs of the student alone the one with most pairs, then with most of its settings; none for a baseline."""
    if row.baseline or len(baselines) < 2:
        return None if row.baseline or not baselines else baselines[0]
    own = flat(row.first["identity"]).items()
    return max(
        baselines, key=lambda b: (len(b.runs.keys() & row.runs.keys()), len(own & flat(b.first["identity"]).items()))
    )


def blocks(records: list[dict]) -> list[Block]:
    """Sort records into blocks and rows, in the order in which they come. Runs that only taught get no block."""
    teachers = {record["teacher"]["run_id"] for record in records if record["teacher"]}
    models = Models(records)
    sorted_records: dict[tuple, list[dict]] = {}
    for record in records:
        key = (*data_key(record), models.key(record, "student"))
        sorted_records.setdefault(key, []).append(record)
    found = []
    for members in sorted_records.values():
        if not all(record["id"] in teachers for record in members):
            rows, telling = rows_of(members, models)
            found.append(Block(members, rows, models, [*telling.notes, *models.notes(members)]))
    return found


def data_key(record: dict) -> tuple:
    """What the rows of one table share: the images that are trained on and tested on."""
    return tuple(record["dataset"][key] for key in ("name", "checksum", "train_n", "holdout_n"))


def teachers(block: Block) -> list[tuple[str, dict, str]]:
    """(label, teacher, column) of each teacher with a score; the column says which of its epochs taught."""
    runs = [run for run in block.done if run["teacher"] and run["teacher"]["score"] is not None]
    found: dict[str, tuple[dict, str]] = {}
    for run in runs:
        best = teacher_node(run).get("weights") == "best"
        found.setdefault(run["teacher"]["sha256"], (run["teacher"], "best" if best else "last"))
    names = teacher_names(runs)
    return [(f"teacher {names[sha]}", teacher, column) for sha, (teacher, column) in found.items()]


def teacher_names(runs: Iterable[dict]) -> dict[str, str]:
    """{sha256 of its weights: what it is called}; teachers of one model are told apart by the settings in which they differ."""
    by_weights = {run["teacher"]["sha256"]: run for run in runs if run["teacher"]}
    models = Models(by_weights.values())
    own = settings(by_weights.values(), models)
    rivals: dict[str | None, list[str]] = {}
    for sha, run in by_weights.items():
        rivals.setdefault(models.called(run, "teacher"), []).append(sha)
    found = {}
    for called, members in rivals.items():
        values = {sha: own[by_weights[sha]["group"]].values for sha in members}
        keys = [key for key in next(iter(values.values())) if key.startswith("teacher.")]
        keys = [key for key in keys if len({one.get(key) for one in values.values()}) > 1]
        told = {
            sha: ", ".join(f"{k.removeprefix('teacher.')}={v[k]}" for k in keys if k in v) for sha, v in values.items()
        }
        for sha, text in told.items():
            text = text if list(told.values()).count(text) == 1 else f"{text}, sha256={sha[:8]}".removeprefix(", ")
            more = f"{str(called)[:-1]}, {text})" if str(called).endswith(")") else f"{called} ({text})"
            found[sha] = more if len(members) > 1 else str(called)
    return found


def difference(row: Row, base: Row, column: str) -> tuple[int, float, float | None, float | None, list[float]]:
    """`row` against `base` over the seeds of both: (pairs, difference, low, high, differences per seed), as fractions.

    A pair needs one seed and the same initial weights; (0, nan, None, None, []) if there is none.
    """
    pairs = [
        (score(run, column), score(base.runs[seed], column))
        for seed, run in sorted(row.runs.items())
        if seed in base.runs and is_pair(run, base.runs[seed])
    ]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return 0, float("nan"), None, None, []
    ours, theirs = zip(*pairs, strict=True)
    return (
        len(pairs),
        *paired(ours, theirs, resolution=resolution(row)),
        [x - y for x, y in zip(ours, theirs, strict=True)],
    )


def resolution(row: Row) -> float:
    """The least step of a test accuracy."""
    return 1 / max(row.first["dataset"]["test_n"], 1)


def notes(rows: Sequence[Row], base_of: Callable[[Row], Row | None]) -> list[str]:
    """What a reader must know before trusting a table: disputed results, unpaired seeds, sources and devices that differ."""
    found = []
    for row in rows:
        for seed, results in row.disputed.items():
            where = ", ".join(
                f"{100 * run['last']['score']:.2f} ({run['host']}, {run['time']['end']})" for run in results
            )
            said = f"{row.label} seed {seed} has {len(results)} different results: {where}"
            found.append(f"{said}; all are left out of the mean")
        base = base_of(row)
        for seed, other in base.runs.items() if base else ():
            if base and seed in row.runs and not is_pair(row.runs[seed], other):
                found.append(
                    f"{row.label} seed {seed} and {base.label} began from different weights: not a pair, left out"
                )
    mixed = _mixed([run for row in rows for run in row.runs.values()])
    return found + ([f"this table mixes different {', '.join(mixed)}"] if mixed else [])


def _mixed(runs: Iterable[dict]) -> list[str]:
    """What runs do not share and should, with the values where they can be read."""
    found: dict[str, set[str]] = {}
    for run in runs:
        own = json.dumps(run["identity"].get("student"), sort_keys=True)  # other models have sources of their own
        values = {
            "devices": run["engine"]["device"], "precisions": run["engine"]["precision"],
            "versions of torch": run["versions"].get("torch"), "versions of kdrun": run["versions"].get("kdrun"),
            f"sources of {label_of(run, 'student')}\0{own}": run["code"]["student"],
            **{f"sources of {m}\0{sha[: sha.find(':') + 1]}": sha for m, sha in run["code"]["method"].items()},
        }  # fmt: skip
        if run["teacher"]:
            asked = json.dumps(run["identity"].get("teacher"), sort_keys=True)
            values[f"weights of teacher {label_of(run, 'teacher')}\0{asked}"] = run["teacher"]["sha256"]
        for what, value in values.items():
            found.setdefault(what, set()).add(str(value))
    return [
        what.partition("\0")[0]
        + (f" ({', '.join(sorted(values))})" if what.startswith(("dev", "prec", "vers")) else "")
        for what, values in found.items()
        if len(values) > 1
    ]


def is_pair(run: dict, other: dict) -> bool:
    return run["student"]["init_sha256"] == other["student"]["init_sha256"]


def gather(records: Iterable[dict]) -> list[Row]:
    """The done runs by group, not named yet. Copies of one result count once; different results of one identity are not averaged."""
    found: dict[str, dict[int, list[dict]]] = {}
    for record in records:
        if record["status"] == "done":
            results = found.setdefault(record["group"], {}).setdefault(record["seed"], [])
            if _result(record) not in map(_result, results):
                results.append(record)
    rows = []
    for seeds in found.values():
        row = Row()
        for seed, results in seeds.items():
            if len(results) == 1:
                row.runs[seed] = results[0]
            else:
                row.disputed[seed] = results
        rows.append(row)
    return rows


def rows_of(records: list[dict], models: Models) -> tuple[list[Row], Telling]:
    """The rows of records that stand in one column, named and in order; and what tells them apart."""
    rows = gather(records)
    own = settings([row.first for row in rows], models)
    telling = Telling([list(own.values())])
    for row in rows:
        row.label = telling.label(own[row.first["group"]])
    return in_order(rows, own, telling), telling


def in_order(rows: Sequence[Row], own: dict[str, Settings], telling: Telling) -> list[Row]:
    """Baselines first, then method by method in the order given; the rows of one method by their values, as numbers."""
    methods = list(dict.fromkeys(own[row.first["group"]].method for row in rows))

    def place(row: Row) -> tuple:
        one = own[row.first["group"]]
        return not row.baseline, methods.index(one.method), telling.order(one)

    return sorted(rows, key=place)


def labels(records: list[dict]) -> dict[str, str]:
    """{group: label} of records that stand in one column: `kd (temperature=2)`."""
    own = settings(records, Models(records))
    telling = Telling([list(own.values())])
    return {group: telling.label(own[group]) for group in dict.fromkeys(record["group"] for record in records)}


def _result(record: dict) -> tuple:
    return record["student"]["sha256"], record["last"]["score"], record["best"]["score"], score(record, "holdout")


def score(record: dict, column: str) -> float | None:
    """The test score of a candidate epoch, as a fraction."""
    chosen = record[column]
    return chosen and chosen["test_score" if column == "holdout" else "score"]


def name(record: dict) -> str:
    return f"{'+'.join(record['method'])} {label_of(record, 'student')} seed {record['seed']}"
