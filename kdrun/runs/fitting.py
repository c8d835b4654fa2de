"""Which weights of a file belong to a model, and what their names are without the prefixes of wrappers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from kdrun.errors import KdrunError, choices
from kdrun.runs.unpickle import stands_for

Weights = dict[str, Tensor]
# The keys under which weights are looked for, in this order. Plain weights come before averaged ones (EMA).
ORDER = (
    "state_dict", "model_state_dict", "model_state", "state", "model", "net", "network", "student", "params", "weights", "backbone",
    "module", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher",
)  # fmt: skip
COUNTS = (
    "n_averaged",
    "total_ops",
    "total_params",
)  # counters of weight averaging and of thop: they are not weights, at any depth
HEADS = ("head", "heads", "fc", "classifier", "linear", "output", "logits")
# Names that only wrappers use: torch.compile, FSDP, activation checkpointing, Fabric and DeepSpeed.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")


@dataclass(frozen=True)
class Candidate:
    """A state dict inside a file. `path`: the keys that lead to it; empty if the file itself is the state dict."""

    path: tuple[str, ...]
    weights: Weights

    def __str__(self) -> str:
        return ".".join(self.path) or "the file's own tensors"


def candidates(content: Any, role: str = "") -> list[Candidate]:
    """Every state dict in the content of a file, in the order in which they are tried. One under the key `role` comes first."""
    first = (role, *ORDER)

    def rank(candidate: Candidate) -> tuple[bool, list[int], int]:
        places = [first.index(key) if key in first else len(first) for key in candidate.path]
        return not candidate.path, places, -len(candidate.weights)  # tensors that lie beside a state dict come last

    return sorted(_walk(content, ()), key=rank)


def _walk(node: Any, path: tuple[str, ...]) -> Iterator[Candidate]:
    if not isinstance(node, Mapping) or "param_groups" in node or len(path) > 4:  # an optimiser's state
        return
    tensors = {str(name): value for name, value in node.items() if isinstance(value, Tensor)}
    alone = not path and bool(tensors) and len(tensors) == len(node)
    if alone or any(value.ndim >= 2 and _is_weight(value) for value in tensors.values()):
        yield Candidate(path, tensors)
    for name, value in node.items():
        if isinstance(name, str):
            yield from _walk(value, (*path, name))


def _is_weight(value: Tensor) -> bool:
    """Whether a tensor holds weights: it is no counter and no state of a random generator."""
    return value.is_floating_point() or value.is_quantized or value.dtype == torch.int8


def at_key(content: Any, key: str, role: str, path: Any) -> list[Candidate]:
    """The state dicts under a dotted key, or the part of a state dict whose names begin with the key. An unknown key is an error."""
    every = candidates(content, role)
    below = [c for c in every if f"{'.'.join(c.path)}.".startswith(f"{key}.")]
    if below:
        return below
    for candidate in every:
        for prefix in (key, key.removeprefix(".".join(candidate.path) + ".")):
            part = {n.removeprefix(f"{prefix}."): v for n, v in candidate.weights.items() if n.startswith(f"{prefix}.")}
            if part:
                return [Candidate((*candidate.path, prefix), part)]
    known = {str(c) for c in every if c.path} or {name.partition(".")[0] for c in every for name in c.weights}
    raise KdrunError(f"{path} has no weights under '{key}' ({role}.checkpoint_key). {choices(key, known)}")


def no_weights(content: Any) -> str:
    """Says what a file holds that has no state dict."""
    inside = list(content.values()) if isinstance(content, Mapping) else []
    classes = [name for value in (content, *inside) if (name := stands_for(value))]
    own = [name for name in classes if not name.startswith("numpy.")]
    if classes and not own:
        return "holds NumPy arrays and no tensors. Save tensors: torch.save({name: torch.from_numpy(x) for name, x in ...}, FILE)"
    if own:
        return (
            f"holds an object of class {own[0]} and no state dict; kdrun executes no pickled code. If you trust the file, load it "
            "and save only its weights: torch.save(model.state_dict(), FILE)"
        )
    keys = f"; its keys are {some([str(key) for key in content])}" if isinstance(content, Mapping) and content else ""
    return f"holds no state dict of tensors (looked under state_dict, model, net too){keys}"


def plain_names(model: nn.Module) -> dict[str, str]:
    """Each name of the model's state dict -> the name without prefixes of wrappers (torch.compile, DataParallel, AveragedModel, FSDP).

    The counter of averaged models is left out: it is not a weight.
    """
    names: dict[str, str] = {}
    for name in model.state_dict():
        parts, at = [], model
        for part in WRAPPERS.sub("", name).split("."):
            at = getattr(at, "_orig_mod", at)
            if isinstance(at, (DataParallel, DistributedDataParallel, AveragedModel)):
                if part == "module":
                    at = at.module
                    continue
                if part == "n_averaged":
                    break
            parts.append(part)
            at = getattr(at, part, at)
        else:
            names[name] = ".".join(parts)
    return names if len(set(names.values())) == len(names) else {name: name for name in model.state_dict()}


def wanted_by(model: nn.Module) -> Weights:
    """The model's tensors under their plain names."""
    state = model.state_dict()
    return {plain: state[name] for name, plain in plain_names(model).items() if isinstance(state[name], Tensor)}


