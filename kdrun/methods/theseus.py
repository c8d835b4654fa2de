"""Module replacing. Xu, Zhou, Ge, Wei, Zhou: BERT-of-Theseus: Compressing BERT by Progressive Module Replacing, EMNLP 2020,
https://arxiv.org/abs/2002.02925."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Stage, Terms
from kdrun.methods.checks import check_choice, check_within
from kdrun.methods.taps import Output

LEAST = 0.1  # a lower rate would hardly ever train anything


def replacing_rate(progress: float, rate: float, full_at: float | None) -> float:
    """p at this share of the stage: `rate`, or the line min(1, rate + k * progress), which is 1 at the share `full_at`."""
    if full_at is None:
        return rate
    return min(1.0, rate + (1 - rate) * progress / full_at)


class Mixed(nn.Module):
    """A module of the hybrid without chance: scale * (p successor(x) + (1 - p) predecessor(x)); other arguments go to both."""

    def __init__(self, successor: nn.Module, predecessor: Sequence[nn.Module], p: float, scale: float):
        super().__init__()
        self.successor, self.predecessor, self.p, self.scale = successor, nn.ModuleList(predecessor), p, scale

    def forward(self, x_BTD: Tensor, *args: Any, **kwargs: Any) -> Any:
        new, old_BTD = self.successor(x_BTD, *args, **kwargs), x_BTD
        for layer in self.predecessor:
            old_BTD = _hidden(layer(old_BTD, *args, **kwargs))
        mixed_BTD = self.scale * (self.p * _hidden(new) + (1 - self.p) * old_BTD)
        return mixed_BTD if isinstance(new, Tensor) else (mixed_BTD, *new[1:])


@METHODS.register
class Theseus(Method):
    """Module replacing: layers of the student stand in for groups of the teacher's layers, at random, and learn to fit in.

    Stage `replace`: the teacher (predecessor) has n layers, the student (successor) m, and student layer i stands for the teacher's
    layers i n/m to (i + 1) n/m - 1. In each step, each of the m modules is the student's with probability p, else the teacher's.
    Loss: the supervised loss of this hybrid. Only the student's layers learn; the teacher's embeddings, other layers and classifier
    are frozen and in eval mode. p is `rate`, or rises in a line from `rate` to 1 at the share `full_at` of the stage. A step that replaces
    nothing changes nothing. Stage `distil`: the student alone on the supervised loss. Start the student from the teacher
    (student.init_from=teacher), so that it has the hybrid's embeddings and classifier.
    variant "proportional": no chance, p student(x) + (1 - p) teacher(x), the ProportionalAdd of Knowledge-Distillation-NLP without its
    second halving; "code": with it.
    """

    family = "transformers"
    paper = "Xu et al., 2020"
    distils = False
    sequences = True

    def build(self, pair: Pair, *, variant: str, rate: float, full_at: float | None) -> None:
        known = {
            "replace": "a random choice for each module and batch", "proportional": "p student + (1 - p) teacher",
            "code": "half of proportional",
        }  # fmt: skip
        self.variant = check_choice("theseus", "variant", variant, known)
        self.rate = check_within("theseus.rate", rate, LEAST, 1, "the probability of the student's layers")
        self.full_at = full_at
        if full_at is not None:
            check_within(
                "theseus.full_at", full_at, 0.01, 1, "the share of the stage after which p is 1; null: p stays"
            )
        assert pair.teacher is not None
        self.run_teacher, self.supervised = pair.teacher.run, pair.supervised
        # A tuple: the models are no submodules of a method.
        self.frame, self.student = (pair.teacher.module,), (pair.student.module,)
        self.successors = tuple(_blocks("student", pair.student.module))
        layers = list(_blocks("teacher", pair.teacher.module))
        self.groups = _groups(layers, len(self.successors))
        _check_widths(pair.student.module, pair.teacher.module)

    def ready(self) -> None:
        student, own, frame = self.student[0], self.student[0].state_dict(), self.frame[0].state_dict()
        for name, value in own.items():
            if not name.startswith(f"{student.blocks}.") and not (name in frame and torch.equal(frame[name], value)):
                raise KdrunError(
                    f"theseus trains layers between the teacher's embeddings and classifier, and the student has others ({name}); "
                    "say student.init_from=teacher"
                )

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        return [Stage("replace", self.replace, [_blocks("student", pair.student.module)], may_skip=True), distil]

    def replace(self, batch: Batch) -> tuple[Output, Terms]:
        """The hybrid of this step on a batch, and its supervised loss."""
        p = replacing_rate(self.progress, self.rate, self.full_at)
        with replaced(self.frame[0], self._hybrid(p)):
            output = self.run_teacher(batch["input"])
        self.log("rate", p)
        return output, {"hybrid": self.supervised(output.logits, batch)}

    def _hybrid(self, p: float) -> list[nn.Module]:
        """The layers of this step."""
        pairs = list(zip(self.successors, self.groups, strict=True))
        if self.variant != "replace":
            scale = 0.5 if self.variant == "code" else 1.0
            return [Mixed(successor, group, p, scale) for successor, group in pairs]
        draws = torch.rand(len(pairs), generator=self.generator, device=self.generator.device) < p
        self.log("replaced", draws.float().mean())
        chosen = [[successor] if new else group for new, (successor, group) in zip(draws.tolist(), pairs, strict=True)]
        return [layer for layers in chosen for layer in layers]


@contextmanager
def replaced(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """The model with these layers in place of its own."""
    parent, _, name = str(model.blocks).rpartition(".")
    owner = model.get_submodule(parent)
    own = getattr(owner, name)
    setattr(owner, name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(owner, name, own)


def _hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _blocks(role: str, model: nn.Module) -> Any:
    """The list of a model's layers."""
    path = getattr(model, "blocks", None)
    if path is None:
        raise KdrunError(
            f"theseus replaces layers of an encoder, and the {role} {type(model).__name__} declares no list of them (`blocks`); "
            "take a model of text, or another method"
        )
    return model.get_submodule(path)


def _groups(layers: list[nn.Module], modules: int) -> tuple[list[nn.Module], ...]:
    """The layers as `modules` groups of one size."""
    size, rest = divmod(len(layers), modules)
    if rest or not size:
        sizes = [str(count) for count in range(1, len(layers) + 1) if len(layers) % count == 0]
        raise KdrunError(
            f"theseus needs groups of one size: the teacher's {len(layers)} layers do not divide by the student's {modules}; "
            f"say student.layers={' or '.join(sizes)}"
        )
    return tuple(layers[start : start + size] for start in range(0, len(layers), size))


def _check_widths(student: nn.Module, teacher: nn.Module) -> None:
    """KdrunError unless both models' hidden states have one width."""
    widths = [getattr(getattr(model, "config", None), "hidden_size", None) for model in (student, teacher)]
    if widths[0] != widths[1]:
        raise KdrunError(
            f"theseus needs layers of one width: the student's hidden_size is {widths[0]}, the teacher's {widths[1]}; "
            "cut the student from the teacher (student.layers, student.init_from=teacher)"
        )
