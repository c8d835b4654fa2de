"""One step of every stage on a few samples, without learning, before anything is written: what cannot work stops here.

It also measures how much of the student's gradient comes from each term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kdrun.config.checks import check_recipe
from kdrun.config.explain import LABEL_LOSSES
from kdrun.config.schema import Recipe
from kdrun.engine.loop import enter, stage_recipe, weight_of, weighted
from kdrun.engine.shares import gradients, norm, trained
from kdrun.errors import KdrunError, choices
from kdrun.methods.base import Batch, Stage
from kdrun.methods.distillation import Distillation

TRIES = 64  # at a step that has a gradient, in a stage that may skip steps
SAMPLES = 8  # that a stage is rehearsed on, or fewer where training will meet a smaller batch


@dataclass
class Share:
    """One term on the rehearsal's samples: `norm` is that of weight * gradient in the student (else in what the stage trains)."""

    stage: str
    term: str
    weight: float
    value: float
    norm: float
    share: float = 0.0  # of the norms of all terms of its stage


@dataclass
class Rehearsal:
    """What a rehearsal showed: each term's share of the gradient, and what the user should know before training."""

    shares: list[Share] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self) -> str | None:
        """The shares of the last stage in one line; None for a single term, which has the whole gradient."""
        last = [share for share in self.shares if share.stage == self.shares[-1].stage and share.weight]
        parts = ", ".join(f"{share.term} {100 * share.share:.0f} %" for share in last)
        return f"gradient {parts}   (of the student's at the start)" if len(last) > 1 else None

    def terms(self) -> dict[str, list[str]]:
        """The terms with a gradient, by stage."""
        terms: dict[str, list[str]] = {}
        for share in self.shares:
            terms.setdefault(share.stage, []).append(share.term)
        return terms

    def table(self) -> list[str]:
        """A line for each term of each stage."""
        rows = [("stage", "term", "weight", "value", "gradient", "share")]
        rows += [
            (s.stage, s.term, f"{s.weight:g}", f"{s.value:.4g}", f"{s.norm:.4g}", f"{100 * s.share:.1f} %")
            for s in self.shares
        ]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(
                [
                    row[0].ljust(wide[0]),
                    row[1].ljust(wide[1]),
                    *(c.rjust(w) for c, w in zip(row[2:], wide[2:], strict=True)),
                ]
            )
            for row in rows
        ]


def rehearse(
    distillation: Distillation,
    train: Any,  # kdrun.tasks.base.Loader
    recipe: Recipe,
    weights: Mapping[str, float],
    dataset: str,
    first: Callable[[Batch, int], Batch],  # kdrun.tasks.base.Task.first
) -> Rehearsal:
    """Forward and backward of every stage on the first samples of epoch 0; weights and buffers are put back.

    Raises KdrunError for a term without a weight or without a gradient, a weight without a term, a layer of a method that no
    loss uses, a batch key that is missing, and a last batch that is too small for the model.
    """
    before = {name: value.clone() for name, value in distillation.state_dict().items()}
    batch = next(iter(train.epoch(0)))
    _check_needs(distillation, batch, dataset)
    few = min(train.smallest, SAMPLES)
    try:
        return _Pass(distillation, recipe, weights).run(first(batch, few))
    except KdrunError:
        raise
    except Exception as error:
        more = min(len(batch["index"]), SAMPLES)
        if more == few:
            raise
        distillation.load_state_dict(before)
        _Pass(distillation, recipe, weights).run(first(batch, more))  # raises again if the batch is not too small
        raise KdrunError(
            f"the smallest batch of an epoch has {few} of the {len(train.split):,} training samples, and so few do not work: "
            f"{' '.join(str(error).split())}. Say recipe.batch_size={_fitting(len(train.split), train.batch_size, more)}"
        ) from error
    finally:
        distillation.load_state_dict(before)


def _fitting(samples: int, batch_size: int, least: int) -> int:
    """The batch size nearest to `batch_size` whose last batch has `least` samples or more."""
    sizes = sorted(range(least, samples + 1), key=lambda size: abs(size - batch_size))
    return next(size for size in sizes if samples % size == 0 or samples % size >= least)


def _check_needs(distillation: Distillation, batch: Batch, dataset: str) -> None:
    """What a method wants to find in a batch, the dataset must give."""
    for name, method in distillation.methods.items():
        for key in method.needs:
            if key not in batch:
                raise KdrunError(
                    f"method '{name}' needs '{key}' in its batches, which dataset {dataset} does not give (it gives "
                    f"{', '.join(sorted(batch))}); choose another dataset, or another method"
                )


