"""Tapped: run a model and return its output together with tensors from inside it."""

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
    """What a method sees of one model on one batch. Floating-point tensors are float32 in every compute precision."""

    logits: Any  # the model's output: (B, classes) for images; a dict of tensors for detectors
    taps: tuple[Tensor, ...]  # in the order of the names of the taps
    live: tuple[Tensor, ...]  # the same tensors as the model made them, in its precision; use these for gradients
    input: Any  # a tensor, or a dict of tensors; requires a gradient if a method needs input gradients
    again: Callable[[Any], Output]  # the same model on other inputs

    def detach(self) -> Output:
        """The same values without their graph."""
        taps, live = (tuple(tap.detach() for tap in side) for side in (self.taps, self.live))
        return Output(detached(self.logits), taps, live, self.input, self.again)


@dataclass(frozen=True)
class Derived:
    """A tap that is computed from the outputs of several modules: `function(*outputs)`, such as attention scores from queries and keys."""

    paths: tuple[str, ...]  # as those of plain taps, with :in for an input
    function: Callable[..., Tensor]


def paths(model: nn.Module) -> dict[str, str | Derived]:
    """The names that a model declares for its taps: {"pooled": "head:in", "cls": Derived(("layer3",), first_token)}."""
    declared = getattr(model, "taps", {})
    return dict(declared) if isinstance(declared, dict) else {}


def parts(model: nn.Module, tap: str) -> tuple[str, ...]:
    """The modules that a tap is made of, as paths."""
    path = paths(model).get(tap, tap)
    return path.paths if isinstance(path, Derived) else (path,)


