"""The one interface: Method, Stage and the Distillation that runs them.

A method is an nn.Module that owns its layers and buffers and returns named, unweighted losses. A Distillation is a pair of
tapped models and the methods at work on them; composition is its only business. The loop knows stages and terms alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import KdrunError, choices
from kdrun.methods.taps import Output, Tapped, device_of, evaluate
from kdrun.seeds import stream

# input (a tensor, or a dict of tensors), label (B, ...), index (B,) int64: the row in the training set; mask where inputs are padded
Batch = Mapping[str, Any]
Terms = dict[str, Tensor]  # scalars in float32, unweighted


class Method(nn.Module):
    """What a student learns from a teacher. Owns its own layers and buffers; the two models belong to the Distillation.

    Subclasses give `loss`; `build` when there are hyper-parameters or layers; the rest when the method asks for it.
    """

    family = "yours"  # logits | features | relations | gradients | online | labels: how `kdrun methods` groups them
    paper = ""  # authors and year; title and link stand on the first line of the file
    # none | outputs (frozen) | gradients (inputs require grad) | fresh (pair.fresh: peers, trained too)
    teacher = "outputs"
    distils = True  # False: all of it happens in its own stages, and the student's is the supervised loss alone
    needs: tuple[str, ...] = ("label",)  # batch keys it must have
    needs_classes = False  # True: labels and outputs must be classes; it says nothing of numbers to be predicted
    generator: torch.Generator  # the method's own random stream, on the device, reseeded every epoch
    optimizer: Mapping[str, float] = MappingProxyType(
        {}
    )  # lr and weight_decay of its own layers, where not the recipe's
    progress = 0.0  # how far training of the stage is, from 0 to 1, at this step

    def build(self, pair: Pair) -> None:
        """Keep hyper-parameters (keyword-only arguments, whose values the yaml gives) and make layers sized by `pair`."""

    def loss(self, student: Output, teacher: Any, batch: Batch) -> Terms:
        """Unweighted scalars by term. `teacher` is an Output, or None where `Method.teacher` is none or fresh."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(student, teacher, batch)")

    def log(self, name: str, value: float | Tensor) -> None:
        """Show a number in TensorBoard at the next logging step, as <stage>/log/<method>.<name>. A scalar tensor is not waited for."""
        self.__dict__.setdefault("_logged", {})[name] = value.detach() if isinstance(value, Tensor) else value

    def after_step(self) -> None:
        """Called after the optimiser's step: memory banks (changing them inside `loss` breaks the backward pass)."""

    def task(self, output: Output, batch: Batch, supervised: Callable[[Any, Batch], Tensor]) -> Tensor | None:
        """Replaces the supervised loss where it returns one (label smoothing)."""
        return None

    def evaluates(self) -> dict[str, nn.Module]:
        """Models to evaluate after each epoch beside the student, by name (peers)."""
        return {}

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        """The stages of training; `distil`, the default, trains the student and the methods' layers on every loss."""
        return [distil]


@dataclass
class Stage:
    """A phase of training with an optimiser of its own. The key of its settings is method.<name>.stages.<stage>."""

    name: str
    terms: Callable[[Batch], tuple[Output, Terms]] | None  # None: the supervised loss and the losses of every method
    trains: list[nn.Module]  # exactly the modules that learn: thawed, in train mode; all else is frozen, in eval mode
    # After an epoch; the one called "student" is selected on.
    evaluates: dict[str, nn.Module] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # overrides of the recipe; epochs is a share of its epochs
    owner: str = ""  # the method whose own stage it is; set by the Distillation, which puts it before the stage's terms


@dataclass
class Side:
    """One model of the pair as a method sees it at construction: the shapes of its taps, of its logits, and its parts."""

    shapes: list[tuple[int, ...]]  # per tap, in the order asked for, with a batch of 2: (2, C, H, W) or (2, D)
    logits: tuple[int, ...]  # of the output, with a batch of 2
    until: Callable[[str], list[nn.Module]]  # tap -> the modules that fire before it


@dataclass
class DataFacts:
    """What a method may know of the training data."""

    train_n: int  # rows of the training set before any split: the size of a memory bank
    labels: Tensor  # (train_n, ...); -1 where a row belongs to the holdout
    classes: int  # numbers that a model gives for one sample
    example: Any  # two inputs
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # of the task; of images: size, mean, std

    @property
    def are_classes(self) -> bool:
        """Whether labels are classes, one for each sample."""
        return not self.labels.is_floating_point() and self.labels.ndim == 1


