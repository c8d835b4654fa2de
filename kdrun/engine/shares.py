"""How much of the student's gradient each term gives: norms of gradients, and their shares at a step of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdrun.methods.base import Stage, Terms

EVERY = 100  # steps between two measures: of two terms, one took as long as 0.7 steps of resnet8, so 1 % of the time


def is_due(epoch: int, i: int, steps: int) -> bool:
    """Whether the shares are measured at batch `i` of `epoch` (both count from 0), which has `steps`.

    On the first batch of an epoch and every EVERY steps after it. Of shorter epochs, only every so many, so that it costs no more.
    """
    return i % EVERY == 0 and epoch % max(1, EVERY // steps) == 0


def shares_of(terms: Terms, weights: Mapping[str, float], stage: Stage, student: nn.Module) -> dict[str, float]:
    """Each term's share of the sum of the norms of weight * gradient in the student's parameters, at this step.

    In what the stage trains, where it does not train the student. The graph stays for the step's own backward pass, and no `.grad`
    is written, so training goes on with the same bits. Costs one backward pass for each term with a weight other than 0. Empty for a
    single term, which has the whole gradient, and where the gradient is 0 or not finite. Waits for the device.
    """
    weighed = [name for name, value in terms.items() if weights[name] != 0 and value.requires_grad]
    if len(weighed) < 2:
        return {}
    parameters = students(stage, student) or trained(stage)
    values = [abs(weights[name]) * norm(gradients(terms[name], parameters)).item() for name in weighed]
    total = sum(values)
    if not (math.isfinite(total) and total > 0):
        return {}
    return {name: value / total for name, value in zip(weighed, values, strict=True)}


def trained(stage: Stage) -> list[nn.Parameter]:
    """The parameters that the stage has thawed, each once."""
    return list(dict.fromkeys(p for module in stage.trains for p in module.parameters() if p.requires_grad))


def students(stage: Stage, student: nn.Module) -> list[nn.Parameter]:
    """Those that are the student's; none where the stage trains other things."""
    own = set(student.parameters())
    return [parameter for parameter in trained(stage) if parameter in own]


def gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """The gradient of a scalar for each parameter, None for one that it does not depend on. The graph stays."""
    return list(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)) if parameters else []


def norm(tensors: Sequence[Tensor | None]) -> Tensor:
    """The Euclidean norm over several tensors together, in float32; 0 where there is none."""
    norms = [tensor.float().norm() for tensor in tensors if tensor is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())