class Tapped(nn.Module):
    """A model with forward hooks at named places.

    A tap is a name that the model declares or a module path ("layer2.0.conv1"). With ":in" it is the first input of the
    module instead of its output. Of a tuple the first item is taken. A name that does not exist is an error, and so is a tap that
    does not fire exactly once in a forward pass. If a later in-place operation changes a tapped tensor, the tap gives a clone.
    """

    def __init__(self, module: nn.Module, taps: Sequence[str] = (), autocast: torch.dtype | None = None):
        super().__init__()
        self.module, self.names, self.autocast = module, tuple(taps), autocast
        self.second = False  # True: a method takes a gradient of a gradient
        self._caught: dict[str, tuple[Tensor, int]] = {}
        self._armed = False  # the hooks catch only during forward, not if the module is called by itself
        self._cloned: set[str] = set()
        self._taps = {name: parts(module, name) for name in self.names}
        self._handles = [
            self._hook(path, name) for path, name in {p: n for n, ps in self._taps.items() for p in ps}.items()
        ]

    def forward(self, x: Any) -> Output:
        raw = self._run(x)
        changed = [
            n
            for n, (tensor, version) in self._caught.items()
            if not tensor.is_inference() and tensor._version != version
        ]
        if changed:  # first seen in the dry run, before the training
            self._cloned.update(changed)
            raw = self._run(x)
        missing = [name for name, made_of in self._taps.items() if any(path not in self._caught for path in made_of)]
        if missing:
            raise KdrunError(
                f"tap '{missing[0]}' did not fire: the forward pass of {self._kind()} does not use that module"
            )
        live = tuple(self._value(name) for name in self.names)
        self._caught.clear()
        return Output(as_float(raw), tuple(as_float(tap) for tap in live), live, x, self.forward)

    def _run(self, x: Any) -> Any:
        self._caught.clear()
        self._armed = True
        second = self.second and torch.is_grad_enabled()
        try:
            with (
                torch.autocast(device_of(x).type, self.autocast or torch.bfloat16, enabled=self.autocast is not None),
                sdpa_kernel(SDPBackend.MATH)
                if second
                else nullcontext(),  # the only kernel of attention with second derivatives
            ):
                return self.module(x)
        finally:
            self._armed = False

    def _value(self, name: str) -> Tensor:
        """What a tap gives in this forward pass, as the model made it."""
        values = [self._caught[path][0] for path in self._taps[name]]
        path = paths(self.module).get(name)
        return path.function(*values) if isinstance(path, Derived) else values[0]

    def _hook(self, whole: str, name: str) -> Any:
        """Catch what the module of the path `whole` gives; `name`: a tap that wants it, for messages."""
        path, _, side = whole.partition(":")
        modules = dict(self.module.named_modules())
        if path not in modules or side not in ("", "in"):
            known = [*paths(self.module), *(key for key in modules if key)]
            if name.startswith("stage") and "layer1" in paths(self.module):
                raise KdrunError(
                    f"{self._kind()} is a transformer and has no feature maps ({name}): methods of feature maps need a model of images; "
                    "kdrun methods lists those for transformers, and other methods take a tap such as layer1 or cls (docs/text.md)"
                )
            raise KdrunError(
                f"no tap '{name}' in {self._kind()}. {choices(name, [*paths(self.module)] or known)}"
                " (or a module path such as " + next((key for key in modules if key), "?") + ", with :in for its input)"
            )

        def catch(value: Any) -> None:
            if not self._armed:
                return
            value = value[0] if isinstance(value, (tuple, list)) else value
            if whole in self._caught:
                raise KdrunError(
                    f"tap '{name}' fired twice in one forward pass of {self._kind()}: tap a module that is used once"
                )
            value = value.clone() if whole in self._cloned else value
            self._caught[whole] = (value, 0 if value.is_inference() else value._version)

        if side == "in":
            return modules[path].register_forward_pre_hook(lambda _, args: catch(args))
        return modules[path].register_forward_hook(lambda _, args, output: catch(output))

    def _kind(self) -> str:
        return type(self.module).__name__

    def until(self, tap: str, example: Any) -> list[nn.Module]:
        """The modules with parameters or buffers that run before `tap`, in this order: for example "the student up to the hint"."""
        path, _, side = parts(self.module, tap)[-1].partition(":")
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
            dry_run(self, example)
        finally:
            for handle in handles:
                handle.remove()
        before = [
            *dict.fromkeys(m for m in fired if any(True for _ in m.parameters()) or any(True for _ in m.buffers()))
        ]
        for module in before:  # to train a module is to train all modules in it, so all of them must lie before the tap
            behind = [m for m in module.modules() if m not in before and any(True for _ in m.parameters(recurse=False))]
            if behind:
                raise KdrunError(
                    f"the part of {self._kind()} up to '{tap}' cannot be separated: {type(module).__name__} has its own"
                    f" parameters, and layers behind the tap, such as {type(behind[0]).__name__}"
                )
        return before


def first_rows(x: Any, count: int) -> Any:
    """The first samples of a model's input: a tensor, or a dict of tensors."""
    return x[:count] if isinstance(x, Tensor) else {key: value[:count] for key, value in x.items()}


def device_of(x: Any) -> torch.device:
    """The device of a model's input, which is a tensor or a dict of tensors."""
    one: Tensor = x if isinstance(x, Tensor) else next(iter(x.values()))
    return one.device


def dry_run(model: nn.Module, x: Any) -> Any:
    """Run a model once in eval mode without gradients, then restore the mode of each module. The model stays as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return model(x)
    finally:
        for module, mode in modes.items():
            module.training = mode


def as_float(value: Any) -> Any:
    """Floating-point tensors as float32, also those in dicts and lists; any other value as it is."""
    return over_tensors(value, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def detached(value: Any) -> Any:
    """The same values without their graph."""
    return over_tensors(value, Tensor.detach)


def shapes(value: Any) -> Any:
    """The shapes of tensors, in the dicts and lists that hold them."""
    return over_tensors(value, lambda tensor: tuple(tensor.shape))


def over_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`function` of a tensor, or of every tensor in a dict or a list (a detector's output); any other value as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: over_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [over_tensors(item, function) for item in value]
    return value


def total(value: Any) -> Tensor:
    """The sum of every number in a tensor, or in the tensors of a dict or a list: something to take a gradient of."""
    sums: list[Tensor] = []
    over_tensors(value, lambda tensor: sums.append(tensor.sum()))
    return torch.stack(sums).sum()
