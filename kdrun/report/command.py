"""`kdrun report [FOLDER ...]`: the runs below folders as tables, in one of several formats."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kdrun.config.project import outputs_here
from kdrun.errors import KdrunError
from kdrun.report import render
from kdrun.report.against import beside
from kdrun.report.collect import collect
from kdrun.report.pivot import Table, tables
from kdrun.report.trials import trials
from kdrun.runs.folder import CURVES, RECORD
from kdrun.runs.labels import run_name
from kdrun.runs.record import atomically, read

GIVEN = "given"  # where argparse's namespace holds the options that were read so far
FORMATS = ("terminal", "md", "csv", "latex", "json", "html")


class Once(argparse.Action):
    """Keeps the value of an option. An option that is given twice is an error, because one of its values would be lost."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault(GIVEN, {})
        if option_string and self.dest in given:
            parser.error(f"{option_string} is given twice ({given[self.dest]} and {values}); give it once")
        given[self.dest] = values
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A wrong argument is one line and exit code 2, as everywhere in kdrun; so is an option that is given twice."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        for action in (None, "store"):
            self.register("action", action, Once)

    def error(self, message: str) -> NoReturn:
        """Raise KdrunError with the usage, for exit status 2."""
        error = KdrunError(f"{message.partition(' (choose')[0]}. {self.format_usage().strip()}")
        error.status = 2
        raise error


def parser() -> Parser:
    """The options of the verb."""
    made = Parser("kdrun report", description="The runs below folders as tables: means over seeds, gains over `none`.")
    made.add_argument(
        "folders",
        nargs="*",
        default=[os.path.join(outputs_here(), "runs")],
        metavar="FOLDER",
        help="default: outputs/runs. Or the study of a search, such as outputs/study.db",
    )
    made.add_argument("--rows", default="method", metavar="KEY", help="method, pair, or a key such as recipe.lr")
    made.add_argument("--columns", default="pair", metavar="KEY", help="pair (teacher -> student), method, or a key")
    made.add_argument(
        "--protocol", choices=("last", "best", "holdout"), help="which epoch is compared; default: that of the runs"
    )
    made.add_argument("--against", metavar="TABLE", help="a published table, such as kdzoo_cifar10")
    made.add_argument("--format", choices=FORMATS, default="terminal")
    made.add_argument("--output", metavar="FILE", help="write to a file instead of the screen")
    made.add_argument("--plots", metavar="DIR", help="also draw the tables: PNG and SVG files in a folder")
    made.add_argument(
        "--copy",
        metavar="DIR",
        help="copy the records and curves, a few kB for each run, so that they can be reported anywhere",
    )
    return made


def report(arguments: Sequence[str]) -> int:
    """The verb; returns the exit status."""
    options = _options(arguments)
    studies = [Path(name) for name in options.folders if name.endswith(".db")]
    if studies:
        _report_studies(studies, options)
        return 0
    if options.copy:
        _check_apart(Path(options.copy), options.folders)
    collection = collect(options.folders)
    for line in collection.skipped:
        print(f"skipped  {line}", file=sys.stderr)
    records = collection.records
    made = tables(records, rows=options.rows, columns=options.columns, protocol=options.protocol)
    more = [beside(made, options.against)] if options.against else []
    if options.format == "html":
        from kdrun.report.page.page import page

        place = Path(options.output).parent if options.output else Path()
        _write(page(made, collection.skipped, records, place, more), options.output)
    else:
        _write(_text(options.format, made, len(collection.skipped), more), options.output)
    note = sys.stdout if options.output else sys.stderr  # a table on the screen must stay readable for programs
    if options.plots:
        from kdrun.report.plots import plots

        print(f"plots    {len(plots(made, options.plots))} files in {options.plots}", file=note)
    if options.copy:
        copy(records, Path(options.copy))
        print(f"records  {sum(one['status'] == 'done' for one in records)} in {options.copy}", file=note)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with ~ expanded. KdrunError where a folder to write into is a file."""
    options = parser().parse_args(arguments)
    options.folders = [os.path.expanduser(folder) for folder in options.folders]
    for key in ("output", "plots", "copy"):
        setattr(options, key, getattr(options, key) and os.path.expanduser(getattr(options, key)))
    for option, target in (("--plots", options.plots), ("--copy", options.copy)):
        if target and Path(target).exists() and not Path(target).is_dir():
            raise KdrunError(f"{option} {target} is a file; give a folder")
    return options


def _report_studies(studies: Sequence[Path], options: argparse.Namespace) -> None:
    """The trials of searches. KdrunError where an option does not apply to them."""
    if len(studies) < len(options.folders) or options.plots or options.copy or options.against:
        raise KdrunError(
            "a study of a search is reported alone, without --plots, --copy and --against: kdrun report outputs/study.db"
        )
    if options.format == "html":
        raise KdrunError("the trials of a search have no HTML page; use --format terminal, md, csv, latex or json")
    extras = [extra for path in studies for extra in trials(path)]
    if options.format == "csv":
        columns = dict.fromkeys(key for extra in extras for key in extra.data[0])
        text = render.csv_text([*columns], [line for extra in extras for line in extra.data])
    else:
        text = _text(options.format, [], 0, extras)
    _write(text, options.output)


def _text(form: str, made: list[Table], skipped: int, more: list[render.ExtraTable]) -> str:
    """The tables in any format but HTML."""
    if form == "terminal":
        return render.terminal(made, skipped, shutil.get_terminal_size((120, 24)).columns, more)
    if form == "csv":
        return render.as_csv(made, more)
    return {"md": render.markdown, "latex": render.latex, "json": render.as_json}[form](made, skipped, more)


def _write(text: str, output: str | None) -> None:
    """Print a text, or write it into a file."""
    if output is None:
        print(text, end="")
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise KdrunError(f"--output {output} cannot be written ({error.strerror})") from error
    print(f"table    {output}")


def _check_apart(target: Path, folders: Sequence[str]) -> None:
    """KdrunError where copies would lie among the runs themselves: every later report would count them as runs."""
    there = target.resolve()
    for folder in map(Path, folders):
        here = folder.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise KdrunError(
                f"--copy {target} must lie apart from {folder}, because its copies would count as runs; use --copy results/NAME"
            )


def copy(records: list[dict], target: Path) -> None:
    """Copy record.json and curves.jsonl of each finished run, into the same folders as below outputs/runs; older copies are updated.

    KdrunError where the copy of another result is in the way.
    """
    for record in (record for record in records if record["status"] == "done"):
        source = Path(record["folder"])
        there = target.joinpath(*source.resolve().parts[-5:])  # dataset/method/pair/hash/seed
        old = read(there) if there.is_dir() else None
        if old is not None and old["student"]["sha256"] != record["student"]["sha256"]:
            raise KdrunError(f"{there} holds another result of {run_name(record)}; copy into an empty folder")
        there.mkdir(parents=True, exist_ok=True)
        for file in (CURVES, RECORD):
            if (source / file).is_file():
                atomically(there / file, (source / file).read_bytes())
