"""One way from a model's node to an nn.Module that gives logits, and a look at what it gives before anything trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.registry import MODELS
from kdrun.errors import KdrunError, choices
from kdrun.methods.taps import device_of, dry_run
from kdrun.tasks.base import Task


def build_model(name: str, outputs: int, arguments: Mapping[str, Any], output: str | None = None) -> nn.Module:
    """The model `name`; `output` is the item that stands for the logits where it returns a container (tuple, dict, object).

    The item is chosen by a hook: the model keeps its class, its names and its taps.
    """
    model = MODELS.get(name)(outputs, **arguments)
    if output is not None:
        called = title(name, arguments)
        model.register_forward_hook(lambda _, inputs, returned: item(returned, output, called))
    return model


def title(name: str, arguments: Mapping[str, Any]) -> str:
    """What a message calls a model: an imported one by its path."""
    return str(arguments["path"]) if name == "import" else name


def item(returned: Any, path: str, name: str) -> Any:
    """The item of a container under a dotted path of names and numbers; a tensor is itself."""
    for key in path.split("."):
        if isinstance(returned, Tensor):
            return returned
        parts = items(returned)
        if key not in parts and not (key.removeprefix("-").isdigit() and -len(parts) <= int(key) < len(parts)):
            raise KdrunError(f"output={path}: {name} gives {described(returned)} and no '{key}'. {choices(key, parts)}")
        returned = parts[key] if key in parts else [*parts.values()][int(key)]
    return returned


def items(returned: Any) -> dict[str, Any]:
    """What a container holds, by name, or by number where there are no names."""
    if isinstance(returned, Mapping):
        return {str(key): value for key, value in returned.items()}
    if hasattr(returned, "_fields"):
        return dict(zip(returned._fields, returned, strict=True))
    if isinstance(returned, Sequence):
        return {str(number): value for number, value in enumerate(returned)}
    if dataclasses.is_dataclass(returned):
        return {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
    return dict(getattr(returned, "__dict__", {}))


def described(returned: Any) -> str:
    """The kind of a model's output and the shapes in it: "a tuple of (2, 10), (2, 64)"."""
    shapes = [f"{tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in items(returned).values()]
    return f"a {type(returned).__name__} of {', '.join(shapes) or 'nothing'}"


def rehearse_output(
    model: nn.Module, example: Any, task: Task, outputs: int, role: str, name: str, trains: bool
) -> str | None:
    """Look at what the model gives for two inputs, in eval mode and, where it `trains`, in train mode.

    Anything but the task's output is an error that names the way out. Returns what the task remarks of it.
    Weights, statistics and random streams stay as they are.
    """
    returned = {"": dry_run(model, example)}
    if trains:
        returned[" (in train mode)"] = training(model, example)
    for mode, value in returned.items():
        if not task.gives_dict and not isinstance(value, Tensor) and items(value):
            fits = [k for k, v in items(value).items() if isinstance(v, Tensor) and tuple(v.shape)[1:] == (outputs,)]
            way = fits[0] if fits else next(iter(items(value)))
            raise KdrunError(
                f"model {name}{mode} gives {described(value)} where {task.wanted(outputs)} are wanted; {role}.output={way} "
                f"takes one of them. {choices('', items(value))}"
            )
        wrong = task.check_output(value, outputs)
        if wrong:
            raise KdrunError(f"model {name}{mode} {wrong}")
    return task.remark(returned[""], f"{role} {name}")


def training(model: nn.Module, x: Any) -> Any:
    """What the model returns in train mode, without gradients; modes, buffers and random streams are put back."""
    if isinstance(x, Tensor) and len(x) == 1:
        x = torch.cat([x, x])  # batch norm needs two values
    device = device_of(x)
    modes = {module: module.training for module in model.modules()}
    buffers = [(m, n, b, b.clone()) for m in modes for n, b in m.named_buffers(recurse=False)]
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.train()
            return model(x)
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer.copy_(before)  # some models put another tensor in its place
