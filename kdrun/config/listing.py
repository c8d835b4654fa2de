"""`kdrun methods`, `kdrun models`, `kdrun datasets`: read from the sources in a few milliseconds, and those of plug-ins."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdrun.config.arguments import REQUIRED, Argument
from kdrun.config.registry import DATASETS, METHODS, MODELS
from kdrun.config.schema import conf_folder, method_names

FAMILIES = {
    "labels": "without a teacher",
    "logits": "predictions",
    "features": "feature maps and embeddings",
    "relations": "relations between images",
    "transformers": "layers of transformers",
    "gradients": "gradients and attacked images",
    "online": "peers that learn together",
}


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
    """The choices of the group `method` that need no sequences (B, T, D): those that images can be trained with."""
    entries = METHODS.entries()
    return [name for name in method_names() if not entries[_lines(name)[1]].attributes.get("sequences")]


def _lines(name: str) -> tuple[str, str]:
    """Of conf/method/NAME.yaml: the first line, and the method that it sets."""
    lines = (conf_folder() / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return lines[0], next(line for line in lines if line and not line.startswith("#")).partition(":")[0]


def plugin_methods() -> dict[str, tuple[str, str]]:
    """Methods of plug-ins: name -> (paper, one line with the module)."""
    entries = {name: METHODS.entry(name) for name in sorted(METHODS.plugins)}
    return {name: (e.attributes.get("paper", ""), f"{e.summary} ({e.module})".strip()) for name, e in entries.items()}


def show_models() -> None:
    """Print a line per model, with the options of its builder."""
    table = _table("model", "what it is", "options")
    for name, entry in MODELS.entries().items():
        module = f" ({entry.module})" * (name in MODELS.plugins)
        table.add_row(name, escape(f"{entry.summary}{module}".strip()), escape(_options(entry.arguments)))
    _print(
        table,
        "kdrun teacher=NAME student=NAME; an option: student.shortcut=A; numbers of parameters: with 100 classes; taps: docs/models.md",
    )


def show_datasets() -> None:
    """A line per dataset: what the first line of its file in conf/dataset says of it, or the function of a plug-in."""
    table = _table("dataset", "what it is", "options")
    given = DATASETS.entries()
    for file in sorted((conf_folder() / "dataset").glob("*.yaml")):
        line = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        options = given[file.stem].arguments if file.stem in given else {}
        table.add_row(file.stem, escape(line), escape(_options(options)))
    for name in sorted(DATASETS.plugins):
        entry = given[name]
        table.add_row(name, escape(f"{entry.summary} ({entry.module})".strip()), escape(_options(entry.arguments)))
    _print(
        table,
        "kdrun dataset=NAME; an option is dataset.holdout=5000, which every dataset has; your own data: docs/data.md",
    )


def _options(arguments: dict[str, Argument]) -> str:
    return ", ".join(k if a.default is REQUIRED else f"{k}={a.default}" for k, a in arguments.items())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table, footer: str) -> None:
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{footer}", markup=False)
