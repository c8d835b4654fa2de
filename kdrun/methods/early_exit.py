"""Early exit. Liu, Zhou, Wang, Zhao, Deng, Ju: FastBERT: a Self-distilling BERT with Adaptive Inference Time, ACL 2020,
https://arxiv.org/abs/2004.02178."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Stage, Terms
from kdrun.methods.bounded import tempered_kl
from kdrun.methods.checks import check_within
from kdrun.methods.speedup import seconds_of, some_batches, work
from kdrun.methods.taps import Output

THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the curve in the record, beside the method's own
BATCH, SAMPLES, ALONE = (
    32,
    128,
    24,
)  # of the measured times: samples in a batch, in all, and of the times of one sample at a time


def branch_divergence(branches_BK: Sequence[Tensor], t_BK: Tensor) -> Tensor:
    """The sum over branches of KL(softmax(t) || softmax(branch)), each the mean over the batch, at temperature 1 (the paper's loss).

    The direction of the divergence is that of the authors' code (nn.KLDivLoss of the branch's log-probabilities).
    """
    losses = [tempered_kl(s_BK, t_BK, 1.0).mean() for s_BK in branches_BK]
    return sum(losses[1:], losses[0])


@METHODS.register(name="early_exit")
class EarlyExit(Method):
    """Early exit: a classifier after every layer learns what the last one says; sentences that are sure leave the batch.

    Loss: sum over branches of KL(softmax(teacher) || softmax(branch)), mean over B, no labels. The student has the teacher's
    architecture and weights (student.init_from=teacher) and exits (student.exits=true); only its exits learn. Its score is that of
    the model that a user runs: a sentence leaves after the first layer whose branch has an entropy below `threshold` (a share of log K;
    the paper's `Speed`); with 0 nobody leaves. The record has a curve: scores and measured speed-ups at several thresholds.
    A branch reads the output of its layer. The paper's branches have a narrow self-attention; see kdrun/tasks/text/models/exits.py.
    """

    family = "transformers"
    paper = "Liu et al., 2020"
    needs_classes = True
    sequences = True

    @classmethod
    def choose_taps(
        cls,
        taps: tuple[list[str], list[str]],
        settings: Mapping[str, Any],
        student: nn.Module,
        teacher: nn.Module | None,
    ) -> tuple[list[str], list[str]]:
        """Every branch of the student."""
        return [f"exit{number + 1}" for number in range(len(_exits(student)))], []

    def build(self, pair: Pair, *, threshold: float) -> None:
        self.threshold = check_within("early_exit.threshold", threshold, 0, 1, "0 is the whole model")
        assert pair.teacher is not None
        _check_alike(pair.student.module, pair.teacher.module)
        self.run, self.models = pair.run, (pair.student.module, pair.teacher.module)
        _exits(pair.student.module).threshold = threshold

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        return [Stage("distil", self.branches, [_exits(pair.student.module)], distil.evaluates)]

    def ready(self) -> None:
        _check_same(*self.models)

    def branches(self, batch: Batch) -> tuple[Output, Terms]:
        student, teacher = self.run(batch)
        return student, {"branches": branch_divergence(student.taps, teacher.logits)}

    def details(
        self, student: nn.Module, teacher: nn.Module | None, test: Any, score: Callable[[nn.Module], float]
    ) -> dict[str, Any]:
        """The curve: at each threshold the score on the test set, the share of sentences that leave after each layer, and the speed-up.

        Scores and shares are of the whole test set; seconds are medians of passes over a part of it, the models in turn, one thread.
        `speedups`: the teacher's seconds over the student's, in batches; `alone`: one sample at a time; `over_full`: the seconds of the
        student without exits over its own; `flops_share`: its floating-point operations over the teacher's, in batches.
        """
        assert teacher is not None
        exits, thresholds = _exits(student), sorted({*THRESHOLDS, self.threshold})
        scores, layers = [], []
        try:
            for threshold in thresholds:
                exits.threshold = threshold
                exits.count()
                scores.append(score(student))
                left = exits.count() if threshold else [*[0] * (exits.layers - 1), 1]
                layers.append([count / sum(left) for count in left])

            def at(threshold: float) -> Callable[[Any], Any]:
                def run(x: Any) -> Any:
                    exits.threshold = threshold
                    return student(x)

                return run

            models: list[Callable[[Any], Any]] = [teacher, *map(at, thresholds)]
            batches = some_batches(test, BATCH, SAMPLES)
            seconds, alone = seconds_of(models, batches), seconds_of(models, some_batches(test, 1, ALONE))
            flops = [work(model, batches) for model in models]
        finally:
            exits.threshold = self.threshold
        full = thresholds.index(0.0) + 1
        return {
            "threshold": self.threshold, "thresholds": thresholds, "scores": scores,
            "speedups": [seconds[0] / own for own in seconds[1:]], "over_full": [seconds[full] / own for own in seconds[1:]],
            "alone": [alone[0] / own for own in alone[1:]],
            "flops_share": [own / flops[0] for own in flops[1:]], "layers": layers, "teacher_score": score(teacher),
            "batch_size": BATCH, "threads": 1,
        }  # fmt: skip


def _exits(student: nn.Module) -> Any:
    """The student's exits (kdrun.tasks.text.models.exits.Exits)."""
    exits = getattr(student, "exits", None)
    if exits is None:
        raise KdrunError(
            f"early_exit trains the exits of a model, and the student {type(student).__name__} has none; say student.exits=true "
            "with a model of text"
        )
    return exits


def _check_same(student: nn.Module, teacher: nn.Module) -> None:
    """KdrunError unless the student has the teacher's weights: they stay as they are."""
    own = student.state_dict()
    if not all(torch.equal(own[name], value) for name, value in teacher.state_dict().items()):
        raise KdrunError(
            "early_exit trains exits alone, and the student's other weights are not the teacher's; say student.init_from=teacher "
            "without student.layers and student.init"
        )


def _check_alike(student: nn.Module, teacher: nn.Module) -> None:
    """KdrunError unless every weight of the teacher has its place in the student, and the teacher has no exits."""
    if hasattr(teacher, "exits"):
        raise KdrunError(
            "early_exit teaches the student's exits, and the teacher has exits, too; leave out teacher.exits"
        )
    own = {name: tuple(value.shape) for name, value in student.state_dict().items()}
    for name, value in teacher.state_dict().items():
        if own.get(name) != tuple(value.shape):
            raise KdrunError(
                f"early_exit needs a student with the teacher's layers and widths, and the teacher's {name} has no place in it: say "
                "student=TEACHER student.init_from=teacher student.exits=true with the teacher's own settings"
            )