def fitted(weights: Weights, wanted: Weights) -> Weights:
    """The weights under the model's names: as they are, or without a prefix that all of them share. The version with most names of the
    model is taken.

    A prefix stays if the names of the model have it too. If only the model has a prefix, it is put before the names of the file.
    """
    weights = {
        name: value for name, value in weights.items() if name.rpartition(".")[2] not in COUNTS or name in wanted
    }
    inner = [weights, *_peeled({WRAPPERS.sub("", name): value for name, value in weights.items()})]
    outer = [first.removesuffix(last) for first, last in _first_names(wanted)]
    versions = ({before + name: value for name, value in version.items()} for before in outer for version in inner)
    nearest = max(versions, key=lambda version: len(version.keys() & wanted.keys()))  # of equals the first
    return _counted(nearest, wanted)


def _peeled(weights: Weights) -> Iterator[Weights]:
    """The weights, then the weights without the first part of their names, as often as all names have the same first part."""
    yield weights
    while weights and all("." in name for name in weights) and len({name.partition(".")[0] for name in weights}) == 1:
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
        yield weights


def _first_names(wanted: Weights) -> Iterator[tuple[str, str]]:
    """The first name of the model, and the same name without one, two, ... prefixes that all its names share."""
    for bare in _peeled(wanted):
        yield next(iter(wanted), ""), next(iter(bare), "")


def _counted(weights: Weights, wanted: Weights) -> Weights:
    """The weights with the counters of batches that the model has, and without others.

    Files from before PyTorch 0.4.1 lack these counters. No prediction depends on them.
    """
    counters = {name for name in wanted.keys() ^ weights.keys() if name.endswith("num_batches_tracked")}
    kept = {
        name: value
        for name, value in weights.items()
        if name not in counters or f"{name.rpartition('.')[0]}.running_mean" not in wanted
    }
    lacking = [name for name in counters if name in wanted and f"{name.rpartition('.')[0]}.running_mean" in weights]
    return kept | {name: wanted[name] for name in lacking}


def misfit(weights: Weights, wanted: Weights) -> str | None:
    """Why these weights do not fit the model, or None. Shapes are compared first, then names."""
    for name in sorted(wanted.keys() & weights.keys()):
        value, mine = weights[name], wanted[name]
        if not is_lazy(mine) and value.shape != mine.shape and not value.numel() == mine.numel() == 1:
            classes = " (another number of classes?)" * any(part in HEADS for part in name.split("."))
            return f"{name} is {tuple(value.shape)} in the file, {tuple(mine.shape)} in the model{classes}"
    missing, extra = [n for n in wanted if n not in weights], [n for n in weights if n not in wanted]
    if not missing and not extra:
        return None
    if pair := _renamed(weights, wanted):
        return (
            f"the shapes fit one by one and only the names differ: '{pair[0]}' in the file is '{pair[1]}' in the model. If it "
            "is the same network, rename the keys of its state dict and save it again (docs/checkpoints.md shows how)"
        )
    differences = [
        f"it {verb} {some(sorted(keys))}" for verb, keys in (("lacks", missing), ("also has", extra)) if keys
    ]
    return f"the model has {len(wanted)} tensors, the file {len(weights)}; {'; '.join(differences)}. Is it another architecture?"


def _renamed(weights: Weights, wanted: Weights) -> tuple[str, str] | None:
    """The first pair of names that differ, if the shapes are the same in the same order. Counters of batches are ignored."""
    theirs, ours = ([n for n in side if not n.endswith("num_batches_tracked")] for side in (weights, wanted))
    if any(is_lazy(wanted[name]) for name in ours):
        return None
    if [weights[name].shape for name in theirs] != [wanted[name].shape for name in ours]:
        return None
    return next(((a, b) for a, b in zip(theirs, ours, strict=True) if a != b), None)


def unsound(weights: Weights, wanted: Weights) -> str | None:
    """What is wrong with the numbers of weights whose names and shapes fit, or None."""
    for name, value in weights.items():
        mine = wanted[name]
        if value.is_quantized or str(value.layout) != "torch.strided" or value.is_meta or value.is_nested:
            return f"{name} is {'quantised' if value.is_quantized else 'sparse or without values'}; it must be a plain tensor"
        if is_lazy(mine) or not mine.is_floating_point():
            continue
        if not value.is_floating_point():
            return f"{name} holds {str(value.dtype).removeprefix('torch.')}; it must hold floating-point numbers (is it a quantised model?)"
        value = value.to(mine.dtype)
        if value.isnan().any() or (value.isinf().any() and not mine.isinf().any()):
            return f"{name} holds NaN or infinite values; is it from a run that diverged?"
    return None


def part_that_fits(weights: Weights, wanted: Weights) -> str | None:
    """The prefix of the names that fit the model, if the other names of the file belong to something else; else None."""
    prefixes = dict.fromkeys(
        ".".join(name.split(".")[:depth]) for name in weights for depth in (1, 2) if name.count(".") >= depth
    )
    for prefix in prefixes:
        part = {n.removeprefix(f"{prefix}."): v for n, v in weights.items() if n.startswith(f"{prefix}.")}
        if len(part) < len(weights) and misfit(fitted(part, wanted), wanted) is None:
            return prefix
    return None


def some(names: list[str], most: int = 3) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
