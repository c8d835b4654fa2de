"""Divisions whose gradients stay bounded for nearly constant tensors, and divergences that stay exact at high temperatures.

A length n in a denominator gives gradients of 1 / n: 1e7 and more for a head of zeros, a dead layer or a batch of one image. Here all
values are the published ones. Gradients are the published ones where n >= `least`; below, they are multiplied by (n / least)^2. So no
division multiplies a gradient by more than 1 / least, and a constant tensor has a gradient of 0: its direction is only rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 0.01  # of lengths of activations; in new networks they were 0.03 and more, mostly above 1
# Of deviations of logits. In new networks the deviations over classes were 0.05 to 2. The deviation of a class over a batch, which dist
# divides by, may be smaller in the first steps.
LEAST_DEVIATION = 0.05
EXACT_UP_TO = 20.0  # temperature up to which float32 holds four digits of a divergence


class _Faded(torch.autograd.Function):
    """The same values; the gradient times `share`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(share)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


def faded(x: Tensor, size: Tensor, least: float = LEAST) -> Tensor:
    """x, with its gradient multiplied by (size / least)^2 where size < least; `size` is broadcast over x and gets no gradient."""
    share = (size.detach() / least).clamp(max=1).square().to(x.dtype)
    return _Faded.apply(x, share)  # type: ignore[no-untyped-call, no-any-return]


def unit(x: Tensor, dim: int | tuple[int, ...] = 1, least: float = LEAST, epsilon: float | None = None) -> Tensor:
    """x at unit length along `dim`, as F.normalize, or as x / (length + epsilon); zeros stay zeros, with a gradient of zero."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return faded(x / (length.clamp(min=1e-12) if epsilon is None else length + epsilon), length, least)


def varied(logits: Tensor, dim: int = 1) -> Tensor:
    """The logits; their gradient fades where they are constant along `dim`. For use before a division by their deviation."""
    return faded(logits, logits.detach().std(dim, keepdim=True, correction=0), LEAST_DEVIATION)


def spread(x_BD: Tensor) -> Tensor:
    """Embeddings (B, D); their gradient fades if the whole batch is one point. For use before a division by a mean or largest distance."""
    centred_BD = x_BD.detach() - x_BD.detach().mean(0)
    return faded(x_BD, torch.linalg.vector_norm(centred_BD, dim=1).mean())


def exact(temperature: float, *logits: Tensor) -> tuple[Tensor, ...]:
    """The logits, in float64 if the temperature is high: then distributions are nearly equal, and T^2 enlarges the rounding errors."""
    return tuple(x.double() for x in logits) if temperature > EXACT_UP_TO else logits


def never_negative(x: Tensor) -> Tensor:
    """x, which only rounding can make negative: 0 where it is negative, with an unchanged gradient."""
    return x - x.detach().clamp(max=0)


def tempered_kl(s: Tensor, t: Tensor, temperature: float, dim: int = 1) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)) summed along `dim`, in the precision of the logits; never negative."""
    given = s.dtype
    s, t = exact(temperature, s, t)
    log_s, log_t = (s / temperature).log_softmax(dim), (t / temperature).log_softmax(dim)
    return (temperature**2 * divergence(log_s, log_t, dim)).to(given)


def divergence(log_s: Tensor, log_t: Tensor, dim: int = 1) -> Tensor:
    """KL of log-probabilities, teacher to student, summed along `dim`; never negative."""
    return never_negative(F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim))
