"""The rows of a table: runs sorted into groups, the baseline of each, and notes about runs that do not fit together.

A row is the finished runs of one group: they differ in nothing but the seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kdrun.report.display import display_of
from kdrun.report.facts import score_of
from kdrun.report.labels import Naming, Settings, settings
from kdrun.report.models import Models
from kdrun.report.stats import paired
from kdrun.runs.identity import flat
from kdrun.runs.labels import label_of
from kdrun.tasks.metric import metric_of


@dataclass
class Row:
    """The finished runs of one group. A seed with several different results is in `disputed`, and in no mean."""

    label: str = ""
    runs: dict[int, dict] = field(default_factory=dict)
    disputed: dict[int, list[dict]] = field(default_factory=dict)

    @property
    def first(self) -> dict:
        """Any run of the row: all of them have the same settings."""
        return next(iter(self.runs.values()), None) or next(iter(self.disputed.values()))[0]

    @property
    def all_runs(self) -> list[dict]:
        """All finished runs, the disputed ones too."""
        return [*self.runs.values(), *(run for results in self.disputed.values() for run in results)]

    @property
    def baseline(self) -> bool:
        """Whether this is the student alone, trained on the labels."""
        return self.first["method"] == ["none"]

    def scores(self, protocol: str) -> list[float]:
        """The scores of its seeds, under a protocol."""
        return [score for run in self.runs.values() if (score := score_of(run, protocol)) is not None]


@dataclass(frozen=True)
class Difference:
    """A row against its baseline, over the seeds of both."""

    mean: float
    low: float | None  # the 95 % interval; None for a single pair
    high: float | None
    by_seed: dict[int, float]


# Rows and their baselines ------------------------------------------------------------------------------------------------

CONDITIONS = {"recipe": "recipe", "precision": "precision", "dataset": "data settings", "student": "student"}


def conditions(row: Row, keys: Iterable[str] = CONDITIONS) -> str:
    """What a row and its baseline must have in common: student, data, recipe and precision. Taps do not count."""
    identity = row.first["identity"]
    student = {key: value for key, value in (identity.get("student") or {}).items() if key != "taps"}
    values = {key: identity.get(key) for key in ("dataset", "recipe", "precision")}
    values["student"] = [row.first["student"]["name"], student]
    return json.dumps([values[key] for key in keys], sort_keys=True)


def nearest(row: Row, baselines: Sequence[Row]) -> Row | None:
    """The baseline with most seeds in common with a row, then with most settings in common; None for a baseline itself."""
    if row.baseline or len(baselines) < 2:
        return None if row.baseline or not baselines else baselines[0]
    own = flat(row.first["identity"]).items()
    return max(
        baselines, key=lambda b: (len(b.runs.keys() & row.runs.keys()), len(own & flat(b.first["identity"]).items()))
    )


def why_alone(row: Row, baselines: Sequence[Row]) -> str:
    """Why a row has none of these baselines: the first of its conditions that no baseline has."""
    if not baselines:
        return "no baseline"
    for key, name in CONDITIONS.items():
        if all(conditions(row, [key]) != conditions(other, [key]) for other in baselines):
            return f"no baseline with the same {name}"
    return "no baseline with the same settings"


def difference(row: Row, base: Row, protocol: str) -> Difference | None:
    """`row` against `base`, paired by seed; None without a pair. A pair has one seed and the same initial weights."""
    pairs = {}
    for seed, run in sorted(row.runs.items()):
        if seed in base.runs and is_pair(run, base.runs[seed]):
            own, alone = score_of(run, protocol), score_of(base.runs[seed], protocol)
            if own is not None and alone is not None:
                pairs[seed] = own, alone
    if not pairs:
        return None
    ours, theirs = zip(*pairs.values(), strict=True)
    by_seed = {seed: own - alone for seed, (own, alone) in pairs.items()}
    return Difference(*paired(ours, theirs, resolution=resolution(row)), by_seed)


def is_pair(run: dict, other: dict) -> bool:
    """Whether two runs started from the same weights."""
    return run["student"]["init_sha256"] == other["student"]["init_sha256"]


def resolution(row: Row) -> float:
    """The smallest step between two test scores; 0 where there is no such step."""
    return metric_of(row.first).resolution(max(row.first["dataset"]["test_n"], 1)) or 0.0


# From records to rows ----------------------------------------------------------------------------------------------------


def data_key(record: dict) -> tuple:
    """Equal for runs with the same training and test data, which stand in one table."""
    return tuple(record["dataset"][key] for key in ("name", "checksum", "train_n", "holdout_n"))


def gather(records: Iterable[dict]) -> list[Row]:
    """The finished runs by group, without labels. Copies of one result count once; different results of one seed are disputed."""
    groups: dict[str, dict[int, list[dict]]] = {}
    for record in records:
        if record["status"] == "done":
            results = groups.setdefault(record["group"], {}).setdefault(record["seed"], [])
            if _result(record) not in map(_result, results):
                results.append(record)
    rows = []
    for seeds in groups.values():
        row = Row()
        for seed, results in seeds.items():
            if len(results) == 1:
                row.runs[seed] = results[0]
            else:
                row.disputed[seed] = results
        rows.append(row)
    return rows


def _result(record: dict) -> tuple:
    return record["student"]["sha256"], record["last"]["score"], record["best"]["score"], score_of(record, "holdout")


def in_order(rows: Sequence[Row], own: dict[str, Settings], naming: Naming) -> list[Row]:
    """Baselines first, then the methods in the order given; the rows of one method by their values, as numbers."""
    methods = list(dict.fromkeys(own[row.first["group"]].method for row in rows))

    def place(row: Row) -> tuple:
        one = own[row.first["group"]]
        return not row.baseline, methods.index(one.method), naming.order(one)

    return sorted(rows, key=place)


def labels(records: list[dict]) -> dict[str, str]:
    """{group: label} of records that stand in one column: `kd (temperature=2)`."""
    own = settings(records, Models(records))
    naming = Naming([list(own.values())])
    return {group: naming.label(own[group]) for group in dict.fromkeys(record["group"] for record in records)}


# Notes -------------------------------------------------------------------------------------------------------------------


def notes(rows: Sequence[Row], base_of: Callable[[Row], Row | None]) -> list[str]:
    """What a reader must know before trusting a table: disputed results, seeds that are no pairs, sources and devices that differ."""
    lines = []
    for row in rows:
        for seed, results in row.disputed.items():
            each = ", ".join(
                f"{display_of(run).text(run['last']['score'])} ({run['host']}, {run['time']['end']})" for run in results
            )
            lines.append(
                f"{row.label} seed {seed} has {len(results)} different results: {each}; they are left out of the mean"
            )
        base = base_of(row)
        for seed, other in base.runs.items() if base else ():
            if base and seed in row.runs and not is_pair(row.runs[seed], other):
                lines.append(
                    f"{row.label} seed {seed} and {base.label} seed {seed} started from different weights, so they are not compared"
                )
    mixed = _mixed([run for row in rows for run in row.runs.values()])
    return lines + ([f"the runs of this table have different {', '.join(mixed)}"] if mixed else [])


def _mixed(runs: Iterable[dict]) -> list[str]:
    """What should be the same in all runs and is not, with the values where a reader can understand them."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        student = json.dumps(run["identity"].get("student"), sort_keys=True)  # other models have other sources
        values = {
            "devices": run["engine"]["device"], "precisions": run["engine"]["precision"],
            "versions of torch": run["versions"].get("torch"), "versions of kdrun": run["versions"].get("kdrun"),
            f"sources of {label_of(run, 'student')}\0{student}": run["code"]["student"],
            **{f"sources of {m}\0{sha[: sha.find(':') + 1]}": sha for m, sha in run["code"]["method"].items()},
        }  # fmt: skip
        if run["teacher"]:
            teacher = json.dumps(run["identity"].get("teacher"), sort_keys=True)
            values[f"weights of teacher {label_of(run, 'teacher')}\0{teacher}"] = run["teacher"]["sha256"]
        for name, value in values.items():
            seen.setdefault(name, set()).add(str(value))
    return [
        name.partition("\0")[0]
        + (f" ({', '.join(sorted(values))})" if name.startswith(("dev", "prec", "vers")) else "")
        for name, values in seen.items()
        if len(values) > 1
    ]
