"""How much of the student's gradient each term gives, and the weights that follow from it (`weights.<term>: auto(SHARE)`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.engine.loop import Training, enter, weight_of
from kdrun.errors import KdrunError
from kdrun.methods.base import Stage, Terms
from kdrun.methods.distillation import Distillation

BATCHES = 8  # of the first epoch, that an auto weight is measured on
Gradients = list[Tensor | None]


def measured_weights(training: Training, shares: Mapping[str, float]) -> dict[str, float]:
    """The weight of each term with `auto(SHARE)`: term -> weight, for `shares` term -> SHARE.

    weight = SHARE * weight_task * mean ||g_task|| / mean ||g_term||; means over the first BATCHES batches of epoch 0, or fewer where
    the epoch has fewer. g are gradients of the unweighted losses, ||.|| is the Euclidean norm over all shared parameters together:
    those of the student that both losses reach and the stage trains. A schedule multiplies the weight, so it is no part of it.

    Why parameters and not feature maps: every task has them, a method may compare any taps, several of them, outputs or gradients,
    and there is then no single map that both losses pass through. A classifier's last layer, which only the labels reach, would make
    the task's gradient look larger than it is where the term pulls, so it does not count.

    A term is measured in the first stage that has it, with the weights that the student begins with. The distillation is afterwards
    as it was before: weights, buffers, modes and random streams. The same call gives the same bits.
    """
    weights: dict[str, float] = {}
    with _put_back(training.distillation):
        for number, stage in enumerate(training.distillation.stages):
            wanted = [term for term in shares if term not in weights]
            if wanted:
                weights |= _of_stage(training, number, stage, {term: shares[term] for term in wanted})
    missing = [term for term in shares if term not in weights]
    if missing:
        raise KdrunError(f"{_key(missing[0])}=auto({shares[missing[0]]:g}): no stage gives this term; say a number")
    return weights


def check_shares(shares: Mapping[str, float], weights: Mapping[str, float], stages: Mapping[str, Sequence[str]]) -> None:
    """KdrunError for an `auto(SHARE)` with nothing to be a share of. `stages`: the terms of each stage, as a rehearsal met them."""
    for term, share in shares.items():
        stage, terms = next(((name, terms) for name, terms in stages.items() if term in terms), (None, ()))
        if stage is None:
            continue  # the rehearsal says what is wrong with it
        if "task" not in terms:
            raise KdrunError(
                f"{_key(term)}=auto({share:g}) is a share of the task's gradient, and stage {stage}, where this term comes first, "
                f"has no task loss; say a number: {_key(term)}=1"
            )
        if weights["task"] == 0:
            raise KdrunError(
                f"{_key(term)}=auto({share:g}) is a share of the task's gradient, and the task loss has weight 0; say a number: "
                f"{_key(term)}=1"
            )


def shares_of(terms: Terms, weights: Mapping[str, float], stage: Stage, student: nn.Module) -> dict[str, float]:
    """Each term's share of the sum of the norms of weight * gradient in the student's parameters, at this step.

    In what the stage trains, where it does not train the student. The graph stays for the step's own backward pass, and no `.grad`
    is written, so training goes on with the same bits. Costs one backward pass for each term with a weight other than 0. Empty for a
    single term, which has the whole gradient, and where the gradient is 0 or not finite. Waits for the device.
    """
    weighed = [name for name, value in terms.items() if weights[name] != 0 and value.requires_grad]
    if len(weighed) < 2:
        return {}
    parameters = parameters_of(stage, student)
    norms = [abs(weights[name]) * _norm(_gradients(terms[name], parameters)) for name in weighed]
    values = torch.stack(norms).tolist()
    total = sum(values)
    if not (math.isfinite(total) and total > 0):
        return {}
    return {name: value / total for name, value in zip(weighed, values, strict=True)}


def parameters_of(stage: Stage, student: nn.Module) -> list[nn.Parameter]:
    """The student's parameters that the stage trains; all that it trains where none is the student's."""
    trained = list(dict.fromkeys(p for module in stage.trains for p in module.parameters() if p.requires_grad))
    own = set(student.parameters())
    return [p for p in trained if p in own] or trained


def line(shares: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """The measured weights for the screen."""
    parts = (f"{term} {weights[term]:.4g} (auto({share:g}))" for term, share in shares.items())
    return f"weights  {', '.join(parts)}"


def _of_stage(training: Training, number: int, stage: Stage, shares: Mapping[str, float]) -> dict[str, float]:
    """The weights of those terms of `shares` that the stage has."""
    distillation = training.distillation
    enter(distillation, stage)
    distillation.begin_epoch(number, 0)
    own = set(distillation.student.parameters())
    parameters = [p for p in parameters_of(stage, distillation.student) if p in own]
    norms: dict[str, list[tuple[float, float]]] = {}  # term -> of the task and of the term, for each batch
    for batch in islice(training.train.epoch(0), BATCHES):
        _, terms = distillation(batch, stage)
        wanted = [term for term in shares if term in terms and terms[term].requires_grad]
        if not wanted or not terms.get("task", torch.zeros(())).requires_grad:
            continue
        of_task = _gradients(terms["task"], parameters)
        for term in wanted:
            pair = zip(of_task, _gradients(terms[term], parameters), strict=True)
            both = [(a, b) for a, b in pair if a is not None and b is not None]
            of_both = torch.stack([_norm([a for a, _ in both]), _norm([b for _, b in both])]).tolist() if both else [0, 0]
            norms.setdefault(term, []).append((of_both[0], of_both[1]))
    task = weight_of(training.weights, "task")
    return {term: _weight(term, shares[term], task, pairs) for term, pairs in norms.items()}


def _weight(term: str, share: float, task: float, norms: Sequence[tuple[float, float]]) -> float:
    """SHARE * weight_task * mean of the task's norms / mean of the term's norms. KdrunError where that says nothing."""
    of_task, of_term = (sum(values) / len(norms) for values in zip(*norms, strict=True))
    batches = f"in the first {len(norms)} batches"
    way = f"{_key(term)}=auto({share:g}) cannot be measured; say a number: {_key(term)}=1"
    if not (math.isfinite(of_task) and math.isfinite(of_term)):
        raise KdrunError(f"the gradient of {term} or of the task is not finite {batches}, so {way}")
    for name, norm in ((term, of_term), ("task", of_task)):
        if norm == 0:
            raise KdrunError(f"the gradient of {name} is 0 {batches} in the student's parameters that both reach, so {way}")
    return share * task * of_task / of_term


def _gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> Gradients:
    """The gradient for each parameter, None for one that the value does not depend on."""
    return list(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)) if parameters else []


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """The Euclidean norm over several tensors, in float32; 0 for none."""
    norms = [gradient.detach().float().norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _key(term: str) -> str:
    method, _, name = term.partition(".")
    return f"method.{method}.weights.{name}"


@contextmanager
def _put_back(distillation: Distillation) -> Iterator[None]:
    """Put back weights, all buffers, modes, what learns, and random streams. What methods have logged meanwhile is forgotten."""
    tensors: dict[Any, Tensor] = {t: t.detach().clone() for t in [*distillation.parameters(), *distillation.buffers()]}
    modes = [(module, module.training) for module in distillation.modules()]
    learns = [(parameter, parameter.requires_grad) for parameter in distillation.parameters()]
    streams = {name: method.generator.get_state() for name, method in distillation.methods.items()}
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices):
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
            for name, state in streams.items():
                distillation.methods[name].generator.set_state(state)
            distillation.logged()
