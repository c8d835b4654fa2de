"""What a table and a picture are made of: runs sorted into blocks and rows, and what each row is called.

A row is the runs that differ in nothing but the seed. Rows are compared within a block: one dataset, one student.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from kdrun.identity import NEUTRAL
from kdrun.report.stats import paired

# How the keys of an identity are written on the command line, where it is not the same; the order is that of preference.
TYPED = {
    "method.": "method.", "task_weight": "loss.task", "recipe.": "recipe.", "teacher.name": "teacher",
    "teacher.": "teacher.", "precision": "engine.precision", "deterministic": "engine.deterministic",
}  # fmt: skip


@dataclass
class Row:
    """The done runs of one group. A seed with different results is in `disputed`, and in nothing that is averaged."""

    label: str
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

    @property
    def done(self) -> list[dict]:
        return [record for record in self.records if record["status"] == "done"]

    def baseline_of(self, row: Row) -> Row | None:
        return nearest(row, [other for other in self.rows if other.baseline and setting(other) == setting(row)])


def setting(row: Row) -> str:
    """What a row and its baseline share: student, data, recipe and precision."""
    identity = row.first["identity"]
    shared = [
        row.first["student"]["name"],
        *(identity.get(key) for key in ("student", "dataset", "recipe", "precision")),
    ]
    return json.dumps(shared, sort_keys=True)


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
    sorted_records: dict[str, list[dict]] = {}
    for record in records:
        data, identity = record["dataset"], record["identity"]
        key = [data["name"], data["checksum"], data["train_n"], data["holdout_n"], identity.get("dataset")]
        key += [record["student"]["name"], identity.get("student")]
        sorted_records.setdefault(json.dumps(key, sort_keys=True), []).append(record)
    return [
        Block(members, rows_of(members))
        for members in sorted_records.values()
        if not all(record["id"] in teachers for record in members)
    ]


def teachers(block: Block) -> list[tuple[str, dict, str]]:
    """(label, teacher, column) of each teacher with a score; the column says which of its epochs taught."""
    found: dict[str, tuple[dict, str]] = {}
    for run in block.done:
        if run["teacher"] and run["teacher"]["score"] is not None:
            asked = run["identity"].get("teacher")
            best = isinstance(asked, dict) and asked.get("weights") == "best"
            found.setdefault(run["teacher"]["sha256"], (run["teacher"], "best" if best else "last"))
    names = Counter(teacher["name"] for teacher, _ in found.values())
    return [
        (f"teacher {teacher['name']}{f' [{sha[:6]}]' if names[teacher['name']] > 1 else ''}", teacher, column)
        for sha, (teacher, column) in found.items()
    ]


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
            if seed in row.runs and not is_pair(row.runs[seed], other):
                found.append(f"{row.label} seed {seed} and none began from different weights: not a pair, left out")
    mixed = _mixed([run for row in rows for run in row.runs.values()])
    return found + ([f"this table mixes different {', '.join(mixed)}"] if mixed else [])


def _mixed(runs: Iterable[dict]) -> list[str]:
    """What runs do not share and should, with the values where they can be read."""
    found: dict[str, set[str]] = {}
    for run in runs:
        values = {
            "devices": run["engine"]["device"], "precisions": run["engine"]["precision"],
            "versions of torch": run["versions"].get("torch"), "versions of kdrun": run["versions"].get("kdrun"),
            f"sources of {run['student']['name']}": run["code"]["student"],
            **{f"sources of {method}": sha for method, sha in run["code"]["method"].items()},
        }  # fmt: skip
        if run["teacher"]:
            asked = json.dumps(run["identity"].get("teacher"), sort_keys=True)
            values[f"weights of teacher {run['teacher']['name']}\0{asked}"] = run["teacher"]["sha256"]
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


def rows_of(records: list[dict]) -> list[Row]:
    """The done runs by group. Copies of one result count once; different results of one identity are not averaged."""
    names = labels(records)
    found: dict[str, dict[int, list[dict]]] = {}
    for record in records:
        if record["status"] == "done":
            results = found.setdefault(record["group"], {}).setdefault(record["seed"], [])
            if _result(record) not in map(_result, results):
                results.append(record)
    rows = []
    for group, seeds in found.items():
        row = Row(names[group])
        for seed, results in seeds.items():
            if len(results) == 1:
                row.runs[seed] = results[0]
            else:
                row.disputed[seed] = results
        rows.append(row)
    return sorted(rows, key=lambda row: not row.baseline)  # stable: else in the order given


def _result(record: dict) -> tuple:
    return record["student"]["sha256"], record["last"]["score"], record["best"]["score"], score(record, "holdout")


def score(record: dict, column: str) -> float | None:
    """The test score of a candidate epoch, as a fraction."""
    chosen = record[column]
    return chosen and chosen["test_score" if column == "holdout" else "score"]


def labels(records: list[dict]) -> dict[str, str]:
    """{group: label}: the methods joined by +, and the fewest keys that tell its groups apart: `kd (temperature=2)`."""
    groups = {record["group"]: record for record in records}
    by_method: dict[str, dict[str, dict[str, str]]] = {}  # label -> group -> what it was asked for
    for group, record in groups.items():
        by_method.setdefault("+".join(record["method"]), {})[group] = flat(record["identity"])
    neutral = {key: str(value) for key, value in NEUTRAL.items()}  # what an identity leaves out
    told: dict[str, str] = {}
    for label, rivals in by_method.items():
        keys = _telling(list(rivals.values()))
        for group, own in rivals.items():
            method = groups[group]["method"]
            shown = [f"{_typed(key, method)}={_short(own.get(key, neutral.get(key, '-')))}" for key in keys]
            told[group] = f"{label} ({', '.join(shown)})" if shown else label
    found = {group: told[group] for group in groups}  # in the order of the records
    repeated = {label for label, count in Counter(found.values()).items() if count > 1}
    return {group: f"{label} [{group[:6]}]" if label in repeated else label for group, label in found.items()}


def _telling(rivals: list[dict[str, str]]) -> Sequence[str]:
    """The fewest keys, two at most, whose values tell all rivals apart; if none do, the two that tell most apart."""

    def told(keys: Sequence[str]) -> int:
        return len({tuple(rival.get(key, "-") for key in keys) for rival in rivals})

    keys = sorted((key for key in {key for rival in rivals for key in rival} if told([key]) > 1), key=_rank)
    for choice in [(), *((key,) for key in keys), *combinations(keys, 2)]:
        if told(choice) == len(rivals):
            return choice
    return max([keys[:1], *combinations(keys, 2)], key=told)


def _rank(key: str) -> tuple:
    """A variant says most; then a method's own numbers before its lists and schedules, then the rest in TYPED's order."""
    kind = next((i for i, start in enumerate(TYPED) if key.startswith(start)), len(TYPED))
    plain = not any(part in key for part in (".taps", ".stages.", ".schedules.", "teacher.run"))
    return not key.endswith(".variant"), not plain, kind, ".weights." in key, key


def _typed(key: str, methods: list[str]) -> str:
    start, typed = next(((s, t) for s, t in TYPED.items() if key.startswith(s)), ("", ""))
    return (typed + key.removeprefix(start)).removeprefix(f"method.{methods[0]}.").removeprefix("method.")


def flat(identity: dict, prefix: str = "") -> dict[str, str]:
    """{dotted key: value as text} of an identity, without its seed and schema number."""
    found: dict[str, str] = {}
    for key, value in identity.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        elif prefix or key not in ("seed", "schema"):
            is_number = isinstance(value, float) and value.is_integer()  # 4 and 4.0 are one number
            found[prefix + key] = str(int(value) if is_number else value).replace("'", "").replace(", ", ",")
    return found


def _short(value: str) -> str:
    return value if len(value) <= 12 else f"{value[:8]}..."


def name(record: dict) -> str:
    return f"{'+'.join(record['method'])} {record['student']['name']} seed {record['seed']}"
