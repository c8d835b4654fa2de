"""Jinja2 templates of the page. Every text is escaped, unless it is Markup that this package made."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


@cache
def environment() -> Environment:
    """The templates of the folder templates/. A name that a template does not get is an error."""
    loader = FileSystemLoader(HERE / "templates")
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["many"] = many
    return made


def render(template: str, **values: Any) -> Markup:
    """A template, filled in."""
    return Markup(environment().get_template(template).render(**values))


def many(number: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
