"""The caption of a table: what a reader must know about its data, its protocol, its tests and the runs that are missing."""

from __future__ import annotations

from collections.abc import Sequence

from kdrun.config.tables import full_epochs
from kdrun.report.cells import LEVEL, Cell
from kdrun.report.display import PROTOCOLS, Display
from kdrun.report.facts import reports
from kdrun.report.pivot import Table
from kdrun.report.rows import conditions, labels
from kdrun.report.stats import least_sign_flip, sign_flip_seeds

STATUSES = {"running": "running or killed"}  # the record alone does not say which; kdrun status does
LISTED = 5  # runs that are not finished


def caption(table: Table, skipped: int = 0) -> list[str]:
    """The caption of a table, a sentence for each line. `skipped`: how many records could not be read."""
    return [
        f"{table.dataset['label']}: {_data(table)}; {_recipes(table)}",
        f"{_score(table.display)}, {PROTOCOLS[table.protocol]}{_seeds(table)}",
        *_tests([cell for line in table.cells.values() for cell in line.values()], table.display),
        *(f"note: {note}" for note in table.notes),
        *_missing(table, skipped),
    ]


def _score(display: Display) -> str:
    """What the numbers are, their unit, and their direction where it is not the usual one."""
    unit = f" in {display.metric.unit}" if display.metric.unit else ""
    return display.title + unit + ("" if display.metric.higher_is_better else " (lower is better)")


def _data(table: Table) -> str:
    data = table.dataset
    held = f" ({data['holdout_n']:,} more held out)" if data["holdout_n"] else ""
    split = reports(data)
    instead = (
        f" (those of {split}, because no test split is used: {split} is no fresh data where it chose anything)"
        if split
        else ""
    )
    return f"{data['train_n']:,} training{held} and {data['test_n']:,} test {table.display.samples}{instead}"


def _recipes(table: Table) -> str:
    recipes = " or ".join(sorted({recipe(run) for run in table.runs}))
    return f"recipe {recipes}" if recipes else "no finished run"


def recipe(run: dict) -> str:
    """kdzoo, 12 of 200 epochs: the recipe of a run, and how many of its epochs were trained."""
    name, epochs = run["recipe"].get("name"), run["recipe"].get("epochs")
    whole = full_epochs(str(name))
    return f"{name}, {epochs}{f' of {whole}' if whole and epochs and epochs < whole else ''} epochs"


def _seeds(table: Table) -> str:
    seeds = table.seeds
    if len(seeds) == 1:
        return f"; one seed ({seeds[0]})"
    return f"; mean ± standard deviation over seeds {', '.join(map(str, seeds))}" if seeds else ""


def _tests(cells: Sequence[Cell], display: Display) -> list[str]:
    """How gains were tested."""
    lines, samples = [], display.samples
    tested = [cell for cell in cells if cell.test == "t"]
    if tested:
        several = len({conditions(cell.row, ("recipe", "precision", "dataset")) for cell in tested}) > 1
        family = "over the rows of one recipe in a column" if several else "over each column"
        needed = "; in brackets: the number of seeds that would be needed"
        lines.append(
            f"{display.over_none.capitalize()}: mean difference per seed with its 95 % interval (covers seeds, not test {samples})"
        )
        lines.append(
            f"=: not significant (paired t test, 5 %, Holm {family})"
            + needed * any(cell.needed and cell.equal for cell in tested)
        )
        lines += _sign_flips(tested)
    if any(cell.test == "mcnemar" for cell in cells):
        lines.append(
            f"One seed has no interval. Its p is that of McNemar's exact test on the test {samples} (Holm; =: not significant at 5 %); "
            f"it covers test {samples}, not seeds"
        )
    return lines


def _sign_flips(tested: Sequence[Cell]) -> list[str]:
    """A sentence where there are too few seeds for the sign-flip test."""
    few = [cell for cell in tested if cell.family * least_sign_flip(cell.pairs) >= 1 - LEVEL]
    if not few:
        return []
    pairs, methods = min(cell.pairs for cell in few), max(cell.family for cell in few)
    comparisons = f"{methods} methods (Holm)" if methods > 1 else "one method"
    return [
        f"The t test assumes that the differences are normal. The exact sign-flip test does not, but with {pairs} seeds its p is at least "
        f"{least_sign_flip(pairs):.2g}; for {comparisons} it needs {sign_flip_seeds(methods)} seeds"
    ]


def _missing(table: Table, skipped: int) -> list[str]:
    """The runs that are not finished, and the number of records that could not be read."""
    lines = []
    if table.unfinished:
        names = labels([*table.runs, *table.unfinished])
        runs = [
            f"{names[run['group']]} seed {run['seed']}: {STATUSES.get(run['status'], run['status'])}"
            for run in table.unfinished
        ]
        more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
        lines.append(f"not finished: {'; '.join(runs[:LISTED])}{more}")
    if skipped:
        files = "1 file" if skipped == 1 else f"{skipped} files"
        lines.append(
            f"{files} with the name record.json could not be read and {'are' if skipped > 1 else 'is'} left out"
        )
    return lines
