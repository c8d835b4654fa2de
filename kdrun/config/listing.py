"""`kdrun methods`, `kdrun models`, `kdrun datasets`: read from the sources in a few milliseconds, and those of plug-ins."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdrun.config.arguments import REQUIRED, Argument
from kdrun.config.registry import DATASETS, METHODS, MODELS, TASKS
from kdrun.config.schema import conf_folder, method_names

FAMILIES = {
    "labels": "without a teacher",
    "logits": "predictions",
    "features": "feature maps and embeddings",
    "relations": "relations between samples",
    "transformers": "layers of transformers",
    "gradients": "gradients and attacked images",
    "online": "peers that learn together",
    "detection": "scores and boxes of detectors",
}

TITLES = {
    "image": "images",
    "text": "texts",
    "detection": "images with boxes",
    "any": "every task",
}  # of the tasks, in the order in which they are listed
LONG = 60  # characters of options that need more room than the summary beside them

Row = tuple[str, str, str]  # name, one line, options

USAGE = """kdrun {verb} ['plugins=[MODULE, ...]']

  Every {kind} that kdrun knows, one line each. plugins=[my_lab.mine] adds those of your modules, which must be in the current
  folder or installed. Plug-ins of installed packages are always listed. {way}"""
WAYS = {
    "methods": "A run: kdrun method=NAME 'plugins=[my_lab.mine]' --config-dir FOLDER",
    "models": "A run: kdrun student=NAME 'plugins=[my_lab.mine]'",
    "datasets": "A run: kdrun dataset=NAME 'plugins=[my_lab.mine]'",
}


def show(verb: str, usage: bool = False) -> None:
    """Print the list of the verb "methods", "models" or "datasets", or how it is used."""
    if usage:
        print(USAGE.format(verb=verb, kind=verb.removesuffix("s"), way=WAYS[verb]))
    else:
        {"methods": show_methods, "models": show_models, "datasets": show_datasets}[verb]()


def show_methods() -> None:
    """Print a line per choice of the group `method`, by family: name, what it does, paper and year. Methods of plug-ins come last."""
    console = Console(highlight=False)
    for family, title in {**FAMILIES, "": "of plug-ins (each needs method/NAME.yaml in --config-dir FOLDER)"}.items():
        methods = method_choices(family) if family else plugin_methods()
        if not methods:
            continue
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(min_width=15)
        table.add_column(overflow="fold")
        for name, (paper, summary) in methods.items():
            table.add_row(name, f"{escape(summary)} [dim]{escape(paper)}[/dim]")
        console.print(f"[bold]{title}[/bold]")
        console.print(table)
    console.print(
        "\nkdrun method=NAME, several at once with 'method=[rkd,kd]'; equations, taps, weights and costs: docs/methods.md",
        markup=False,
    )


def method_choices(family: str) -> dict[str, tuple[str, str]]:
    """kdrun's own choices of one family: name -> (paper, one line).

    If the key in conf/method/NAME.yaml is another method, NAME is a variant of that method; the first line of the file describes it.
    """
    of_family, entries = {}, METHODS.entries()
    for name in sorted(method_names(), key=lambda name: (name != "none", name)):
        line, key = _lines(name)
        entry = entries[key]
        if entry.attributes.get("family") == family:
            variant = f"{key}: {line.removeprefix('# ').partition('. ')[0]}."
            of_family[name] = (entry.attributes.get("paper", ""), entry.summary) if key == name else ("", variant)
    return of_family


def methods_of_every_task() -> list[str]:
    """The choices of the group `method` that need no sequences (B, T, D) and no boxes: those that images can be trained with."""
    of_detectors, entries = methods_of_detectors(), METHODS.entries()
    return [
        name
        for name in method_names()
        if name not in of_detectors and not entries[_lines(name)[1]].attributes.get("sequences")
    ]


def methods_of_detectors() -> list[str]:
    """The choices of the group `method` that work on detectors alone: what compares their output, and what needs labelled boxes."""
    about = {name: METHODS.entries()[_lines(name)[1]].attributes for name in method_names()}
    return [name for name, one in about.items() if one.get("family") == "detection" or "bboxes" in one.get("needs", ())]


def _lines(name: str) -> tuple[str, str]:
    """Of conf/method/NAME.yaml: the first line, and the method that it sets."""
    lines = (conf_folder() / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return lines[0], next(line for line in lines if line and not line.startswith("#")).partition(":")[0]


def plugin_methods() -> dict[str, tuple[str, str]]:
    """Methods of plug-ins: name -> (paper, one line with the module)."""
    entries = {name: METHODS.entry(name) for name in sorted(METHODS.plugins)}
    return {name: (e.attributes.get("paper", ""), f"{e.summary} ({e.module})".strip()) for name, e in entries.items()}


def show_models() -> None:
    """Print a line per model, by task, with the options of its builder."""
    rows: dict[str, list[Row]] = {}
    for name, entry in MODELS.entries().items():
        module = f" ({entry.module})" * (name in MODELS.plugins)
        rows.setdefault(entry.task, []).append(
            (name, f"{entry.summary}{module}".strip(), ", ".join(options_of(entry.arguments)))
        )
    _show_by_task("model", rows)
    _footer(
        "kdrun teacher=NAME student=NAME; an option: student.shortcut=A; numbers of parameters: with 100 classes; taps: docs/models.md"
    )


def show_datasets() -> None:
    """A line per dataset, by task: what the first line of its file in conf/dataset says of it, or the function of a plug-in."""
    rows: dict[str, list[Row]] = {}
    given = DATASETS.entries()
    for file in sorted((conf_folder() / "dataset").glob("*.yaml")):
        line = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        options = given[file.stem].arguments if file.stem in given else {}
        rows.setdefault(TASKS.of(file.stem).name, []).append((file.stem, line, ", ".join(options_of(options))))
    for name in sorted(DATASETS.plugins):
        entry = given[name]
        line = f"{entry.summary} ({entry.module})".strip()
        rows.setdefault(entry.task, []).append((name, line, ", ".join(options_of(entry.arguments))))
    _show_by_task("dataset", rows)
    _footer(
        "kdrun dataset=NAME; an option is dataset.holdout=5000, which every dataset has; your own data: docs/data.md, docs/text.md"
    )


def options_of(arguments: dict[str, Argument]) -> list[str]:
    """The options of a builder with their defaults, as a command line writes them: ["layers=null", "exits=false"]."""
    words = {"None": "null", "True": "true", "False": "false"}
    values = {key: words.get(str(argument.default), argument.default) for key, argument in arguments.items()}
    return [key if value is REQUIRED else f"{key}={value}" for key, value in values.items()]


def _show_by_task(kind: str, rows: dict[str, list[Row]]) -> None:
    """A heading and a table for each task, kdrun's own tasks first. Long options get most of the width."""
    console = Console(highlight=False)
    widest = max(len(name) for of_task in rows.values() for name, _, _ in of_task)
    for task in sorted(rows, key=lambda task: ([*TITLES, task].index(task), task)):
        table = Table(box=None, pad_edge=False, show_header=False)
        long = max(len(options) for _, _, options in rows[task]) > LONG
        table.add_column(min_width=widest, no_wrap=True)
        for share in (2, 3):
            table.add_column(overflow="fold", ratio=share if long else None)
        for name, summary, options in rows[task]:
            table.add_row(name, escape(summary), escape(options))
        console.print(f"[bold]{kind}s of {TITLES.get(task, f'the task {task}')}[/bold]")
        console.print(table)


def _footer(line: str) -> None:
    Console(highlight=False).print(f"\n{line}", markup=False)
