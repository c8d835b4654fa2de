"""How the weights of a stage are updated: one step of the recipe's optimiser after every batch.

A task may give another way (Task.optimization), such as a step after several batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.schema import Recipe
from kdrun.engine.schedule import learning_rate
from kdrun.methods.base import Method, Stage


class StepPerBatch:
    """One step of SGD or AdamW after every batch; the rate follows the recipe's schedule."""

    average: nn.Module | None = None

    def __init__(self, stage: Stage, recipe: Recipe, steps: int):
        self.recipe, self.steps, self.optimizer = recipe, steps, make_optimizer(stage, recipe)

    def begin(self, epoch: int, i: int) -> float:
        lr = learning_rate(self.recipe, self.recipe.epochs, epoch, i / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
        return lr

    def step(self, total: Tensor, samples: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def make_optimizer(stage: Stage, recipe: Recipe) -> torch.optim.Optimizer:
    """A fresh optimiser over the parameters that the stage has thawed, each once.

    A method's layers have a group of their own where it says `optimizer: {lr, weight_decay}`; its rate follows the recipe's schedule.
    """
    own = {p: m.optimizer for m in stage.trains if isinstance(m, Method) and m.optimizer for p in m.parameters()}
    every = list(dict.fromkeys(p for module in stage.trains for p in module.parameters() if p.requires_grad))
    groups: list[dict[str, Any]] = [{"params": [p for p in every if p not in own]}]
    for module in stage.trains:
        layers = [p for p in module.parameters() if p in own and p.requires_grad] if isinstance(module, Method) else []
        if layers and isinstance(module, Method):
            lr = module.optimizer.get("lr", recipe.lr)
            decay = module.optimizer.get("weight_decay", recipe.weight_decay)
            groups.append({"params": layers, "lr": lr, "factor": lr / recipe.lr, "weight_decay": decay})
    if recipe.optimizer == "adamw":  # fused on a CPU, too: a step of 22 M parameters took a sixth of the time
        return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    fused = all(p.is_cuda for p in every)
    return torch.optim.SGD(
        groups, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov, fused=fused
    )
