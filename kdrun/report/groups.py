"""HEAD"""
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
        return [value for run in self.runs.values() if (value := _score(run, column)) is not None]


@dataclass
class Block:
    """What can stand in one table: the groups of one dataset and student, the baselines first."""

    records: list[dict]  # all of them, the unfinished ones too
    rows: list[Row]

    @property
    def done(self) -> list[dict]:
        return [record for record in self.records if record["status"] == "done"]

    def baseline_of(self, row: Row) -> Row | None:
        """The `none` of the same recipe and precision in this block; of several, the one whose identity is nearest."""

        def setting(other: Row) -> list:
            identity, record = other.first["identity"], other.first
            return [identity.get("recipe", record["recipe"]), identity.get("precision", record["engine"]["precision"])]

        def shared(other: Row) -> int:
            return len(_flat(row.first["identity"]).items() & _flat(other.first["identity"]).items())

        fitting = [other for other in self.rows if other.baseline and setting(other) == setting(row)]
        return None if row.baseline else max(fitting, key=shared, default=None)


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
        Block(members, _rows(members))
        for members in sorted_records.values()
        if not all(record["id"] in teachers for record in members)
    ]


def difference(row: Row, base: Row, column: str) -> tuple[int, float, float | None, float | None, list[float]]:
    """`row` against `base` over the seeds of both: (pairs, difference, low, high, differences per seed), as fractions.

    A pair needs one seed and the same initial weights; (0, nan, None, None, []) if there is none.
    """
    pairs = [
        (_score(run, column), _score(base.runs[seed], column))
        for seed, run in sorted(row.runs.items())
        if seed in base.runs and _is_pair(run, base.runs[seed])
    ]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return 0, float("nan"), None, None, []
    ours, theirs = zip(*pairs, strict=True)
    return len(pairs), *paired(ours, theirs), [x - y for x, y in zip(ours, theirs, strict=True)]


def _is_pair(run: dict, other: dict) -> bool:
    return run["student"]["init_sha256"] == other["student"]["init_sha256"]


# ---------------------------------------------------------------------------------------------- grouping and names


def _rows(records: list[dict]) -> list[Row]:
    """The rows of one block. Copies of one result count once; different results of one identity are not averaged."""
    labels = _labels(records)
    found: dict[str, dict[int, list[dict]]] = {}
    for record in records:
        if record["status"] == "done":
            results = found.setdefault(record["group"], {}).setdefault(record["seed"], [])
            if _result(record) not in map(_result, results):
                results.append(record)
    rows = []
    for group, seeds in found.items():
        row = Row(labels[group])
        for seed, results in seeds.items():
            if len(results) == 1:
                row.runs[seed] = results[0]
            else:
                row.disputed[seed] = results
        rows.append(row)
    return sorted(rows, key=lambda row: not row.baseline)  # stable: else in the order given


def _result(record: dict) -> tuple:
    return record["student"]["sha256"], record["last"]["score"], record["best"]["score"], _score(record, "holdout")


def _score(record: dict, column: str) -> float | None:
    """The test score of a candidate epoch, as a fraction."""
    chosen = record[column]
    return chosen and chosen["test_score" if column == "holdout" else "score"]


def _labels(records: list[dict]) -> dict[str, str]:
    """{group: label}: the methods joined by +, and what tells groups of the same ones apart: `kd (recipe.lr=0.1)`."""
    groups = {record["group"]: record for record in records}
    labels = {}
    for group, record in groups.items():
        rivals = [_flat(other["identity"]) for other in groups.values() if other["method"] == record["method"]]
        keys = sorted({key for rival in rivals for key in rival if len({other.get(key, "-") for other in rivals}) > 1})
        # A name that differs stands for all that lies under it.
        named = {key.removesuffix("name") for key in keys if key.endswith(".name")}
        keys = [key for key in keys if key.endswith(".name") or not any(key.startswith(name) for name in named)]
        own, prefix = _flat(record["identity"]), f"method.{record['method'][0]}."
        shown = [f"{key.removeprefix(prefix).removesuffix('.name')}={_short(own.get(key, '-'))}" for key in keys]
        label = "+".join(record["method"])
        labels[group] = f"{label} ({', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''})" if shown else label
    repeated = {label for label, count in Counter(labels.values()).items() if count > 1}
    return {group: f"{label} [{group[:6]}]" if label in repeated else label for group, label in labels.items()}


def _flat(identity: dict, prefix: str = "") -> dict[str, str]:
    """{dotted key: value as text} of an identity, without its seed and schema number."""
    flat: dict[str, str] = {}
    for key, value in identity.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif prefix or key not in ("seed", "schema"):
            is_number = isinstance(value, float) and value.is_integer()  # 4 and 4.0 are one number
            flat[prefix + key] = str(int(value) if is_number else value).replace("'", "").replace(", ", ",")
    return flat


def _short(value: str) -> str:
    return value if len(value) <= 24 else f"{value[:8]}..."


def _name(record: dict) -> str:
    return f"{'+'.join(record['method'])} {record['student']['name']} seed {record['seed']}"


