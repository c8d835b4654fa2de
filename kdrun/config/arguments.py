"""The options of a builder: its keyword-only arguments, with the types and defaults that a config can hold.

For kdrun's own builders they are read from the source, for others from the function itself. Annotations are read and never run.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

from kdrun import errors
from kdrun.errors import KdrunError

REQUIRED = object()  # stands for the default of an argument without a default
ACCEPTED = "int, float, bool, str, list[...], dict[str, ...], Literal[...] of strings or numbers, X | None and Any"
SIMPLE = (int, float, bool, str)
LISTS = (list, tuple, Sequence)
NAMES = {**vars(typing), **vars(builtins)}  # names that an annotation may use without an import


@dataclass(frozen=True)
class Argument:
    """A keyword-only argument: its type in a config, its default, and the allowed values (empty: all)."""

    kind: Any
    default: Any = REQUIRED
    choices: tuple[Any, ...] = ()


def read(node: ast.FunctionDef) -> dict[str, Argument]:
    """The keyword-only arguments of a function of kdrun's own, from its source."""
    arguments = {}
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        kind, choices = accepted(_object(argument.annotation, NAMES) if argument.annotation else Any)
        value = REQUIRED if default is None else ast.literal_eval(default)
        arguments[argument.arg] = Argument(Optional[kind] if value is None else kind, value, choices)
    return arguments


def of_builder(builder: Callable[..., Any], given: Sequence[str], parents: Sequence[Any] = ()) -> dict[str, Argument]:
    """The keyword-only arguments of a user's builder. `given`: names of the arguments that it gets by position.

    `**options` stands for the keyword arguments of the next builder in `parents`. Any other argument is an error: no config and no
    record would hold its value.
    """
    arguments: dict[str, Argument] = {}
    where, positional = place(builder), 0
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            arguments[parameter.name] = _argument(parameter, builder, where)
        elif parameter.kind is parameter.VAR_KEYWORD and (inherited := _next(parents, given)):
            arguments = {**inherited, **arguments}
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and positional < len(given):
            positional += 1
        else:
            _refuse(parameter, given, where)
    if positional < len(given):
        raise KdrunError(
            f"{where} must take {', '.join(given)}, and its options after a `*`, as in {_example(given, 'width')}"
        )
    return arguments


def place(builder: Any) -> str:
    """Where a user's function is defined: file, line and name."""
    code = getattr(inspect.unwrap(builder), "__code__", None)
    where = f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else getattr(builder, "__module__", "")
    return f"{where}: {builder.__qualname__}"


def _next(parents: Sequence[Any], given: Sequence[str]) -> dict[str, Argument]:
    return of_builder(parents[0], given, parents[1:]) if parents else {}


def _refuse(parameter: inspect.Parameter, given: Sequence[str], where: str) -> None:
    name = str(parameter).partition(":")[0].partition("=")[0].strip()
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise KdrunError(
            f"{where} takes '{name}': no config and no record would hold such values. Name each of them, as in {_example(given, 'width')}"
        )
    raise KdrunError(
        f"{where} takes '{name}' by position: no config and no record would hold its value. Put `*` before it, as in "
        f"{_example(given, name)}, and the value into the yaml"
    )


def _example(given: Sequence[str], name: str) -> str:
    return f"({', '.join(given)}, *, {name}: float)"


def _argument(parameter: inspect.Parameter, builder: Any, where: str) -> Argument:
    kind, choices = _type(parameter, builder, where)
    default = parameter.default
    if default is parameter.empty:
        return Argument(kind, REQUIRED, choices)
    what = f"{where} has {' '.join(repr(default).split())[:80]} as the default of '{parameter.name}'"
    if not _is_plain(default):
        raise KdrunError(
            f"{what}, which a config cannot hold. It can hold numbers, strings, true and false, null, and lists and dicts of them. "
            "Use a name as the default, and let the code look up the object"
        )
    if choices and default is not None and default not in choices:
        raise KdrunError(f"{what}, which its type does not allow. {errors.choices(str(default), map(str, choices))}")
    default = list(default) if isinstance(default, tuple) else default
    return Argument(Optional[kind] if default is None else kind, default, choices)


def _type(parameter: inspect.Parameter, builder: Any, where: str) -> tuple[Any, tuple[Any, ...]]:
    """The type of an argument and its choices. An argument without an annotation takes any value."""
    written = parameter.annotation
    if written is parameter.empty:
        return Any, ()
    names = {**NAMES, **getattr(inspect.unwrap(builder), "__globals__", {})}
    try:
        return accepted(_object(ast.parse(written, mode="eval").body, names) if isinstance(written, str) else written)
    except (LookupError, TypeError, ValueError, AttributeError, SyntaxError) as error:
        shown = written if isinstance(written, str) else inspect.formatannotation(written)
        raise KdrunError(
            f"{where} has '{parameter.name}: {shown}', which a config cannot hold. It can hold {ACCEPTED}"
        ) from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in SIMPLE


def accepted(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type in a config for an annotation, and the values of a Literal. ValueError if a config cannot hold such a type."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        kinds = [accepted(member) for member in members if member is not type(None)]
        optional = len(kinds) < len(members)
        if len(kinds) == 1:
            kind, choices = kinds[0]
            return (Optional[kind] if optional else kind), choices
        if all(kind in SIMPLE and not choices for kind, choices in kinds):
            return Union[tuple(members)], ()  # noqa: UP007
        return Any, ()  # a config cannot check this type; the builder must
    if origin is Literal:
        values = [value for value in members if value is not None]
        kinds_of = {type(value) for value in values}
        if not values or not kinds_of <= {str, int, float, bool}:
            raise ValueError(annotation)
        kind = kinds_of.pop() if len(kinds_of) == 1 else Any
        return (Optional[kind] if len(values) < len(members) else kind), tuple(values)
    if annotation is Any or annotation in SIMPLE:
        return annotation, ()
    return _container(origin or annotation, members), ()


def _container(origin: Any, members: tuple[Any, ...]) -> Any:
    """list[X] for lists, tuples and sequences; dict[K, X] for mappings."""
    inner = [_inner(member) for member in members if member is not ...]
    if origin in LISTS:
        return list[inner[0]] if inner and all(one == inner[0] for one in inner) else list[Any]  # type: ignore[valid-type]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, value = inner or (str, Any)
        if key in (str, int):
            return dict[key, value]  # type: ignore[valid-type]
    raise ValueError(origin)


def _inner(annotation: Any) -> Any:
    kind, choices = accepted(annotation)
    if choices:
        raise ValueError(annotation)  # nothing would check the choices
    return kind


def _object(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The object of a written annotation: a name, X[Y], X | Y or a constant. LookupError, TypeError or ValueError for anything else."""
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(_object(node.value, names), node.attr)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Union[_object(node.left, names), _object(node.right, names)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        origin = _object(node.value, names)
        if origin is Literal:
            return Literal[tuple(_items(node.slice, names, written=True))]
        items = tuple(_items(node.slice, names))
        return origin[items if len(items) != 1 else items[0]]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _object(ast.parse(node.value, mode="eval").body, names)  # a quoted annotation
    if isinstance(node, ast.Constant) and node.value in (None, ...):
        return node.value
    raise ValueError(ast.unparse(node))


def _items(node: ast.expr, names: Mapping[str, Any], written: bool = False) -> Iterator[Any]:
    for item in node.elts if isinstance(node, ast.Tuple) else [node]:
        yield ast.literal_eval(item) if written else _object(item, names)
