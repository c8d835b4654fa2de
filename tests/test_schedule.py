"""Learning rates and term weights as functions of progress: published milestones, end points, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf

from kdrun.config.nodes import recipe_schema
from kdrun.config.schema import Recipe, conf_folder
from kdrun.engine.loop import Meter, stage_recipe
from kdrun.engine.schedule import check_schedule, factor, learning_rate
from kdrun.errors import DivergedError, KdrunError
from kdrun.methods.base import Stage
from kdrun.tasks.image.task import TASK


def recipe(name: str, **changes) -> Recipe:
    values = OmegaConf.to_container(OmegaConf.load(conf_folder() / "recipe" / f"{name}.yaml"))
    return recipe_schema(TASK)(**{**values, **changes})


@pytest.mark.parametrize(("name", "drops"), [("kdzoo", [100, 150]), ("crd240", [150, 180, 210])])
def test_milestones_are_the_published_epochs(name, drops):
    """The rate falls tenfold at the published epochs, counted from 0, and nowhere else."""
    settings = recipe(name)
    rates = [learning_rate(settings, settings.epochs, epoch, 0.5) for epoch in range(settings.epochs)]
    assert [epoch for epoch in range(1, len(rates)) if rates[epoch] != rates[epoch - 1]] == drops
    assert rates[0] == settings.lr
    assert rates[-1] == pytest.approx(settings.lr * 0.1 ** len(drops))


def test_milestones_scale_with_the_epochs():
    """recipe.epochs=10 keeps the shape of the 200 published epochs, and holds a rate for whole epochs."""
    settings = recipe("kdzoo", epochs=10)
    rates = [learning_rate(settings, 10, epoch, share) for epoch in range(10) for share in (0.0, 0.9)]
    assert rates == pytest.approx([0.1] * 10 + [0.01] * 6 + [0.001] * 4)  # 7.5 epochs round to 8


def test_cosine_rises_in_the_warm_up_and_ends_at_zero():
    """Warm-up is linear to the full rate; the cosine falls from there to zero at the end, every step."""
    settings = recipe("quick", epochs=20)
    rates = [learning_rate(settings, 20, epoch, share) for epoch in range(20) for share in (0.0, 0.5)]
    top = rates.index(max(rates))
    assert top == 4  # a tenth of 20 epochs is 2, or 4 half epochs
    assert rates[top] == pytest.approx(settings.lr)
    assert rates[1] == pytest.approx(settings.lr / 4)
    assert rates[0] > 0
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(settings, 20, 19, 1.0) == pytest.approx(0.0, abs=1e-9)


def test_constant_stays_after_the_warm_up():
    """schedule=constant is the rate itself; a warm-up of the whole run never divides by zero."""
    settings = recipe("quick", schedule="constant")
    assert learning_rate(settings, 12, 11, 0.9) == settings.lr
    assert 0 < learning_rate(recipe("quick", warmup=1.0), 12, 11, 0.99) <= settings.lr


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (None, [1, 1, 1]),
        ({"kind": "constant"}, [1, 1, 1]),
        ({"kind": "linear", "to": 0.25}, [1, 0.625, 0.25]),
        ({"kind": "linear", "to": 3}, [1, 2, 3]),
        ({"kind": "cosine", "to": 0.0}, [1, 0.5, 0]),
        ({"kind": "warmup", "until": 1.0}, [0, 0.5, 1]),
        ({"kind": "warmup", "until": 0.25}, [0, 1, 1]),
        ({"kind": "warmup", "until": 0}, [1, 1, 1]),
        ({"kind": "linear", "to": 0, "until": 0.8, "start": 0.05}, [0, 0.375, 0]),
        ({"kind": "cosine", "to": 0.5, "until": 0.5}, [1, 0.5, 0.5]),
        ({"kind": "linear", "to": 2, "until": 0}, [2, 2, 2]),
        ({"kind": "off", "after": 0.5}, [1, 0, 0]),
        ({"kind": "off", "after": 1.0}, [1, 1, 0]),
    ],
)
def test_factors_at_start_middle_and_end(schedule, values):
    """Each kind takes the stated values at 0, a half and 1, and passes the check."""
    if schedule:
        check_schedule("x", schedule)
    assert [factor(schedule, progress) for progress in (0, 0.5, 1)] == pytest.approx(values)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"kind": "linaer", "to": 1}, "x.kind is 'linaer'. Did you mean linear"),
        ({}, "x.kind is ''. Choices: constant, cosine"),
        ({"kind": "linear"}, r"x has keys \['kind'\]; linear takes \['kind', 'to'\]"),
        (
            {"kind": "linear", "to": 1, "after": 1},
            r"linear takes \['kind', 'to'\], and may have \['from', 'start', 'until'\]",
        ),
        ({"kind": "linear", "to": 1, "start": 5}, "x.start is 5; it must be a share"),
        (0.5, "x is 0.5; give a kind"),
        ({"kind": "linear", "to": "low"}, "x.to is 'low'; it must be a number of 0 or more"),
        ({"kind": "cosine", "to": float("nan")}, "x.to is nan"),
        ({"kind": "cosine", "to": float("inf")}, "x.to is inf"),
        ({"kind": "off", "after": 100}, "x.after is 100; it must be a share of the stage, from 0 to 1"),
        ({"kind": "warmup", "until": -0.1}, "x.until is -0.1"),
    ],
)
def test_other_schedules_are_refused(schedule, message):
    """A wrong kind, key or value is an error before anything trains."""
    with pytest.raises(KdrunError, match=message):
        check_schedule("x", schedule)


@pytest.mark.parametrize(("share", "epochs"), [(0.2, 40), (0.001, 1), (1, 200)])
def test_a_stage_takes_a_share_of_the_epochs(share, epochs):
    """epochs of a stage is a share of the recipe's, at least one epoch; its other settings override, the recipe stays."""
    settings = recipe("kdzoo")
    stage = Stage("hints", lambda _: None, [], settings={"epochs": share, "lr": 0.5})
    assert stage_recipe(settings, stage) == dataclasses.replace(settings, epochs=epochs, lr=0.5)
    assert settings == recipe("kdzoo")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 0.2}, "no key 'epoch' in stage hints. Did you mean epochs"),
        ({"epochs": 30}, "epochs of stage hints is 30; it is a share"),
        ({"epochs": 0}, "epochs of stage hints is 0"),
    ],
)
def test_a_stage_refuses_other_settings(settings, message):
    """A key that no recipe has, or epochs that are no share, is an error."""
    with pytest.raises(KdrunError, match=message):
        stage_recipe(recipe("kdzoo"), Stage("hints", lambda _: None, [], settings=settings))


