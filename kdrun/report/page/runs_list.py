"""The lists of runs at the end of the page: those that are not finished, and all of them."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from kdrun.report.display import display_of
from kdrun.report.page.tables import Head, SortableTable, Td, number, record_link, text
from kdrun.report.rows import labels
from kdrun.runs.labels import label_of

TALL = 14  # a list of more runs scrolls


def run_labels(runs: list[dict]) -> dict[int, str]:
    """{id of a run's dict: its label}; runs of one data, teacher and student have a label for each group."""
    alike: dict[tuple, list[dict]] = {}
    for run in runs:
        key = run["dataset"]["checksum"], label_of(run, "dataset"), _teacher(run), label_of(run, "student")
        alike.setdefault(key, []).append(run)
    by_run: dict[int, str] = {}
    for members in alike.values():
        by_group = labels(members)
        by_run |= {id(run): by_group[run["group"]] for run in members}
    return by_run


def _teacher(run: dict) -> str | None:
    return label_of(run, "teacher") if run.get("teacher") else None


def failures(runs: list[dict], names: dict[int, str]) -> SortableTable:
    """The runs that are not finished, with what stopped them."""
    columns = ("method", "student", "seed", "status", "stage", "step", "term", "error", "folder")
    rows = []
    for run in runs:
        error = run.get("error") or {}
        message = ": ".join(filter(None, [error.get("type"), error.get("message")]))
        bad = "" if run["status"] in ("running", "interrupted") else "bad"
        rows.append(("", [
            text(names[id(run)]), text(label_of(run, "student")), number(run["seed"]), text(run["status"], bad),
            text(error.get("stage")), number(error.get("step")), text(error.get("term")), text(message),
            text(run.get("folder")),
        ]))  # fmt: skip
    head = [Head(name, "", name in ("seed", "step")) for name in columns]
    return SortableTable("failed", "runs that are not finished", head, rows, "cards").without_empty()


def all_runs(runs: list[dict], names: dict[int, str], place: Path | None) -> SortableTable:
    """Every run with its score, its machine and its command. `place`: the folder of the page."""
    head = [
        Head("method", "", False), Head("teacher", "", False), Head("student", "", False), Head("seed"), Head("status", "", False),
        Head("score", "%, own protocol"), Head("device", "", False), Head("git", "commit", False), Head("record", "", False),
        Head("command", "", False), Head("versions", "", False),
    ]  # fmt: skip
    rows = [("", _run(run, names[id(run)], place)) for run in runs]
    kind = f"scroll lines{' tall' * (len(rows) > TALL)}"
    return SortableTable("all", "all runs", head, rows, kind).without_empty()


def _run(run: dict, name: str, place: Path | None) -> list[Td]:
    score, git, engine, command = run.get("score"), run.get("git"), run.get("engine") or {}, run.get("command")
    versions = ", ".join(f"{package} {version}" for package, version in (run.get("versions") or {}).items())
    commit = f"{str(git.get('commit'))[:12]}{' (with changes)' if git.get('dirty') else ''}" if git else None
    device = " ".join(filter(None, [engine.get("device"), engine.get("precision")]))
    return [
        text(name), text(_teacher(run)), text(label_of(run, "student")), number(run["seed"]), text(run["status"]),
        Td() if score is None else Td(display_of(run).text(score), score),
        text(device), text(commit), record_link(run, place),
        Td(Markup("<code>{}</code>").format(command), command) if command else Td(), text(versions),
    ]  # fmt: skip
