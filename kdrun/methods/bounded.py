"""Divisions by lengths and deviations whose gradients stay finite where a tensor hardly varies, and divergences that stay exact.

A length n in a denominator gives gradients of 1 / n: a head of zeros or a dead layer would get gradients of 1e7 and more. Here values
are the published ones everywhere; the gradient is theirs where n >= `least`, and shrinks with n below.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-3  # of a length of activations; ordinary ones are far above
LEAST_GRADIENT = 1e-8  # of a length of gradients, which are small by nature
LEAST_DEVIATION = 0.1  # of logits; those of a fresh linear layer deviate by more
EXACT_UP_TO = 20.0  # temperature up to which float32 holds five digits of a divergence


def faded(x: Tensor, size: Tensor, least: float) -> Tensor:
    """x, with its gradient multiplied by size / least where size < least; `size` is broadcast over x and gets no gradient."""
    share = (size.detach() / least).clamp(max=1)
    return share * x + (1 - share) * x.detach()


def unit(x: Tensor, dim: int = 1, least: float = LEAST) -> Tensor:
    """x at unit length along `dim`; zeros stay zeros, with a gradient of zero."""
    size = torch.linalg.vector_norm(x.detach(), dim=dim, keepdim=True)
    return F.normalize(faded(x, size, least), dim=dim)


def varied(logits: Tensor, dim: int = 1) -> Tensor:
    """Logits whose gradient fades where they are constant along `dim`: before a division by their deviation."""
    return faded(logits, logits.detach().std(dim, keepdim=True, correction=0), LEAST_DEVIATION)


def spread(x_BD: Tensor) -> Tensor:
    """Embeddings (B, D) whose gradient fades where the whole batch is one point: before a division by a mean or largest distance."""
    centred_BD = x_BD.detach() - x_BD.detach().mean(0)
    return faded(x_BD, torch.linalg.vector_norm(centred_BD, dim=1).mean(), LEAST)


def exact(temperature: float, *logits: Tensor) -> tuple[Tensor, ...]:
    """The logits in float64 where the temperature is high: distributions are nearly equal then, and T^2 enlarges what rounding leaves."""
    return tuple(x.double() for x in logits) if temperature > EXACT_UP_TO else logits


def divergence(log_s: Tensor, log_t: Tensor) -> Tensor:
    """Terms whose sum over the classes is KL(t || s). In float64 (of `exact`) they are t (d + e^-d - 1), d = log t - log s.

    They differ from t d by s - t, which sums to 0. None is negative, and equal distributions leave no rounding for T^2 to enlarge.
    """
    if log_t.dtype != torch.float64:
        return F.kl_div(log_s, log_t, reduction="none", log_target=True)
    d, t = log_t - log_s, log_t.exp()
    near = d.clamp(-1, 1)
    return torch.where(d.abs() < 1, t * (near + torch.expm1(-near)), t * d + log_s.exp() - t)


def tempered_kl(s: Tensor, t: Tensor, temperature: float, dim: int = 1) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)) summed along `dim`, in the logits' own precision."""
    given = s.dtype
    s, t = exact(temperature, s, t)
    log_s, log_t = (s / temperature).log_softmax(dim), (t / temperature).log_softmax(dim)
    return (temperature**2 * divergence(log_s, log_t).sum(dim)).to(given)