def test_the_meter_averages_a_term_over_the_images_that_it_was_computed_for():
    """A schedule may switch a term on or off within an epoch: its mean is over its own images, the others' over all."""
    meter = Meter()
    for step, (terms, size) in enumerate([({"task": 1.0}, 4), ({"task": 3.0, "kd.soft": 5.0}, 12)], start=1):
        meter.add({name: torch.tensor(value) for name, value in terms.items()}, torch.tensor(size), size, step)
    assert meter.read("distil") == {"task": 2.5, "kd.soft": 5.0}
    meter.add({"task": torch.tensor(4.5)}, torch.tensor(0), 16, 3)
    assert meter.read("distil") == {"task": 4.5}
    assert meter.means() == {"task": 3.5, "kd.soft": 5.0}
    assert meter.mean_score() == 0.5
    meter.add({"task": torch.tensor(1.0), "kd.soft": torch.tensor(float("nan"))}, torch.tensor(0), 4, 4)
    with pytest.raises(DivergedError, match=r"step 4 .*kd.soft"):
        meter.read("distil")


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ({"kind": "linear", "from": 0.2, "to": 2.2}, {0: 0.2, 0.25: 0.7, 0.5: 1.2, 1: 2.2}),
        ({"kind": "linear", "from": 3, "to": 1, "start": 0.2, "until": 0.6}, {0: 3, 0.2: 3, 0.4: 2, 0.6: 1, 1: 1}),
        ({"kind": "cosine", "from": 0, "to": 4, "until": 0.5}, {0: 0, 0.25: 2, 0.5: 4, 1: 4}),
        ({"kind": "linear", "from": 0, "to": 1, "start": 0.5, "until": 0.5}, {0.4: 0, 0.5: 1, 1: 1}),
    ],
)
def test_a_ramp_goes_from_any_value_to_any_value(schedule, values):
    check_schedule("s", schedule)
    assert {at: factor(schedule, at) for at in values} == pytest.approx(values)
