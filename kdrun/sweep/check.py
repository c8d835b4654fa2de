"""`kdrun check method=NAME`: does a method keep the contract? Two steps of every stage on a few samples, and nothing is written.

What is held here is what tests/test_methods.py holds for kdrun's own methods. docs/adding-a-method.md explains each line.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from kdrun.config.nodes import register_nodes
from kdrun.config.project import with_project
from kdrun.config.registry import import_plugins_of
from kdrun.config.schema import conf_folder
from kdrun.config.weights import quoted
from kdrun.engine.build import Parts, build
from kdrun.engine.loop import enter, stage_recipe, weight_of, weighted
from kdrun.engine.optimization import make_optimizer
from kdrun.engine.precision import resolve
from kdrun.errors import KdrunError
from kdrun.screen import Screen
from kdrun.sweep.job import prepare

DEFAULTS = (
    "dataset=digits",
    "recipe=quick",
    "teacher=resnet14",
    "student=resnet8",
)  # small, and there without a download
FIXED = ("engine.device=cpu", "engine.precision=fp32", "engine.threads=1")  # bits are compared
HELP = """kdrun check method=NAME [KEY=VALUE ...] [--config-dir FOLDER] [plugins=[MODULE]]

Does a method keep the contract? Two steps of every stage on a few digits; nothing is written. Any override may be given, as
dataset=image_folder dataset.root=FOLDER teacher=resnet56."""


def check(arguments: Sequence[str]) -> int:
    """The verb; returns the exit status: 1 where a line says WRONG."""
    if not arguments or set(arguments) & {"--help", "-h"}:
        print(HELP)
        return 0
    config_dir, overrides = _split(quoted(with_project(arguments)))
    keys = {argument.partition("=")[0] for argument in overrides}
    shared = [one for one in (*DEFAULTS, *FIXED) if one.partition("=")[0] not in keys]
    screen = Screen()
    with tempfile.TemporaryDirectory() as outputs:
        plan = prepare(_composed([*shared, *overrides, f"outputs={outputs}"], config_dir))
        compute = resolve(plan.config.engine)

        def fresh() -> Parts:
            return build(plan.config, compute)

        parts = fresh()
        screen.say_all([*parts.rehearsal.table(), ""])
        results = list(_checks(parts, fresh))
    for what, wrong in results:
        screen.say(f"  {'WRONG' if wrong else 'ok   '}  {what}{f': {wrong}' if wrong else ''}")
    failed = sum(wrong is not None for _, wrong in results)
    name = "+".join(plan.config.method)
    screen.say(f"{name}: {failed} of {len(results)} wrong" if failed else f"{name} keeps the contract")
    return int(failed > 0)


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The folder of --config-dir, and the overrides."""
    rest = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--config-dir=") else [a])]
    folder = None
    for flag in ("--config-dir", "-cd"):
        if flag in rest[:-1]:
            place = rest.index(flag)
            folder = rest[place + 1]
            del rest[place : place + 2]
    strange = [argument for argument in rest if argument.startswith("-")]
    if strange:
        error = KdrunError(f"kdrun check takes key=value, --config-dir FOLDER and --help, not {strange[0]}")
        error.status = 2
        raise error
    return folder, rest


def _composed(overrides: list[str], config_dir: str | None) -> DictConfig:
    """The config of one run, as Hydra composes it for the command."""
    import_plugins_of(overrides)
    register_nodes()
    where = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return compose("config", [*where, *overrides])


def _checks(parts: Parts, fresh: Callable[[], Parts]) -> Iterator[tuple[str, str | None]]:
    """Each check as a sentence, and what is wrong, or None."""
    teacher = parts.distillation.teacher
    before = _copy(teacher.module) if teacher is not None else {}
    losses = []
    for number, stage in enumerate(parts.distillation.stages):
        trained = {id(p) for module in stage.trains for p in module.parameters()}
        others = {n: p.detach().clone() for n, p in parts.distillation.named_parameters() if id(p) not in trained}
        terms = _steps(parts, number, 2)
        losses.append(terms)
        broken = [name for step in terms for name, value in step.items() if not torch.isfinite(torch.tensor(value))]
        yield f"stage {stage.name}: every term is finite", f"{broken[0]} is not" if broken else None
        now = dict(parts.distillation.named_parameters())
        moved = [name for name, value in others.items() if not now[name].equal(value)]
        yield f"stage {stage.name}: only what it trains changes", f"{moved[0]} changed" if moved else None
    if teacher is not None:
        moved = [name for name, value in _copy(teacher.module).items() if not value.equal(before[name])]
        yield "the teacher stays as it is", f"{moved[0]} changed" if moved else None
    again = fresh()
    other = [_steps(again, number, 2) for number in range(len(again.distillation.stages))]
    yield "the same seed gives the same losses", _first_difference(losses, other)
    yield "a run that goes on gives the next loss", _first_difference(*_resumed(fresh))


def _steps(parts: Parts, number: int, count: int, first: int = 0) -> list[dict[str, float]]:
    """Steps of a stage, from batch `first` of its first epoch on: the terms of each."""
    distillation, stage = parts.distillation, parts.distillation.stages[number]
    enter(distillation, stage)
    optimizer = make_optimizer(stage, stage_recipe(parts.recipe, stage))
    distillation.begin_epoch(number, first)
    terms = []
    for _, batch in zip(range(count), parts.train.epoch(first), strict=False):
        distillation.set_progress(first / 2)
        _, values = distillation(batch, stage)
        terms.append({name: value.item() for name, value in values.items()})
        optimizer.zero_grad(set_to_none=True)
        weighted(values, {name: weight_of(parts.weights, name) for name in values}).backward()
        optimizer.step()
        distillation.after_step()
    return terms


def _resumed(fresh: Callable[[], Parts]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The first step of a second epoch, of a run that was not stopped and of one that was loaded from its state."""
    whole, loaded = fresh(), fresh()
    last = len(whole.distillation.stages) - 1
    _steps(whole, last, 1)
    loaded.distillation.load_state_dict(whole.distillation.state_dict())
    return _steps(whole, last, 1, first=1), _steps(loaded, last, 1, first=1)


def _first_difference(one: object, other: object) -> str | None:
    return None if one == other else f"{one} and {other}"


def _copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
