"""`kdrun report [FOLDER ...]`: the runs below folders as a table, in the format asked for."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kdrun.errors import KdrunError
from kdrun.report import render
from kdrun.report.against import beside
from kdrun.report.collect import collect
from kdrun.report.groups import name
from kdrun.report.pivot import Table, tables
from kdrun.report.trials import trials
from kdrun.runs.record import NAME, atomically, read

GIVEN = "given"  # the options of a command line so far, in argparse's namespace
FORMATS = ("terminal", "md", "csv", "latex", "json", "html")


class Once(argparse.Action):
    """Keeps an option's value; the option given again is an error: of two values one would be lost without a word."""

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
        error = KdrunError(f"{message.partition(' (choose')[0]}. {self.format_usage().strip()}")
        error.status = 2
        raise error


def parser() -> Parser:
    found = Parser(
        "kdrun report", description="The runs below folders as a table: means over seeds, differences to `none`."
    )
    found.add_argument(
        "folders",
        nargs="*",
        default=["outputs/runs"],
        metavar="FOLDER",
        help="default: outputs/runs; or the study of a search, as outputs/study.db",
    )
    found.add_argument("--rows", default="method", metavar="KEY", help="method, pair, or a key such as recipe.lr")
    found.add_argument("--columns", default="pair", metavar="KEY", help="pair (teacher -> student), method, or a key")
    found.add_argument(
        "--protocol", choices=("last", "best", "holdout"), help="which epoch is compared; default: the runs' own"
    )
    found.add_argument("--against", metavar="TABLE", help="a published table, as kdzoo_cifar10")
    found.add_argument("--format", choices=FORMATS, default="terminal")
    found.add_argument("--output", metavar="FILE", help="write to a file instead of the screen")
    found.add_argument("--plots", metavar="DIR", help="draw the tables, too: PNG and SVG files into a folder")
    found.add_argument(
        "--copy", metavar="DIR", help="copy the records and curves, a few kB a run: they can be reported anywhere"
    )
    return found


def report(arguments: Sequence[str]) -> int:
    """The verb; returns the exit status."""
    asked = parser().parse_args(arguments)
    asked.folders = [os.path.expanduser(folder) for folder in asked.folders]
    for key in ("output", "plots", "copy"):
        setattr(asked, key, getattr(asked, key) and os.path.expanduser(getattr(asked, key)))
    for option, target in (("--plots", asked.plots), ("--copy", asked.copy)):
        if target and Path(target).exists() and not Path(target).is_dir():
            raise KdrunError(f"{option} {target} is a file; give a folder")
    studies = [Path(name) for name in asked.folders if name.endswith(".db")]
    if studies:
        if len(studies) < len(asked.folders) or asked.plots or asked.copy or asked.against:
            raise KdrunError(
                "a study of a search is reported alone, without --plots, --copy and --against: kdrun report outputs/study.db"
            )
        _tell(_trials([plain for path in studies for plain in trials(path)], asked.format), asked.output)
        return 0
    if asked.copy:
        _check_apart(Path(asked.copy), asked.folders)
    found = collect(asked.folders)
    for line in found.skipped:
        print(f"skipped  {line}", file=sys.stderr)
    shown = tables(found.records, rows=asked.rows, columns=asked.columns, protocol=asked.protocol)
    more = [beside(shown, asked.against)] if asked.against else []
    if asked.format == "html":
        from kdrun.report.page.page import page

        place = Path(asked.output).parent if asked.output else Path()
        _tell(page(shown, found.skipped, found.records, place, more), asked.output)
    elif asked.format == "csv":
        _tell(render.comma(shown, more), asked.output)
    else:
        _tell(_text(asked.format, shown, len(found.skipped), more), asked.output)
    if asked.plots:
        from kdrun.report.plots import plots

        drawn = plots(shown, asked.plots)
        print(f"plots    {len(drawn)} files in {asked.plots}", file=sys.stdout if asked.output else sys.stderr)
    if asked.copy:
        copy(found.records, Path(asked.copy))
        done = sum(record["status"] == "done" for record in found.records)
        print(f"records  {done} in {asked.copy}", file=sys.stdout if asked.output else sys.stderr)
    return 0


def _check_apart(target: Path, folders: Sequence[str]) -> None:
    """Copies among the runs themselves would be found twice ever after."""
    there = target.resolve()
    for folder in map(Path, folders):
        here = folder.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise KdrunError(
                f"--copy {target} must lie apart from {folder}: the copies would be taken for runs of it; say --copy results/NAME"
            )


def copy(records: list[dict], target: Path) -> None:
    """record.json and curves.jsonl of each finished run, in the folders that it has below outputs/runs; again: brought up to date.

    KdrunError where another run's record lies at its place.
    """
    for record in (record for record in records if record["status"] == "done"):
        source = Path(record["folder"])
        there = target.joinpath(*source.resolve().parts[-5:])  # dataset/method/pair/hash/seed
        old = read(there) if there.is_dir() else None
        if old is not None and old["student"]["sha256"] != record["student"]["sha256"]:
            raise KdrunError(f"{there} holds another result of {name(record)}; copy into a folder of its own")
        there.mkdir(parents=True, exist_ok=True)
        for file in ("curves.jsonl", NAME):
            if (source / file).is_file():
                atomically(there / file, (source / file).read_bytes())


def _tell(text: str, output: str | None) -> None:
    if output is None:
        print(text, end="")
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise KdrunError(f"--output {output} cannot be written ({error.strerror})") from error
    print(f"table    {output}")


def _text(form: str, shown: list[Table], skipped: int, more: list[render.Plain]) -> str:
    """In a format for readers, or JSON: what a CSV holds depends on the kind of table."""
    if form == "terminal":
        return render.terminal(shown, skipped, shutil.get_terminal_size((120, 24)).columns, more)
    return {"md": render.markdown, "latex": render.latex, "json": render.as_json}[form](shown, skipped, more)


def _trials(found: list[render.Plain], form: str) -> str:
    if form == "html":
        raise KdrunError("the trials of a search are told in --format terminal, md, csv, latex or json, not html")
    if form == "csv":
        columns = dict.fromkeys(key for plain in found for key in plain.data[0]) if found else {}
        return render.as_csv([*columns], [line for plain in found for line in plain.data])
    return _text(form, [], 0, found)
