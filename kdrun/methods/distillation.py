"""Distillation: a pair of tapped models and the methods at work on them. Composition is its only business."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import KdrunError, choices
from kdrun.methods.base import Batch, DataFacts, Method, Pair, Side, Stage, Terms
from kdrun.methods.taps import Output, Tapped, device_of, dry_run, shapes
from kdrun.seeds import stream


class Distillation(nn.Module):
    """A pair of tapped models and the methods that train the student.

    The frozen teacher is not a submodule: the state dict holds every other weight once, and no weight of the teacher.
    `methods` maps a name to (class, settings); settings are the yaml's: taps, stages and hyper-parameters.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        methods: Mapping[str, tuple[type[Method], Mapping[str, Any]]],
        *,
        data: DataFacts,
        task: Callable[[Any, Batch], Tensor | Terms],
        seed: int = 0,
        autocast: torch.dtype | None = None,
        fresh: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.seed, self.data, self._task = seed, data, task
        self.parts: Terms = {}  # of the last supervised loss of the student, by name, where it has parts
        self._differentiates = [name for name, (cls, _) in methods.items() if cls.teacher == "gradients"]
        self.wants_gradients = bool(self._differentiates)
        self._taps = {
            name: cls.choose_taps(_tap_names(name, settings.get("taps") or []), settings, student, teacher)
            for name, (cls, settings) in methods.items()
        }
        self._rows = {name for name, (cls, _) in methods.items() if not cls.sequences}
        self._slices = _slices(self._taps)
        self.student = Tapped(student, [tap for taps, _ in self._taps.values() for tap in taps], autocast)
        self.student.second = self.wants_gradients
        self._teacher: list[Tapped] = []
        if teacher is not None:
            tapped = Tapped(teacher, [tap for _, taps in self._taps.values() for tap in taps], autocast)
            tapped.second = self.wants_gradients
            self._teacher.append(tapped.requires_grad_(False).eval())
        # The teacher's logits on every training sample (train_n, ...), where these are all that methods need: it then never runs.
        self.kept: Tensor | None = None
        self.average: list[nn.Module] = []
        self._make_peer = lambda i: Tapped(_required(fresh)(i), (), autocast)
        self.methods: Mapping[str, Method] = nn.ModuleDict()  # type: ignore[assignment]
        self._build(methods)
        # What a builder froze (a linear probe) stays frozen. If the whole student is in eval mode, its builder only did not call train().
        self.frozen = [p for p in self.parameters() if not p.requires_grad]
        ignored = set() if student.training else set(student.modules())
        self._in_eval = [m for m in self.modules() if not m.training and m not in ignored]

    def _build(self, methods: Mapping[str, tuple[type[Method], Mapping[str, Any]]]) -> None:
        outputs = dry_run(self.student, self.data.example), None
        if self.teacher is not None:
            outputs = outputs[0], dry_run(self.teacher, self.data.example)
        pairs, device = {}, device_of(self.data.example)
        for name, (cls, settings) in methods.items():
            if cls.teacher not in TEACHERS:
                raise KdrunError(f"method {name} has teacher = {cls.teacher!r}. {choices(str(cls.teacher), TEACHERS)}")
            if cls.teacher in ("outputs", "gradients") and self.teacher is None:
                raise KdrunError(
                    f"method '{name}' needs a teacher, and this run has teacher=none; set teacher=MODEL, or method=none"
                )
            _check_kind(name, cls, self.data)
            pairs[name] = pair = self._pair(name, outputs)
            torch.manual_seed(
                stream(self.seed, "method", name)
            )  # so that the first weights do not depend on what was built before
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
                    f"{name} has its own training stages and cannot be combined with other methods: method={name}, not {[*methods]}"
                )
            self.stages = stages
            for stage in stages:
                stage.owner = "" if stage.terms is None else name
            _apply_settings(name, stages, settings.get("stages") or {})

    def keep_frozen(self) -> None:
        """Freeze again what builders froze: parameters, and modules that they put into eval mode."""
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        for module in self._in_eval:
            module.training = False

    @property
    def trained(self) -> nn.Module:
        """The student that is evaluated and kept: itself, or the running average of its weights where training keeps one."""
        return self.average[0] if self.average else self.student.module

    def keep_average(self, average: nn.Module | None) -> None:
        """From now on `trained` is this model. It is no submodule: its weights are kept with the optimiser's."""
        self.average = [average] if average is not None else []

    def evaluated(self, stage: Stage) -> dict[str, nn.Module]:
        """The models that a stage evaluates, by name."""
        return {
            name: self.trained if model is self.student.module else model for name, model in stage.evaluates.items()
        }

    @property
    def example(self) -> Any:
        """Two inputs, as the models take them."""
        return self.data.example

    @property
    def teacher(self) -> Tapped | None:
        return self._teacher[0] if self._teacher else None

    def forward(self, batch: Batch, stage: Stage, weights: Mapping[str, float] | None = None) -> tuple[Output, Terms]:
        """The output of the stage and its unweighted terms, <method>.<term>, in float32; `task` is the supervised loss.

        `weights`: the weights of this step. In the default stage, a method whose terms all have weight 0 is not called: it costs no
        time, changes no statistics, and gives no term.
        """
        if stage.terms is not None:
            output, own = stage.terms(batch)
            return output, {f"{stage.owner}.{term}": v.float() for term, v in scalars(stage.owner, own).items()}
        active = {name: self.methods[name] for name in self._active(weights) if self.methods[name].distils}
        student, teacher = self.run(batch, taught=any(m.teacher in ("outputs", "gradients") for m in active.values()))
        task = next(
            (t for m in self.methods.values() if (t := m.task(student, batch, self.supervised)) is not None), None
        )
        self.parts = {}
        if task is None:
            given = self._task(student.logits, batch)
            self.parts = (
                {f"task.{name}": part.detach() for name, part in given.items()} if isinstance(given, dict) else {}
            )
            task = whole(given)
        terms = {"task": task}
        for name, method in active.items():
            views = self._views(name, (student, teacher), batch.get("mask"))
            for term, value in scalars(name, method.loss(*views, batch)).items():
                terms[f"{name}.{term}"] = value
        return student, {name: value.float() for name, value in terms.items()}

    def supervised(self, output: Any, batch: Batch) -> Tensor:
        """The supervised loss of a model's output, mean over the batch."""
        return whole(self._task(output, batch))

    def run(self, batch: Batch, taught: bool = True) -> tuple[Output, Output | None]:
        """Run both models on one batch. The teacher runs without gradients, unless a method needs gradients of its input.

        `taught`: whether a method needs the teacher in this step; if not, the teacher does not run.
        """
        x = batch["input"]
        if self.wants_gradients:
            x = x.detach().requires_grad_(True)
        teacher = self._run_teacher(x, batch["index"]) if self.teacher is not None and taught else None
        return self.student(x), teacher

    def _run_teacher(self, x: Any, index_B: Tensor) -> Output:
        if self.kept is not None:
            return Output(self.kept[index_B], (), (), x, self._teacher[0])
        with torch.set_grad_enabled(self.wants_gradients and torch.is_grad_enabled()):
            return self._teacher[0](x)

    @property
    def needs_logits_alone(self) -> bool:
        """Whether the teacher's logits on training samples are all that the methods need of it."""
        taught = [name for name, method in self.methods.items() if method.teacher in ("outputs", "gradients")]
        return bool(taught) and all(
            self.methods[name].teacher == "outputs" and self.methods[name].distils and not self._taps[name][1]
            for name in taught
        )

    def begin_epoch(self, stage: int, epoch: int) -> None:
        """Give new seeds to dropout and to the generator of each method. So no state of a generator must be saved."""
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
        """Call `after_step` of the methods that were active with the weights of this step."""
        for name in self._active(weights):
            self.methods[name].after_step()

    def _active(self, weights: Mapping[str, float] | None) -> list[str]:
        """The methods that have a term with a weight other than 0, and the methods without a known weight."""
        mine = {
            name: [w for term, w in (weights or {}).items() if term.startswith(f"{name}.")] for name in self.methods
        }
        return [name for name, own in mine.items() if any(own) or not own]

    def _views(self, name: str, outputs: tuple[Output, Output | None], mask: Tensor | None) -> tuple[Output, Any]:
        """Both outputs as one method sees them."""
        return self._view(name, outputs[0], 0, mask), self._view(name, outputs[1], 1, mask)

    def _view(self, name: str, output: Output | None, side: int, mask: Tensor | None) -> Any:
        """The output as one method sees it. The teacher's output is detached if only other methods need gradients through the teacher."""
        if output is None:
            return None
        if side == 1 and self.wants_gradients and name not in self._differentiates:
            output = output.detach()
        output = self._own(name, output, side)
        return tokens(output, mask) if mask is not None and name in self._rows else output

    def _own(self, name: str, output: Output, side: int) -> Output:
        """The output with the taps of one method only; `again` gives such outputs too."""
        mine, again = self._slices[name][side], output.again
        return Output(
            output.logits, output.taps[mine], output.live[mine], output.input, lambda x: self._own(name, again(x), side)
        )

    def _pair(self, name: str, outputs: tuple[Output, Output | None]) -> Pair:
        def side(index: int, tapped: Tapped | None, output: Output | None) -> Any:
            if tapped is None or output is None:
                return None
            taps = [tuple(tap.shape) for tap in self._view(name, output, index, self.data.mask).taps]
            if self.data.mask is not None and name in self._rows:
                _refuse_padding(name, self._taps[name][index], taps)
            until = lambda tap: tapped.until(tap, self.data.example)  # noqa: E731
            return Side(taps, shapes(output.logits), until, tapped.module, lambda x: tapped(x))

        def run(batch: Batch) -> tuple[Output, Any]:
            return self._views(name, self.run(batch), batch.get("mask"))

        def run_teacher(batch: Batch) -> Output:
            return self._view(name, self._run_teacher(batch["input"], batch["index"]), 1, batch.get("mask"))

        sides = side(0, self.student, outputs[0]), side(1, self.teacher, outputs[1])
        return Pair(*sides, self.data, self._taps[name], run, run_teacher, self._make_peer, self.supervised)


