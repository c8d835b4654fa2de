"""A sweep composes its jobs as Hydra does, only with fewer compositions; and the models' groups are as cheap as they look."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError
from hydra.types import RunMode
from omegaconf import Container, DictConfig, ListConfig

from hydra_plugins import kdrun_models
from kdrun.config.checks import validate
from kdrun.config.explain import message
from kdrun.config.nodes import register_nodes
from kdrun.config.registry import MODELS
from kdrun.config.schema import conf_folder
from kdrun.config.tables import jobs
from kdrun.errors import KdrunError
from kdrun.runs.identity import file_sha256
from kdrun.runs.plan import Plan
from kdrun.sweep import planning
from kdrun.sweep.compose import Composer
from kdrun.sweep.estimate import Estimate
from kdrun.sweep.job import prepare
from kdrun.sweep.planning import plan_jobs
from kdrun.tasks.image.task import TASK

BASE = ["dataset=digits", "student=resnet8", "teacher=resnet14"]
PLAIN = [
    ["seed=0"],
    ["seed=1"],
    ["seed=1", "recipe.lr=1e-3", "recipe.lr=0.2"],
    ["recipe.epochs=10", "recipe=quick"],  # the value comes first, and still wins over the file
    ["recipe=quick", "recipe@teacher.recipe=kdzoo", "teacher.recipe.epochs=7"],
    ["recipe=crd240"],  # the teacher's recipe follows by interpolation
    ["recipe.milestones=[0.1,0.2]"],
    ["recipe={lr:0.3,epochs:2}"],  # a dictionary is a value, although its key is a group's
    ["method=rkd", "method.rkd.weights.angle=50"],
    ["method=[rkd,kd]", "method.kd.temperature=2"],
    ["method=[kd,rkd]"],
    ["method=ls"],
    ["method=kd", "+method.kd.weights.task=0.1"],
    ["method=kd", "++method.kd.weights.soft=0.1", "++method.kd.schedules.soft={kind:linear}"],
    ["method=kd", "+method.kd.stages={distil:{epochs:0.5}}"],
    ["method=none", "teacher=none"],
    ["student=import", "student.path=my_model:build", "+student.arguments.width=2"],
    ["student.label='a b'", 'teacher.checkpoint="a=b.pt"', "student.label=null"],
    ["outputs=${oc.env:HOME}/x", "dataset.label=${student.name}"],
    ["dataset.label=${recipe.name}", "seed=7"],
    ["dataset=cifar100", "dataset.holdout=500", "protocol=holdout"],
    ["experiment=quickstart", "seed=3"],
    ["~experiment"],
    ["~seed"],
    ["~method.kd.temperature"],
    ["~method.kd.temperature", "+method.kd.temperature=3"],
    ["engine.threads=null", "engine.device=cpu", "engine.debug=yes"],
    ["plugins=[]", "plugins=[a.b,c]"],
    ["pair=null", "budget=short"],
    ["seed=0", "seed=0"],
    ["sweep.on_error=stop", "rerun=true", "phase=teacher"],
]
WRONG = [
    ["seed=x"],
    ["recipe.lr=abc"],
    ["recipe.epochs=1.5"],
    ["recipe.epoch=3"],
    ["lr=3"],
    ["method=kdd"],
    ["method=rkd", "method.kd.temperature=2"],
    ["teacher=resnet111"],
    ["teacher=null"],
    ["student.width=2"],
    ["student=import", "student.path=my_model:build", "student.arguments={width:2}"],
    ["student.shortcut=[1]"],
    ["+seed=3"],
    ["+student=resnet20"],
    ["++student=resnet20"],
    ["~recipe"],
    ["~nothing"],
    ["~seed=5"],
    ["method@x=kd"],
    ["nothing@x=kd"],
    ["nothing=kd"],
    ["+experiment=null"],
    ["table=null"],
    ["seed=1,2"],
    ["seed=[1"],
    ["recipe=[kdzoo,quick]"],
    ["dataset.root=${nothing}"],
    ["hydra.job.name=x"],
    ["hydra/launcher=nothing"],
]


@pytest.fixture(scope="module")
def hydra() -> Iterator[Any]:
    register_nodes()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder().resolve())):
        yield GlobalHydra.instance().hydra


def composer_of(hydra: Any, *overrides: str) -> Composer:
    """The composer of a sweep with these settings of Hydra's, which all of its jobs have."""
    settings = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=somewhere", *overrides]
    return Composer(hydra.config_loader, hydra.config_loader.load_configuration("config", settings, RunMode.MULTIRUN))


