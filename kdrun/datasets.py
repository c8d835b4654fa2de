"""`from kdrun.datasets import register`: what a dataset of your own needs (docs/data.md). kdrun's own lie in tasks/<task>/data/."""

from __future__ import annotations

from typing import Any

from kdrun.config.registry import DATASETS

__all__ = ["register"]


def register(item: Any = None, *, name: str | None = None, task: str = "image", **defaults: Any) -> Any:
    """Decorator: `@register` or `@register(flip=False)`. A name that is taken is an error.

    `defaults`: what this dataset has where the command line does not say, of the keys that every dataset of its task has.
    """

    def add(item: Any) -> Any:
        DATASETS.register(item, name=name, task=task)
        DATASETS.defaults[name or item.__name__.lower()] = defaults
        return item

    return add(item) if item is not None else add
