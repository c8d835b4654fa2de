"""Tapped: run a model and return its output together with the tensors asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdrun.errors import KdrunError, choices


@dataclass
class Output:
    """What a method sees of one model on one batch. Floating tensors are float32 whatever the compute precision."""

    logits: Any  # the model's output: (B, classes) for images
    taps: tuple[Tensor, ...]  # in the order asked for
    live: tuple[Tensor, ...]  # the same as the model made them, in its precision: what a gradient can be taken of
    input: Any  # a tensor, or a dict of tensors; requires a gradient where a method wants input gradients
    again: Callable[[Any], Output]  # the same model on other inputs

    def detach(self) -> Output:
        """The same values without their graph."""
        taps, live = (tuple(tap.detach() for tap in side) for side in (self.taps, self.live))
        return Output(self.logits.detach(), taps, live, self.input, self.again)


def paths(model: nn.Module) -> dict[str, str]:
    """The aliases that a model declares: {"pooled": "head:in"}."""
    declared = getattr(model, "taps", {})
    return dict(declared) if isinstance(declared, dict) else {}


class Tapped(nn.Module):
    """A model with forward hooks at named places.

    A tap is an alias that the model declares or a module path ("layer2.0.conv1"); with ":in" it takes the module's
    first input instead of its output. Tuples give their first item. A name that does not exist, or a tap that does not
    fire exactly once per forward, is an error. A tapped tensor that a later in-place operation changes is cloned.
    """

    def __init__(self, module: nn.Module, taps: Sequence[str] = (), autocast: torch.dtype | None = None):
        super().__init__()
        self.module, self.names, self.autocast = module, tuple(taps), autocast
        self.second = False  # second derivatives are wanted: a method takes a gradient of a gradient
        self._caught: dict[str, tuple[Tensor, int]] = {}
        self._armed = False  # the hooks catch during forward alone, not when the module is called by itself
        self._cloned: set[str] = set()
        self._handles = [self._hook(name) for name in dict.fromkeys(self.names)]

    def forward(self, x: Any) -> Output:
        raw = self._run(x)
        changed = [
            n
            for n, (tensor, version) in self._caught.items()
            if not tensor.is_inference() and tensor._version != version
        ]
        if changed:  # seen first in the dry run, before anything trains
            self._cloned.update(changed)
            raw = self._run(x)
        missing = [name for name in self.names if name not in self._caught]
        if missing:
            raise KdrunError(
                f"tap '{missing[0]}' did not fire: the forward pass of {self._kind()} does not use that module"
            )
        live = tuple(self._caught[name][0] for name in self.names)
        self._caught.clear()
        return Output(as_float(raw), tuple(as_float(tap) for tap in live), live, x, self.forward)

    def _run(self, x: Any) -> Any:
        self._caught.clear()
        self._armed = True
        second = self.second and torch.is_grad_enabled()
        try:
            with (
                torch.autocast(device_of(x).type, self.autocast or torch.bfloat16, enabled=self.autocast is not None),
                sdpa_kernel(SDPBackend.MATH) if second else nullcontext(),  # of attention's kernels, it alone has them
            ):
                return self.module(x)
        finally:
            self._armed = False

    def _hook(self, name: str) -> Any:
        path, _, side = paths(self.module).get(name, name).partition(":")
        modules = dict(self.module.named_modules())
        if path not in modules or side not in ("", "in"):
            known = [*paths(self.module), *(key for key in modules if key)]
            raise KdrunError(
                f"no tap '{name}' in {self._kind()}. {choices(name, [*paths(self.module)] or known)}"
                " (or a module path such as " + next((key for key in modules if key), "?") + ", with :in for its input)"
            )

        def catch(value: Any) -> None:
            if not self._armed:
                return
            value = value[0] if isinstance(value, (tuple, list)) else value
            if name in self._caught:
                raise KdrunError(
                    f"tap '{name}' fired twice in one forward pass of {self._kind()}: tap a module that is used once"
                )
            value = value.clone() if name in self._cloned else value
            self._caught[name] = (value, 0 if value.is_inference() else value._version)

        if side == "in":
            return modules[path].register_forward_pre_hook(lambda _, args: catch(args))
        return modules[path].register_forward_hook(lambda _, args, output: catch(output))

    def _kind(self) -> str:
        return type(self.module).__name__

    def until(self, tap: str, example: Any) -> list[nn.Module]:
        """The modules with parameters or buffers that fire before `tap` does, in order: "the student up to the hint"."""
        path, _, side = paths(self.module).get(tap, tap).partition(":")
        target = self.module.get_submodule(path)
        fired: list[nn.Module] = []
        reached: list[bool] = []

        def note(module: nn.Module, *_: Any) -> None:
            if reached:
                return
            if module is target and side == "in":
                reached.append(True)
            elif any(True for _ in module.parameters(recurse=False)) or not list(module.children()):
                fired.append(module)

        def stop(module: nn.Module, *_: Any) -> None:
            if module is target:
                reached.append(True)

        handles = [m.register_forward_pre_hook(note) for m in self.module.modules()]
        handles += [m.register_forward_hook(stop) for m in self.module.modules()]
        try:
            evaluate(self, example)
        finally:
            for handle in handles:
                handle.remove()
        before = [
            *dict.fromkeys(m for m in fired if any(True for _ in m.parameters()) or any(True for _ in m.buffers()))
        ]
        for module in before:  # training it trains what it contains, so all of that must lie before the tap too
            behind = [m for m in module.modules() if m not in before and any(True for _ in m.parameters(recurse=False))]
            if behind:
                raise KdrunError(
                    f"the part of {self._kind()} up to '{tap}' cannot be told apart: {type(module).__name__} has parameters of"
                    f" its own and layers behind the tap, such as {type(behind[0]).__name__}"
                )
        return before


def device_of(x: Any) -> torch.device:
    """Where a model's input lies: a tensor, or a dict of tensors."""
    one: Tensor = x if isinstance(x, Tensor) else next(iter(x.values()))
    return one.device


def evaluate(model: nn.Module, x: Any) -> Any:
    """Run in eval mode without gradients and put the modes back: a look at a model leaves no trace in it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return model(x)
    finally:
        for module, mode in modes.items():
            module.training = mode


def as_float(value: Any) -> Any:
    """A floating tensor in float32; anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    return value