@dataclass
class Pair:
    """What a method is built from."""

    student: Side
    teacher: Side | None
    data: DataFacts
    taps: tuple[list[str], list[str]]  # names on the student's and the teacher's side
    run: Callable[[Batch], tuple[Output, Any]]  # both models on a batch, as the method's own stages need it
    run_teacher: Callable[[Batch], Output]  # the teacher alone
    # A new peer with a random stream of its own: the teacher's architecture, or the student's.
    fresh: Callable[[int], Tapped]
    supervised: Callable[[Any, Batch], Tensor]  # the task's loss: output, batch -> mean over the batch


class Distillation(nn.Module):
    """A pair of tapped models and the methods at work on them.

    The frozen teacher is no submodule: every weight stands in the state dict once, and the teacher's not at all.
    `methods` maps a name to (class, settings); settings are the yaml's: taps, stages and hyper-parameters.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        methods: Mapping[str, tuple[type[Method], Mapping[str, Any]]],
        *,
        data: DataFacts,
        task: Callable[[Any, Batch], Tensor],
        seed: int = 0,
        autocast: torch.dtype | None = None,
        fresh: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.seed, self.supervised, self._data = seed, task, data
        self._differentiates = [name for name, (cls, _) in methods.items() if cls.teacher == "gradients"]
        self.wants_gradients = bool(self._differentiates)
        self._taps = {name: _tap_names(name, settings.get("taps") or []) for name, (_, settings) in methods.items()}
        self._slices = _slices(self._taps)
        self.student = Tapped(student, [tap for taps, _ in self._taps.values() for tap in taps], autocast)
        self.student.second = self.wants_gradients
        self._teacher: list[Tapped] = []
        if teacher is not None:
            tapped = Tapped(teacher, [tap for _, taps in self._taps.values() for tap in taps], autocast)
            tapped.second = self.wants_gradients
            self._teacher.append(tapped.requires_grad_(False).eval())
        self._make_peer = lambda i: Tapped(_required(fresh)(i), (), autocast)
        self.methods: Mapping[str, Method] = nn.ModuleDict()  # type: ignore[assignment]
        self._build(methods)
        # What builders froze (a linear probe) stays as it is. A whole student in eval mode was only never put into train mode.
        self.frozen = [p for p in self.parameters() if not p.requires_grad]
        all_of_it = set() if student.training else set(student.modules())
        self._in_eval = [m for m in self.modules() if not m.training and m not in all_of_it]

    def _build(self, methods: Mapping[str, tuple[type[Method], Mapping[str, Any]]]) -> None:
        outputs = evaluate(self.student, self._data.example), None
        if self.teacher is not None:
            outputs = outputs[0], evaluate(self.teacher, self._data.example)
        pairs, device = {}, device_of(self._data.example)
        for name, (cls, settings) in methods.items():
            if cls.teacher not in TEACHERS:
                raise KdrunError(f"method {name} has teacher = {cls.teacher!r}. {choices(str(cls.teacher), TEACHERS)}")
            if cls.teacher in ("outputs", "gradients") and self.teacher is None:
                raise KdrunError(
                    f"method '{name}' needs a teacher and teacher=none was asked for; say teacher=MODEL or method=none"
                )
            _check_kind(name, cls, self._data)
            pairs[name] = pair = self._pair(name, outputs)
            torch.manual_seed(stream(self.seed, "method", name))  # layers start alike whatever was built before them
            method = cls()
            method.optimizer = settings.get("optimizer") or {}
            method.build(pair, **{k: v for k, v in settings.items() if k not in RESERVED})
            method.generator = torch.Generator(device)
            self.methods[name] = method  # type: ignore[index]
        self.to(device)
        evaluates = {"student": self.student.module}
        for method in self.methods.values():
            evaluates.update(method.evaluates())
        distil = Stage("distil", None, [self.student, *self.methods.values()], evaluates)
        self.stages = [distil]
        for name, (_, settings) in methods.items():
            stages = self.methods[name].stages(pairs[name], distil)
            if len(methods) > 1 and stages != [distil]:
                raise KdrunError(
                    f"{name} has training stages of its own and stands alone: method={name}, not {[*methods]}"
                )
            self.stages = stages
            for stage in stages:
                stage.owner = "" if stage.terms is None else name
            _apply_settings(name, stages, settings.get("stages") or {})

    def keep_frozen(self) -> None:
        """Undo the thawing of what builders froze: parameters, and modules that they put into eval mode."""
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        for module in self._in_eval:
            module.training = False

    @property
    def example(self) -> Any:
        """Two inputs, as the models take them."""
        return self._data.example

    @property
    def teacher(self) -> Tapped | None:
        return self._teacher[0] if self._teacher else None

    def forward(self, batch: Batch, stage: Stage, weights: Mapping[str, float] | None = None) -> tuple[Output, Terms]:
        """The stage's output and its unweighted terms, <method>.<term>, in float32; `task` is the supervised loss.

        Of the default stage's methods, one whose terms all have weight 0 in `weights`, those of this step, is not called: it costs
        nothing, moves no statistics, and leaves no term.
        """
        if stage.terms is not None:
            output, own = stage.terms(batch)
            return output, {f"{stage.owner}.{term}": v.float() for term, v in scalars(stage.owner, own).items()}
        working = {name: self.methods[name] for name in self._at_work(weights) if self.methods[name].distils}
        student, teacher = self.run(batch, taught=any(m.teacher in ("outputs", "gradients") for m in working.values()))
        task = next(
            (t for m in self.methods.values() if (t := m.task(student, batch, self.supervised)) is not None), None
        )
        terms = {"task": self.supervised(student.logits, batch) if task is None else task}
        for name, method in working.items():
            mine = self._view(name, student, 0), self._view(name, teacher, 1)
            for term, value in scalars(name, method.loss(*mine, batch)).items():
                terms[f"{name}.{term}"] = value
        return student, {name: value.float() for name, value in terms.items()}

    def run(self, batch: Batch, taught: bool = True) -> tuple[Output, Output | None]:
        """Both models on one batch: the teacher without gradients, unless a method asks for those of its input.

        Without the teacher where nobody is `taught` by it in this step.
        """
        x = batch["input"]
        if self.wants_gradients:
            x = x.detach().requires_grad_(True)
        teacher = self._run_teacher(x) if self.teacher is not None and taught else None
        return self.student(x), teacher

    def _run_teacher(self, x: Any) -> Output:
        with torch.set_grad_enabled(self.wants_gradients and torch.is_grad_enabled()):
            return self._teacher[0](x)

    def begin_epoch(self, stage: int, epoch: int) -> None:
        """Reseed: dropout from the student's stream, each method's generator from its own. No generator state is saved."""
        torch.manual_seed(stream(self.seed, "dropout", self.stages[stage].name, epoch))
        for name, method in self.methods.items():
            method.generator.manual_seed(stream(self.seed, "method", name, stage, epoch))

    def set_progress(self, progress: float) -> None:
        """How far training of the stage is, for methods that change with it."""
        for method in self.methods.values():
            method.progress = progress

    def logged(self) -> dict[str, float]:
        """The numbers that methods have logged, <method>.<name>, and forget them. Waits for the device."""
        values = {
            f"{name}.{key}": v for name, m in self.methods.items() for key, v in m.__dict__.pop("_logged", {}).items()
        }
        return {name: float(value) for name, value in values.items()}

    def after_step(self, weights: Mapping[str, float] | None = None) -> None:
        """After the optimiser's step: memory banks of the methods that were at work with the weights of this step."""
        for name in self._at_work(weights):
            self.methods[name].after_step()

    def _at_work(self, weights: Mapping[str, float] | None) -> list[str]:
        """The methods that have a term with a weight other than 0, and those of which no weight is known."""
        mine = {
            name: [w for term, w in (weights or {}).items() if term.startswith(f"{name}.")] for name in self.methods
        }
        return [name for name, own in mine.items() if any(own) or not own]

    def _view(self, name: str, output: Output | None, side: int) -> Any:
        """The output as one method sees it: without a graph in the teacher where a neighbour alone wishes for one."""
        if output is None:
            return None
        if side == 1 and self.wants_gradients and name not in self._differentiates:
            output = output.detach()
        return self._own(name, output, side)

    def _own(self, name: str, output: Output, side: int) -> Output:
        """With the taps of one method only, here and in what `again` gives."""
        mine, again = self._slices[name][side], output.again
        return Output(
            output.logits, output.taps[mine], output.live[mine], output.input, lambda x: self._own(name, again(x), side)
        )

    def _pair(self, name: str, outputs: tuple[Output, Output | None]) -> Pair:
        def side(index: int, tapped: Tapped | None, output: Output | None) -> Any:
            if tapped is None or output is None:
                return None
            shapes = [tuple(tap.shape) for tap in self._view(name, output, index).taps]
            return Side(shapes, tuple(output.logits.shape), lambda tap: tapped.until(tap, self._data.example))

        def run(batch: Batch) -> tuple[Output, Any]:
            student, teacher = self.run(batch)
            return self._view(name, student, 0), self._view(name, teacher, 1)

        def run_teacher(batch: Batch) -> Output:
            return self._view(name, self._run_teacher(batch["input"]), 1)

        sides = side(0, self.student, outputs[0]), side(1, self.teacher, outputs[1])
        return Pair(*sides, self._data, self._taps[name], run, run_teacher, self._make_peer, self.supervised)


