"""Defaults of a method for one task: they replace kdrun's own values and never the user's, and are no part of a run."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import yaml
from hydra import compose, initialize_config_dir

from kdrun.config.checks import validate
from kdrun.config.defaults import of_task, shipped_settings
from kdrun.config.nodes import method_schema, register_nodes
from kdrun.config.registry import TASKS
from kdrun.config.schema import Config, conf_folder, method_names
from kdrun.errors import KdrunError


def composed(*overrides: str) -> Config:
    register_nodes()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(compose("config", ["dataset=digits", "teacher=resnet8", "student=resnet8", *overrides]))


def cwd(**changes) -> dict:
    return {**copy.deepcopy(shipped_settings("cwd")), **changes}


def test_a_task_has_its_own_defaults_and_others_have_not():
    of_boxes, of_images = of_task("cwd", cwd(), "detection"), of_task("cwd", cwd(), "image")
    assert of_boxes == {"taps": ["neck1", "neck2", "neck3"], "temperature": 1.0, "weights": {"channels": "auto(0.1)"}}
    assert of_images == {"taps": ["last"], "temperature": 4.0, "weights": {"channels": 0.1}}
    assert shipped_settings("cwd")["temperature"] == 4.0  # what was read is left as it was


def test_what_the_user_sets_wins():
    assert of_task("cwd", cwd(temperature=2.0), "detection")["temperature"] == 2.0
    assert of_task("cwd", cwd(taps=["neck2"]), "detection")["taps"] == ["neck2"]
    assert of_task("cwd", cwd(weights={"channels": 0.0}), "detection")["weights"] == {"channels": 0.0}
    dist = copy.deepcopy(shipped_settings("dist"))
    dist["weights"]["intra"] = 5.0
    assert of_task("dist", dist, "detection")["weights"] == {"inter": "auto(0.1)", "intra": 5.0}
    tasks = {"detection": {**cwd()["tasks"]["detection"], "temperature": 4.0}}  # the value of images, also here
    assert of_task("cwd", cwd(tasks=tasks), "detection")["temperature"] == 4.0


def test_a_run_of_images_knows_nothing_of_it():
    """Not its settings, not its schema; a change of another task's default is no other run."""
    settings = dataclasses.asdict(composed("method=cwd").method["cwd"])
    assert settings["temperature"] == 4.0
    assert "tasks" not in settings
    assert "tasks" not in {one.name for one in dataclasses.fields(method_schema("cwd"))}
    assert (
        dataclasses.asdict(composed("method=cwd", "method.cwd.tasks.detection.temperature=3").method["cwd"]) == settings
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+method.cwd.tasks.detecton={}"], r"no task 'detecton' in method.cwd.tasks. Did you mean detection\?"),
        (["+method.cwd.tasks.detection.temprature=1"], "no key 'temprature' in method.cwd.tasks.detection. Did you mean temperature"),
        (["method.cwd.tasks.detection=3"], r"method.cwd.tasks.detection must hold settings with values"),
        (["method.cwd.tasks=3"], r"method.cwd.tasks must hold names of tasks"),
    ],
)  # fmt: skip
def test_a_task_or_a_key_that_does_not_exist(overrides, message):
    with pytest.raises(KdrunError, match=message) as error:
        composed("method=cwd", *overrides)
    assert "\n" not in str(error.value)


def test_a_method_of_a_plug_in_has_a_file_for_each_task():
    """There is no file to compare the user's values with."""
    with pytest.raises(
        KdrunError, match=r"method\.mine\.tasks: only kdrun's own methods .* method/mine_detection\.yaml"
    ):
        of_task("mine", {"power": 2, "tasks": {"detection": {"power": 3}}}, "image")
    assert of_task("mine", {"power": 2}, "image") == {"power": 2}


def test_the_files_name_tasks_and_keys_that_exist():
    """Of a task's defaults, each differs from the method's own: else it says nothing."""
    known = {"detection", *(task.name for task in TASKS.all())}
    for name in method_names():
        ((key, settings),) = yaml.safe_load((conf_folder() / "method" / f"{name}.yaml").read_text()).items()
        for task, defaults in (settings or {}).get("tasks", {}).items():
            assert task in known
            of_task(key, settings, task)
            for what, value in defaults.items():
                assert value != settings.get(what), (name, task, what)
                if what == "weights":
                    assert value.keys() == settings["weights"].keys()