@pytest.fixture(scope="module")
def composer(hydra: Any) -> Composer:
    return composer_of(hydra)


def all_of(node: Any) -> Any:
    """A node with everything that OmegaConf knows of it: values as they stand, types, and flags."""
    about = node._metadata
    kind = [str(about.ref_type), str(about.object_type), about.optional, about.key, dict(about.flags or {})]
    if isinstance(node, Container) and node._value() is not None and isinstance(node._value(), (dict, list)):
        if isinstance(node, DictConfig):
            return kind, {key: all_of(node._get_node(key)) for key in node}
        assert isinstance(node, ListConfig)
        return kind, [all_of(node._get_node(i)) for i in range(len(node))]
    return kind, type(node).__name__, repr(node._value())


def outcome(compose: Any, *arguments: Any) -> Any:
    """What composing gives, or the words with which it fails."""
    try:
        return all_of(compose(*arguments))
    except Exception as error:
        return type(error), re.sub(
            r" at \S+:\d+", "", message(error, arguments[-1])
        )  # the place is a line of this test


def both(composer: Composer, job: list[str]) -> None:
    """Hydra and kdrun agree; the second time everything is known already."""
    loader, config = composer.loader, composer.config
    whole = outcome(loader.load_sweep_config, config, job)
    part = whole if isinstance(whole[0], type) else (whole[0], {k: v for k, v in whole[1].items() if k != "hydra"})
    for _ in range(2):
        assert outcome(composer.load_sweep_config, config, job) == whole
        assert outcome(composer.job_config, job) == part


@pytest.mark.parametrize("job", PLAIN, ids=" ".join)
def test_a_job_is_composed_as_hydra_composes_it(composer: Composer, job: list[str]) -> None:
    assert isinstance(composer.loader.load_sweep_config(composer.config, [*BASE, *job]), DictConfig)
    both(composer, [*BASE, *job])


@pytest.mark.parametrize("job", WRONG, ids=" ".join)
def test_an_error_is_the_one_of_hydra(composer: Composer, job: list[str]) -> None:
    both(composer, [*BASE, *job])


def test_cells_of_a_table(composer: Composer) -> None:
    for job in jobs("kdzoo_cifar10", ["seed=1"], "resnet110-resnet20", "short")[:5]:
        both(composer, job)


def test_a_sweep_with_settings_of_hydras(hydra: Any) -> None:
    settings = ["hydra/sweeper=search", "hydra.sweeper.trials=3", "hydra.job.config.override_dirname.item_sep=';'"]
    both(composer_of(hydra, *settings), [*BASE, "method=at", "seed=4"])


def test_a_folder_of_more_groups(hydra: Any, tmp_path: Path) -> None:
    """hydra.searchpath brings groups that the loader's own repository does not know."""
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "some.yaml").write_text("# @package _global_\nseed: 44\n")
    with_more = composer_of(hydra, f"hydra.searchpath=[{tmp_path}]")
    both(with_more, [*BASE, "+extra=some"])
    assert with_more.job_config([*BASE, "+extra=some"]).seed == 44


