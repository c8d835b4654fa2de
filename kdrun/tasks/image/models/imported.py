"""Any nn.Module of yours: `student=import student.path=my_package.module:function`, no code in kdrun."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdrun.config import functions
from kdrun.errors import KdrunError, choices
from kdrun.models import register

# Names that builders use for the number of classes, the usual ones first.
CLASSES = (
    "classes", "num_classes", "num_class", "n_classes", "n_class", "nclasses", "nclass", "class_num", "classes_num", "class_count",
    "number_of_classes", "nb_classes", "nb_class", "num_cls", "num_labels", "n_labels", "num_categories", "numclasses", "numclass",
    "num_outputs", "n_outputs", "out_features", "output_dim", "out_dim",
)  # fmt: skip
# If a builder has only one open argument, it is the number of classes, unless its name has one of these words.
OTHER = re.compile(
    r"depth|width|layer|block|chan|plane|size|conf|cfg|arg|opt|name|path|file|arch|scale|rate|drop|kernel|pretrain|seed"
)


@register(name="import", task="any")
def imported(classes: int, *, path: str, arguments: dict[str, Any] = {}, taps: dict[str, str] = {}) -> nn.Module:  # noqa: B006
    """A function of yours, path=module:function; it gets the number of classes and `arguments`; `taps` names its tensors."""
    builder = _builder(path)
    model = _call(builder, path, classes, dict(arguments))
    if not isinstance(model, nn.Module):
        raise KdrunError(f"{path} returned {type(model).__name__}, not an nn.Module")
    declared = getattr(model, "taps", {})
    if taps or isinstance(declared, dict):
        model.taps = {**(declared if isinstance(declared, dict) else {}), **taps}  # type: ignore[assignment]
    return model


def _builder(path: str) -> Callable[..., Any]:
    """The function or class at module:function."""
    target = functions.at(path, "path", "my_package.models:small_net")
    if isinstance(target, nn.Module):
        raise KdrunError(
            f"{path} is a model, not a function that builds one, so every seed and role would share it; give a function"
        )
    if not callable(target):
        raise KdrunError(f"{path} is {type(target).__name__}, not a function or class that builds an nn.Module")
    return target


def _call(builder: Callable[..., Any], path: str, classes: int, arguments: dict[str, Any]) -> Any:
    """Call the builder by its signature. An exception that it raises is not changed, so that it keeps its place in the code."""
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):  # a builtin has none
        return builder(classes=classes, **arguments)
    parameters = signature.parameters
    open_end = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [name for name in arguments if name not in named]
    if unknown and not open_end:
        raise KdrunError(
            f"{path} could not be called with classes={classes}, {arguments}: it takes no '{unknown[0]}'. {choices(unknown[0], named)}"
        )
    given: tuple[int, ...] = ()
    typed = dict(arguments)
    names = [name for name in CLASSES if name in named]
    only = _open_place(list(parameters.values()), arguments)
    tries = False
    if names:
        arguments = {names[0]: classes, **arguments}
    elif only is not None and only.kind is only.POSITIONAL_OR_KEYWORD:
        arguments[only.name] = classes
    elif only is not None:
        given = (classes,)
    else:
        tries = open_end and not set(arguments) & set(CLASSES)
    try:
        signature.bind(*given, **arguments)
    except TypeError as error:
        raise KdrunError(
            f"{path} could not be called with classes={classes}, {typed}: {error}; arguments={{NAME: VALUE}} gives it. "
            f"It takes {', '.join(parameters)}"
        ) from error
    return _try_names(builder, classes, arguments) if tries else builder(*given, **arguments)


def _open_place(parameters: list[inspect.Parameter], arguments: dict[str, Any]) -> inspect.Parameter | None:
    """The only argument that has no value yet: the number of classes, unless its name means something else."""
    if [p.kind for p in parameters] == [inspect.Parameter.VAR_POSITIONAL]:
        return parameters[0]
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    left = [p for p in places if p.default is p.empty and p.name not in arguments]
    return left[0] if len(left) == 1 and not OTHER.search(left[0].name) else None


def _try_names(builder: Callable[..., Any], classes: int, arguments: dict[str, Any]) -> Any:
    """Call a builder that passes its **kwargs on (torchvision, timm): only a call shows which name it has for the number of classes.

    A name in the code of the builder is tried first, because some builders ignore names that they do not know.
    """
    code = getattr(inspect.unwrap(builder), "__code__", None)
    mentioned = [name for name in CLASSES if code is not None and name in code.co_consts]
    state = torch.get_rng_state()
    for name in dict.fromkeys([*mentioned, "num_classes", *CLASSES]):
        try:
            return builder(**arguments, **{name: classes})
        except TypeError as error:
            if f"unexpected keyword argument '{name}'" not in str(error):
                raise
            torch.set_rng_state(state)
    return builder(**arguments)