class _Pass:
    """One rehearsal: collects over the stages which terms there are and which parameters they reach."""

    def __init__(self, distillation: Distillation, recipe: Recipe, weights: Mapping[str, float]):
        self.distillation, self.recipe, self.weights = distillation, recipe, weights
        self.student = set(distillation.student.parameters())
        self.names = {parameter: name for name, parameter in distillation.named_parameters()}
        self.terms: set[str] = set()
        self.trained: set[nn.Parameter] = set()
        self.used: set[nn.Parameter] = set()
        self.reaches_student: dict[
            str, bool
        ] = {}  # method -> whether any of its terms does, in a stage that trains the student
        self.shares: list[Share] = []

    def run(self, batch: Batch) -> Rehearsal:
        for number, stage in enumerate(self.distillation.stages):
            check_recipe(f"stage {stage.name}", stage_recipe(self.recipe, stage))
            self._stage(number, stage, batch)
        self._check_weights()
        self._check_methods()
        return Rehearsal(self.shares, self._notes())

    def _stage(self, number: int, stage: Stage, batch: Batch) -> None:
        enter(self.distillation, stage)
        self.distillation.begin_epoch(number, 0)
        _, terms = self.distillation(batch, stage)
        for _ in range(
            TRIES if stage.may_skip else 0
        ):  # a step without gradient says nothing; the next one may have it
            if any(value.requires_grad for value in terms.values()):
                break
            _, terms = self.distillation(batch, stage)
        self.terms.update(terms)
        if not terms:
            raise KdrunError(f"stage {stage.name} has no loss: there is nothing to train on")
        weighted(
            terms, {term: weight_of(self.weights, term) for term in terms}
        )  # every term has a weight, and one is not 0
        learning = trained(stage)
        self.trained.update(learning)
        if not learning:
            raise KdrunError(f"stage {stage.name} has nothing to train: every parameter of it is frozen by its builder")
        measured = [p for p in learning if p in self.student] or learning
        shares = []
        for term, value in terms.items():
            weight = self.weights[term]
            if not value.requires_grad:
                if weight != 0:
                    raise KdrunError(_without_gradient(term, stage.name))
                continue
            of = dict(zip(learning, gradients(value, learning), strict=True))
            self.used.update(p for p, gradient in of.items() if gradient is not None)
            own = [gradient for p in measured if (gradient := of[p]) is not None]
            shares.append(Share(stage.name, term, weight, value.item(), abs(weight) * norm(own).item()))
            method = term.partition(".")[0]
            if term != "task" and weight != 0 and measured[0] in self.student:
                self.reaches_student[method] = self.reaches_student.get(method, False) or bool(own)
        total = sum(share.norm for share in shares)
        for share in shares:
            share.share = share.norm / total if total else 0.0
        self.shares += shares

    def _check_weights(self) -> None:
        unused = sorted(set(self.weights) - self.terms - {"task"})
        if unused:
            method, _, term = unused[0].partition(".")
            known = [t.partition(".")[2] for t in self.terms if t.startswith(f"{method}.")]
            hint = "; the cross-entropy with the labels is task" if term in LABEL_LOSSES else ""
            raise KdrunError(
                f"method.{method}.weights has '{term}', which is no term of it. {choices(term, [*known, 'task'])}{hint}"
            )

    def _check_methods(self) -> None:
        """Every method teaches the student something, and its layers are used."""
        for method, reaches in self.reaches_student.items():
            if not reaches:
                raise KdrunError(
                    f"method {method}: no gradient of its terms reaches the student, so it would learn nothing from it. "
                    "Does its loss detach the student's tensors, or tap what comes before every layer that learns?"
                )
        peers: set[nn.Parameter] = set()
        for model in (m for method in self.distillation.methods.values() for m in method.evaluates().values()):
            peers.update(model.parameters())
        unused = [self.names[p] for p in self.trained - self.used - self.student - peers]
        if unused:
            _, method, layer = sorted(unused)[0].split(".", 2)
            raise KdrunError(
                f"method {method} builds '{layer}' and no loss depends on it ({len(unused)} such parameter"
                f"{'s' * (len(unused) > 1)}). Use it in loss, or do not build it"
            )

    def _notes(self) -> list[str]:
        """What is sound, and may not be what the user meant."""
        model, notes = self.distillation.student.module, []
        frozen = sum(p.numel() for p in self.distillation.frozen if p in self.student)
        if frozen:
            whole = sum(p.numel() for p in model.parameters())
            notes.append(f"student  {frozen:,} of {whole:,} parameters are frozen, as its builder left them")
        unused = sorted(
            self.names[p].removeprefix("student.module.") for p in (self.trained & self.student) - self.used
        )
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            notes.append(
                f"student  no loss depends on {', '.join(unused[:3])}{more}: built and never used, so it stays as it begins"
            )
        return notes


def _without_gradient(term: str, stage: str) -> str:
    return (
        f"term {term} of stage {stage} has no gradient: nothing would be learned from it. Does it come from a detached tensor, "
        "from torch.no_grad(), or from a number (.item())?"
    )
