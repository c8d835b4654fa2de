"""Weights that are measured before training: `weights.<term>: auto(SHARE)`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kdrun.engine.loop import Training, enter
from kdrun.engine.shares import gradients, norm, students
from kdrun.errors import KdrunError
from kdrun.methods.base import Stage
from kdrun.methods.distillation import Distillation

BATCHES = 8  # of the first epoch, that a weight is measured on


def measured_weights(training: Training, shares: Mapping[str, float]) -> dict[str, float]:
    """The weight of each term with `auto(SHARE)`: term -> weight, for `shares` term -> SHARE.

    weight = SHARE * weight_task * mean ||g_task|| / mean ||g_term||; means over the first BATCHES batches of epoch 0, or fewer where
    the epoch has fewer. g are gradients of the unweighted losses, ||.|| is the Euclidean norm over all shared parameters together:
    those of the student that the stage trains and both losses reach. A schedule multiplies the weight, so it is no part of it.

    Why parameters and not feature maps: every task has them. A method may compare any taps, several of them, outputs or gradients,
    and there is then no single map that both losses pass through. The layers behind a tap, which the task alone reaches, would make
    the task's gradient look larger than it is where the term pulls, so they do not count.

    A term is measured in the first stage that has it, with the weights that the student begins with. The distillation is afterwards
    as it was before: weights, buffers, modes and random streams. The same call gives the same bits.
    KdrunError where a gradient is 0 or not finite.
    """
    weights: dict[str, float] = {}
    with _put_back(training.distillation):
        for number, stage in enumerate(training.distillation.stages):
            wanted = {term: share for term, share in shares.items() if term not in weights}
            if wanted:
                norms = _norms(training, number, stage, wanted)
                weights |= {
                    term: _weight(term, shares[term], training.weights["task"], pairs) for term, pairs in norms.items()
                }
    for term in shares:
        if term not in weights:
            raise KdrunError(
                f"{_cannot(term, shares[term])}: none of the first {BATCHES} batches has this term; {_number(term)}"
            )
    return weights


def check_shares(shares: Mapping[str, float], task: float, stages: Mapping[str, Sequence[str]]) -> None:
    """KdrunError for an `auto(SHARE)` with nothing to be a share of.

    `task`: the weight of the task's loss. `stages`: the terms of each stage, in the order of training.
    """
    for term, share in shares.items():
        stage = next((name for name, terms in stages.items() if term in terms), None)
        if stage is not None and "task" not in stages[stage]:
            why = f"it is a share of the task's gradient, and stage {stage}, the first with this term, has no task loss"
            raise KdrunError(f"{_cannot(term, share)}: {why}; {_number(term)}")
        if task == 0:
            why = "it is a share of the task's gradient, and the task's loss has weight 0"
            raise KdrunError(f"{_cannot(term, share)}: {why}; {_number(term)}")


def in_words(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The measured weights for the screen; `measured` as in the record: term -> share and weight."""
    parts = (f"{term} {one['weight']:.4g} (auto({one['share']:g}))" for term, one in measured.items())
    return f"weights  {', '.join(parts)}"


def _norms(
    training: Training, number: int, stage: Stage, wanted: Mapping[str, float]
) -> dict[str, list[tuple[float, float]]]:
    """Term -> the norms of the task's gradient and of its own, for each of the first batches; for the wanted terms of this stage."""
    distillation = training.distillation
    enter(distillation, stage)
    distillation.begin_epoch(number, 0)
    parameters = students(stage, distillation.student)
    norms: dict[str, list[tuple[float, float]]] = {}
    for batch in islice(training.train.epoch(0), BATCHES):
        _, terms = distillation(batch, stage)
        mine = [term for term in wanted if term in terms and terms[term].requires_grad]
        if not mine or "task" not in terms or not terms["task"].requires_grad:
            continue
        of_task = gradients(terms["task"], parameters)
        for term in mine:
            pairs = zip(of_task, gradients(terms[term], parameters), strict=True)
            shared = [(a, b) for a, b in pairs if a is not None and b is not None]
            task, own = norm([a for a, _ in shared]), norm([b for _, b in shared])
            norms.setdefault(term, []).append((task.item(), own.item()))
    return norms


def _weight(term: str, share: float, task: float, norms: Sequence[tuple[float, float]]) -> float:
    """SHARE * weight_task * mean of the task's norms / mean of the term's norms. KdrunError where that says nothing."""
    of_task, of_term = (sum(values) / len(norms) for values in zip(*norms, strict=True))
    for name, value in ((term, of_term), ("task", of_task)):
        if value == 0 or not math.isfinite(value):
            what = "0" if value == 0 else "not finite"
            raise KdrunError(
                f"{_cannot(term, share)}: in the first {len(norms)} batches the gradient of {name} is {what} in the student's "
                f"parameters that both losses reach; {_number(term)}"
            )
    return share * task * of_task / of_term


def _cannot(term: str, share: float) -> str:
    return f"{_key(term)}=auto({share:g}) cannot be measured"


def _number(term: str) -> str:
    return f"say a number, as in {_key(term)}=1"


def _key(term: str) -> str:
    method, _, name = term.partition(".")
    return f"method.{method}.weights.{name}"


@contextmanager
def _put_back(distillation: Distillation) -> Iterator[None]:
    """Put back weights, all buffers, modes, what learns, and random streams. What methods have logged meanwhile is forgotten."""
    tensors: dict[Tensor, Tensor] = {
        t: t.detach().clone() for t in [*distillation.parameters(), *distillation.buffers()]
    }
    modes = [(module, module.training) for module in distillation.modules()]
    learns = [(parameter, parameter.requires_grad) for parameter in distillation.parameters()]
    streams = [(method.generator, method.generator.get_state()) for method in distillation.methods.values()]
    with torch.random.fork_rng(sorted({t.device.index for t in tensors if t.is_cuda})):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in tensors.items():
                    tensor.copy_(value)
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in learns:
                parameter.requires_grad_(requires_grad)
            for generator, state in streams:
                generator.set_state(state)
            distillation.logged()