TEACHERS = ("none", "outputs", "gradients", "fresh")
RESERVED = (
    "taps",
    "weights",
    "stages",
    "schedules",
    "optimizer",
)  # keys of a method's yaml that are not hyper-parameters


def _check_kind(name: str, cls: type[Method], data: DataFacts) -> None:
    """A method that cannot work on these tensors stops here."""
    if cls.needs_classes and not data.are_classes:
        raise KdrunError(
            f"method '{name}' compares classes, and the labels here are numbers to be predicted; method=logits compares outputs, "
            "method=mimic, at, rkd and others compare layers"
        )
    example = data.example
    if cls.teacher == "gradients" and not (isinstance(example, Tensor) and example.is_floating_point()):
        kind = f"a dict of {', '.join(example)}" if isinstance(example, Mapping) else f"of type {example.dtype}"
        raise KdrunError(
            f"method '{name}' takes gradients with respect to the input, which is {kind} here; choose another"
        )


def _slices(taps: Mapping[str, tuple[list[str], list[str]]]) -> dict[str, tuple[slice, slice]]:
    """Where each method's taps stand among those of all methods, on the student's and on the teacher's side."""
    slices, starts = {}, [0, 0]
    for name, sides in taps.items():
        ends = [start + len(side) for start, side in zip(starts, sides, strict=True)]
        slices[name] = slice(starts[0], ends[0]), slice(starts[1], ends[1])
        starts = ends
    return slices