def test_the_values_of_a_job_are_its_own(composer: Composer) -> None:
    job = [*BASE, "method=kd", "seed=11"]
    first = composer.job_config(job)
    before = all_of(first)
    other = composer.job_config([*job[:-1], "seed=12", "recipe.lr=7", "method.kd.weights.soft=9", "~outputs"])
    assert (all_of(first), first.seed, other.seed) == (before, 11, 12)
    assert all_of(composer.job_config(job)) == before


def test_hydra_composes_once_for_each_choice_of_files(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []
    real = composer.loader.load_sweep_config

    def counted(config: DictConfig, overrides: list[str]) -> DictConfig:
        composed.append(overrides)
        return real(config, overrides)

    fresh = Composer(composer.loader, composer.config)
    monkeypatch.setattr(fresh.loader, "load_sweep_config", counted)
    for method in ("kd", "rkd"):
        for seed in range(20):
            fresh.job_config([*BASE, f"method={method}", f"seed={seed}", "+method.x=1"])
            fresh.load_sweep_config(fresh.config, [*BASE, f"method={method}", f"seed={seed}"])
    assert composed == [[*BASE, "method=kd"], [*BASE, "method=rkd"]]


def test_what_was_checked_once_is_given_away_as_a_copy(composer: Composer) -> None:
    """`validate` remembers parts of configs; the objects that it returns belong to the caller."""
    composed = composer.job_config([*BASE, "method=kd"])
    first, second = validate(composed), validate(composed)
    assert first == second
    first.method["kd"].weights["soft"] = 99.0
    first.recipe.milestones.append(0.5)
    first.engine.threads, first.plugins[:] = 7, ["x"]
    assert validate(composed) == second
    assert (first.recipe, first.plugins) != (second.recipe, second.plugins)


def test_values_of_other_types_are_checked_apart(composer: Composer) -> None:
    """1, 1.0, true and '1' are equal in Python or in print, not in a config."""
    words = set()
    for value in ("1", "1.0", "true", "'1'", "1e0"):
        config = validate(composer.job_config([*BASE, "method=kd", f"+method.kd.stages.x={value}"]))
        words.add(repr(config.method["kd"].stages["x"]))
    assert words == {"1", "1.0", "True", "'1'"}


def test_a_sweep_reads_each_data_set_once(composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing a folder of images for each of a thousand jobs would take minutes."""
    read = []
    real = TASK.checksum
    monkeypatch.setattr(TASK, "checksum", lambda cfg, outputs: read.append(cfg.holdout) or real(cfg, outputs))
    sweep = [[*BASE, f"outputs={tmp_path}", f"dataset.holdout={n}", f"seed={s}"] for n in (0, 100) for s in (0, 1, 2)]
    planned = plan_jobs(sweep, composer.job_config)
    assert read == [0, 100]
    assert len({job.plan.id for job in planned if job.plan}) == 6
    assert [job.plan.id for job in planned if job.plan] == [
        prepare(composer.loader.load_sweep_config(composer.config, job)).id for job in sweep
    ]
    assert len({id(job.plan.config.dataset) for job in planned if job.plan}) == 6


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(b"one")
    first = file_sha256(file)
    assert file_sha256(file) == first == hashlib.sha256(b"one").hexdigest()
    os.utime(file, ns=(1, 1))
    assert file_sha256(file) == first
    file.write_bytes(b"two")
    assert file_sha256(file) == hashlib.sha256(b"two").hexdigest()
    file.unlink()
    with pytest.raises(KdrunError, match="cannot read"):
        file_sha256(file)


def test_runs_of_other_seeds_are_estimated_once(
    composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    estimated = []

    def counted(plan: Plan, finished: list) -> Estimate:
        estimated.append(plan.config.seed)
        return Estimate(60, 0, "made up")

    monkeypatch.setattr(planning, "estimate", counted)
    sweep = [[*BASE, f"outputs={tmp_path}", f"method={m}", f"seed={s}"] for m in ("none", "kd") for s in (0, 1, 2)]
    planning.show_plan([], sweep, composer.job_config)
    assert len(estimated) == 3  # the teacher, none, kd
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 runs asked for; 1 teacher to train first"
    assert [line.endswith("to do   about 1:00 (made up)") for line in lines[1:-1]] == [True] * 7
    assert lines[-1] == "left     about 7:00 in one process"


# The groups of models ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def scanned() -> None:
    """Hydra runs the modules of plug-ins anew when it looks for them: the classes are those of afterwards."""
    Plugins.instance()


def test_the_source_knows_models_and_datasets_and_nothing_else() -> None:
    source = kdrun_models.ModelSource("kdrun", "kdrun://models")
    assert source.list("", ObjectType.GROUP) == ["dataset", "student", "teacher"]
    assert source.list("", ObjectType.CONFIG) == []
    assert source.list("student", ObjectType.CONFIG) == sorted(MODELS.entries())
    assert {*source.list("teacher", None)} - {*source.list("student", None)} == {"none"}
    assert source.list("teacher", ObjectType.GROUP) == []
    assert source.list("dataset", None) == []  # plug-ins alone: tests/test_datasets.py
    assert source.is_config("teacher/resnet20.yaml")
    assert source.is_config("student/resnet20")
    for path in ("student/none", "method/kd", "resnet20", "config", "student", "student/resnet20/x", "dataset/digits"):
        assert not source.is_config(path)
        with pytest.raises(ConfigLoadError):
            source.load_config(path)
    assert [source.is_group(path) for path in ("", "student", "teacher/", "method", "student/resnet20")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert source.load_config("teacher/resnet20").config.name == "resnet20"
    assert source.load_config("teacher/none").config.name == "none"


def test_a_node_is_a_copy() -> None:
    source = kdrun_models.ModelSource("kdrun", "kdrun://models")
    source.load_config("student/resnet20").config.label = "mine"
    assert source.load_config("student/resnet20").config.label is None


def test_other_programs_with_hydra_get_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    class Path_:
        def __init__(self) -> None:
            self.given: list[dict[str, str]] = []

        def append(self, **given: str) -> None:
            self.given.append(given)

    register_nodes()
    ours, theirs = Path_(), Path_()
    kdrun_models.ModelSearchPath().manipulate_search_path(ours)  # type: ignore[arg-type]
    monkeypatch.setattr(ConfigStore.instance(), "repo", {})
    kdrun_models.ModelSearchPath().manipulate_search_path(theirs)  # type: ignore[arg-type]
    assert (ours.given, theirs.given) == ([{"provider": "kdrun", "path": "kdrun://models"}], [])


def test_the_process_of_a_job_imports_the_plugins_that_brought_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It composes its job before kdrun itself is called. What cannot be imported there is no error until it is needed."""
    import sys

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "late_models.py").write_text(
        "from kdrun.models import register\n\n\n@register\ndef lately(classes, *, width: int = 3):\n    ...\n"
    )
    __import__("late_models")
    kept = pickle.dumps(kdrun_models.ModelSource("kdrun", "kdrun://models"))
    plugins = dict(MODELS.plugins)
    try:
        MODELS.plugins.clear()
        del sys.modules["late_models"]
        source = pickle.loads(kept)
        assert source.load_config("student/lately").config.width == 3
        MODELS.plugins.clear()
        del sys.modules["late_models"]
        (tmp_path / "late_models.py").unlink()
        assert not pickle.loads(kept).is_config("student/lately")
    finally:
        MODELS.plugins.clear()
        MODELS.plugins |= {name: item for name, item in plugins.items() if name != "lately"}
        sys.modules.pop("late_models", None)


def test_hydras_store_is_not_copied_and_gives_copies() -> None:
    register_nodes()
    store = ConfigStore.instance()
    assert copy.deepcopy(store) is store
    store.load("schema.yaml").node.seed = 5
    assert store.load("schema.yaml").node.seed == 0
    assert kdrun_models.ModelSource in Plugins.instance().discover()