TEACHERS = ("none", "outputs", "gradients", "fresh")
RESERVED = (
    "taps",
    "weights",
    "stages",
    "schedules",
    "optimizer",
)  # keys of a method's yaml that are not hyper-parameters


def _check_kind(name: str, cls: type[Method], data: DataFacts) -> None:
    """KdrunError for a method that cannot work on these labels or inputs."""
    if cls.needs_classes and not data.are_classes:
        raise KdrunError(
            f"method '{name}' compares classes, and a sample here has no class of its own; method=logits compares numbers, yolo_logits and "
            "yolo_boxes compare boxes, and mimic and others compare layers"
        )
    example = data.example
    if (cls.teacher == "gradients" or cls.needs_input_gradients) and not (
        isinstance(example, Tensor) and example.is_floating_point()
    ):
        kind = f"a dict of {', '.join(example)}" if isinstance(example, Mapping) else f"of type {example.dtype}"
        raise KdrunError(
            f"method '{name}' needs gradients with respect to the input, which is {kind} here; choose another method"
        )


def _refuse_padding(name: str, taps: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
    """KdrunError for a tap such as attention scores (B, H, T, T), of which padding cannot be left out as rows are."""
    for tap, shape in zip(taps, shapes, strict=True):
        if len(shape) > 3:
            raise KdrunError(
                f"method '{name}' would count padding in tap '{tap}' of shape {shape[1:]}; tap hidden states such as layer1, or choose a "
                "method that compares attention (method=minilm, tinybert)"
            )


def tokens(output: Output, mask_BT: Tensor) -> Output:
    """The output with its sequences (B, T, D) as rows of their tokens (tokens, D), without padding."""

    def rows(taps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tap[mask_BT] if tap.ndim == 3 and tap.shape[:2] == mask_BT.shape else tap for tap in taps)

    return dataclasses.replace(output, taps=rows(output.taps), live=rows(output.live))


def _slices(taps: Mapping[str, tuple[list[str], list[str]]]) -> dict[str, tuple[slice, slice]]:
    """The positions of the taps of each method among the taps of all methods, for the student and for the teacher."""
    slices, starts = {}, [0, 0]
    for name, sides in taps.items():
        ends = [start + len(side) for start, side in zip(starts, sides, strict=True)]
        slices[name] = slice(starts[0], ends[0]), slice(starts[1], ends[1])
        starts = ends
    return slices


def _tap_names(name: str, taps: Any) -> tuple[list[str], list[str]]:
    """The taps of student and teacher: `[stage1, stage2]` for both, or `{student: [...], teacher: [...]}`, or `[[...], [...]]`.

    The nested list is for the command line, where a mapping cannot replace a list.
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
                f"method.{name}.taps: {len(sides[0])} for the student, {len(sides[1])} for the teacher; give both the same number"
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


def whole(loss: Tensor | Terms) -> Tensor:
    """A loss, or the sum of its parts."""
    if isinstance(loss, Tensor):
        return loss
    return torch.stack([*loss.values()]).sum()


def scalars(method: str, terms: Any) -> Terms:
    """The terms that a method returned. KdrunError that says what it returned if they are not named scalars."""
    if not isinstance(terms, Mapping):
        raise KdrunError(
            f"{method} must return its losses as a dict from term to scalar, as in {{'soft': loss}}; it returned {type(terms).__name__}"
        )
    for term, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise KdrunError(f"term '{term}' of {method} must be a scalar tensor, a mean or a sum; it is {what}")
    return dict(terms)


def _required(fresh: Callable[[int], nn.Module] | None) -> Callable[[int], nn.Module]:
    if fresh is None:
        raise KdrunError("this pair cannot make fresh peers: no builder was given")
    return fresh
