"""How ultralytics updates a detector's weights: gradients of several batches make a step, biases and momentum warm up on their own,
long gradients are cut, and a running average of the weights is what is kept.

The same numbers as the library's trainer gives (tests/test_detection_optimization.py), with the state that an exact resume needs.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdrun.methods.base import Method, Stage

LONGEST = 10.0  # norm of a gradient; a longer one is cut to it
TAU = 2000  # updates until the average is slow: its decay is ema (1 - exp(-updates / TAU))
NORMS = tuple(value for name, value in nn.__dict__.items() if "Norm" in name)


class Accumulated:
    """A step of the optimiser once `nbs` images have given their gradients; rates by the epoch, warmed up by the batch."""

    def __init__(self, stage: Stage, recipe: Any, student: nn.Module, steps: int):
        self.recipe, self.steps = recipe, steps
        self.warmup = round(min(recipe.warmup * recipe.epochs, max(recipe.epochs - 1, 0)) * steps)
        every = max(round(recipe.nbs / recipe.batch_size), 1)  # batches of a step
        decay = recipe.weight_decay * recipe.batch_size * every / recipe.nbs
        self.most = self.every = min(every, steps * recipe.epochs)
        self.optimizer = make_optimizer(stage, recipe, decay)
        # In the order of the modules, as the library: the norm of the whole gradient is a sum, whose last bits depend on it.
        learn = (p for module in stage.trains for p in module.parameters() if p.requires_grad)
        self.parameters = list(dict.fromkeys(learn))
        self.last_step, self.now, self.updates = -1, 0, 0
        trains = any(p.requires_grad for p in student.parameters())
        self.student = student
        self.average = copy.deepcopy(student).requires_grad_(False).eval() if recipe.ema and trains else None

    def begin(self, epoch: int, i: int) -> float:
        rate = rate_of(self.recipe, epoch)
        self.now = epoch * self.steps + i
        warm = self.warmup > 0 and self.now <= self.warmup
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if warm:
                start = self.recipe.warmup_bias_lr if group["kind"] == "bias" else 0.0
                group["lr"] = self._between(start, group["lr"])
                if "momentum" in group:
                    group["momentum"] = self._between(self.recipe.warmup_momentum, self.recipe.momentum)
        if warm:
            self.every = max(1, int(np.interp(self.now, [0, self.warmup], [1, self.most]).round()))
        return float(self.optimizer.param_groups[0]["lr"])

    def _between(self, start: float, end: float) -> float:
        return float(np.interp(self.now, [0, self.warmup], [start, end]))

    def step(self, total: Tensor, samples: int) -> None:
        """The library sums its loss over the images of a step; a mean loss is therefore multiplied by their number."""
        (total * samples).backward()
        if self.now - self.last_step < self.every:
            return
        torch.nn.utils.clip_grad_norm_(self.parameters, LONGEST)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.last_step = self.now
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        if self.average is None:
            return
        self.updates += 1
        kept = self.recipe.ema * (1 - math.exp(-self.updates / TAU))
        theirs = self.student.state_dict()
        pairs = [(mine, theirs[name]) for name, mine in self.average.state_dict().items() if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in pairs], [new for _, new in pairs], 1 - kept)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(), "gradients": [p.grad for p in self.parameters],
            "last_step": self.last_step, "every": self.every, "updates": self.updates,
            "average": self.average.state_dict() if self.average is not None else None,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, gradient in zip(self.parameters, state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.last_step, self.every, self.updates = state["last_step"], state["every"], state["updates"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def rate_of(recipe: Any, epoch: int) -> float:
    """The learning rate of an epoch (from 0) as a share of recipe.lr: from 1 to recipe.lrf."""
    if recipe.schedule == "cosine":
        return max((1 - math.cos(epoch * math.pi / recipe.epochs)) / 2, 0) * (recipe.lrf - 1) + 1
    if recipe.schedule == "linear":
        return max(1 - epoch / recipe.epochs, 0) * (1 - recipe.lrf) + recipe.lrf
    if recipe.schedule == "step":
        return float(recipe.gamma ** sum(epoch >= round(share * recipe.epochs) for share in recipe.milestones))
    return 1.0


def make_optimizer(stage: Stage, recipe: Any, decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, or AdamW (momentum is its beta 1), over what the stage trains. Weight decay works on weights of layers
    alone, not on biases and norms."""
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "norm": [], "bias": []}
    own: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for module in stage.trains:
        if isinstance(module, Method) and module.optimizer:
            layers = [p for p in module.parameters() if p.requires_grad]
            lr, wd = module.optimizer.get("lr", recipe.lr), module.optimizer.get("weight_decay", decay)
            own += [{"params": layers, "lr": lr, "weight_decay": wd, "kind": "own"}] * bool(layers)
            seen.update(layers)
            continue
        for name, layer in module.named_modules():
            for key, parameter in layer.named_parameters(recurse=False):
                if parameter.requires_grad and parameter not in seen:
                    kind = "bias" if "bias" in f"{name}.{key}" else "norm" if isinstance(layer, NORMS) else "weight"
                    groups[kind].append(parameter)
                    seen.add(parameter)
    # In the library's order, so that its optimiser state and this one can be compared.
    parts = [
        {"params": groups[kind], "lr": recipe.lr, "weight_decay": decay if kind == "weight" else 0.0, "kind": kind}
        for kind in ("weight", "norm", "bias")
        if groups[kind]
    ] + own
    for part in parts:
        part["initial_lr"] = part["lr"]
    if recipe.optimizer == "adamw":
        fused = all(p.is_cuda for part in parts for p in part["params"])
        return torch.optim.AdamW(parts, recipe.lr, betas=(recipe.momentum, 0.999), fused=fused or None)
    return torch.optim.SGD(parts, recipe.lr, recipe.momentum, nesterov=recipe.nesterov)