def _tap_names(name: str, taps: Any) -> tuple[list[str], list[str]]:
    """`[stage1, stage2]` for both sides, or one list each: `{student: [...], teacher: [...]}`, `[[...], [...]]`.

    The nested list is for the command line, where a list cannot be replaced by a mapping.
    """
    if isinstance(taps, Sequence) and len(taps) == 2 and not any(isinstance(side, str) for side in taps):
        taps = {"student": taps[0], "teacher": taps[1]}
    if isinstance(taps, Mapping):
        if set(taps) != {"student", "teacher"}:
            raise KdrunError(
                f"method.{name}.taps has keys {sorted(map(str, taps))}; give one list, or student and teacher"
            )
        sides = list(taps["student"]), list(taps["teacher"])
        if len(sides[0]) != len(sides[1]):
            raise KdrunError(
                f"method.{name}.taps: {len(sides[0])} for the student, {len(sides[1])} for the teacher; they must pair up"
            )
        return sides
    if not isinstance(taps, Sequence) or isinstance(taps, str):
        raise KdrunError(f"method.{name}.taps is {taps!r}; give a list, as in taps=[pooled]")
    return list(taps), list(taps)


def _apply_settings(name: str, stages: list[Stage], settings: Mapping[str, Any]) -> None:
    for key, values in settings.items():
        stage = next((stage for stage in stages if stage.name == key), None)
        if stage is None:
            raise KdrunError(f"no stage '{key}' in method.{name}.stages. {choices(key, [s.name for s in stages])}")
        for setting, value in values.items():
            if stage.settings.setdefault(setting, value) != value:
                raise KdrunError(
                    f"the methods disagree on {setting} of stage {key}: {stage.settings[setting]}, and {value} of {name}"
                )


def scalars(method: str, terms: Any) -> Terms:
    """A method's terms, or one sentence that says what it returned instead of named scalars."""
    if not isinstance(terms, Mapping):
        raise KdrunError(
            f"{method} must return its losses as a dict from term to scalar, as in {{'soft': loss}}; it returned {type(terms).__name__}"
        )
    for term, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise KdrunError(f"term '{term}' of {method} must be a scalar tensor, a mean or a sum; it is {what}")
    return dict(terms)


def mean(losses: Iterable[Tensor]) -> Tensor:
    """The mean of the losses of several layers, so that a weight does not depend on how many there are."""
    losses = list(losses)
    return sum(losses[1:], losses[0]) / len(losses)


def _required(fresh: Callable[[int], nn.Module] | None) -> Callable[[int], nn.Module]:
    if fresh is None:
        raise KdrunError("this pair cannot make fresh peers: no builder was given")
    return fresh
