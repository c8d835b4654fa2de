"""Published tables: each cell is a command that composes, with the table's own weights."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.registry import METHODS, MODELS
from kdrun.config.schema import Config, conf_folder
from kdrun.config.tables import Cell, cells, jobs, table_names
from kdrun.engine.build import term_weights
from kdrun.errors import KdrunError
from kdrun.methods.base import DataFacts
from kdrun.methods.distillation import Distillation
from kdrun.report.against import FOLDER, published, published_name
from kdrun.runs.identity import is_fresh
from kdrun.runs.plan import settings
from kdrun.sweep.planning import expand
from kdrun.tasks import classes as image

SCRIPT = Path(__file__).parents[1] / "scripts" / "reproduce.sh"
CLASSES = 100
FACTS = DataFacts(2 * CLASSES, torch.arange(2 * CLASSES) % CLASSES, CLASSES, torch.zeros(2, 3, 32, 32))
model = functools.cache(lambda name, role: MODELS.get(name)(CLASSES))  # each role's models are made once for all cells


@functools.cache
def composed(method: str, overrides: tuple[str, ...]) -> Config:
    """The config of these cells, whatever their pair: a pair adds nothing but two names."""
    register_nodes()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder().resolve())):
        return validate(compose("config", [f"method={method}", *overrides]))


@pytest.mark.parametrize("name", table_names())
def test_every_cell_composes_and_builds(name):
    """A key that no method has, a model or a tap that does not exist, or a pair that cannot work: an error here, not after a week."""
    for cell in cells(name):
        config = composed(cell.method, cell.overrides)
        teacher: nn.Module | None = None if is_fresh(config) else model(cell.teacher, "teacher")
        built = Distillation(
            model(cell.student, "student"),
            teacher,
            {key: (METHODS.get(key), values) for key, values in settings(config).items()},
            data=FACTS,
            task=image.loss,
            fresh=lambda i, teacher=cell.teacher: model(teacher, f"peer{i}"),
        )
        assert built.stages, cell
        term_weights(config)  # raises for schedules without a weight


@pytest.mark.parametrize("name", table_names())
def test_a_table_and_its_published_scores_have_the_same_cells(name):
    """Nothing is trained that has no score to stand beside, and no score is left without a command."""

    def named(cell: Cell) -> tuple[str, ...]:
        config = composed(cell.method, cell.overrides)
        record = {"method": [*config.method], "identity": {"method": settings(config)}}
        row = published_name(SimpleNamespace(row=SimpleNamespace(first=record)))
        return config.dataset.name, cell.teacher, cell.student, row

    ours = [named(cell) for cell in cells(name)]
    assert sorted(ours) == sorted((one.dataset, one.teacher, one.student, one.method) for one in published(name))


def test_published_scores_and_tables_come_in_pairs():
    assert sorted(file.stem for file in FOLDER.glob("*.csv")) == table_names()


@pytest.mark.parametrize(
    "file", sorted([*conf_folder().glob("table/*.yaml"), *conf_folder().glob("experiment/*.yaml")])
)
def test_a_header_says_how_it_is_run_and_what_to_expect(file):
    header = "".join(line for line in file.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    command = (
        f"kdrun experiment={file.stem}" if file.parent.name == "experiment" else f"kdrun -m table={file.stem} seed="
    )
    assert command in header
    assert "not run in full yet" in header or re.search(r"\d (s|min|h)\b", header)


def test_kdzoo_has_its_rows_and_pairs():
    found = cells("kdzoo_cifar10")
    assert len({cell.method for cell in found}) == 22
    assert {(cell.teacher, cell.student) for cell in found} == {
        ("resnet20", "resnet20"), ("resnet110", "resnet20"), ("resnet110", "resnet110"),
    }  # fmt: skip


def test_a_pair_has_its_own_settings():
    """RepDistiller sums four layers for VGG, trains small students at 0.01, and has no FSP where channels differ."""
    found = {(cell.teacher, cell.student, cell.method): cell for cell in cells("crd_cifar100")}
    assert "method.at.weights.attention=3000" in found["resnet56", "resnet20", "at"].overrides
    assert "method.at.weights.attention=4000" in found["vgg13", "vgg8", "at"].overrides
    assert "recipe.lr=0.01" in found["resnet32x4", "shufflenetv2", "kd"].overrides
    assert "recipe.lr=0.01" not in found["resnet32x4", "resnet8x4", "kd"].overrides
    assert ("wrn_40_2", "wrn_40_1", "fsp") not in found
    assert ("wrn_40_2", "wrn_16_2", "fsp") in found
    assert isinstance(found["vgg13", "vgg8", "ab"], Cell)


def test_kdzoo_has_another_weight_of_crd_for_cifar100():
    ten, hundred = (
        {(cell.teacher, cell.student, cell.method): cell.overrides[2:] for cell in cells(f"kdzoo_cifar{classes}")}
        for classes in (10, 100)
    )
    assert {key[2] for key in ten if ten[key] != hundred[key]} == {"crd"}
    assert hundred["resnet110", "resnet20", "crd"] == ("method.crd.weights.contrast=0.8",)
    assert ten.keys() == hundred.keys()


@pytest.mark.parametrize(
    ("pair", "beta"),
    [
        ("resnet56-resnet20", 2), ("resnet110-resnet32", 2), ("resnet32x4-resnet8x4", 8), ("wrn_40_2-wrn_16_2", 6),
        ("wrn_40_2-wrn_40_1", 6), ("vgg13-vgg8", 6), ("resnet32x4-shufflenetv1", 8), ("wrn_40_2-shufflenetv1", 8),
        ("vgg13-mobilenetv2", 6), ("resnet50-mobilenetv2", 8), ("resnet32x4-shufflenetv2", 8),
    ],
)  # fmt: skip
def test_mdistiller_has_a_beta_for_each_pair(pair, beta):
    """Those of its configs; the warm-up is 20 epochs of 240 for each."""
    (cell,) = [c for c in cells("mdistiller_cifar100") if f"{c.teacher}-{c.student}" == pair and c.method == "dkd"]
    config = composed(cell.method, cell.overrides)
    values = settings(config)["dkd"]
    assert (values["weights"]["target"], values["weights"]["rest"]) == (1, beta)
    assert values["temperature"] == 4
    assert round(values["schedules"]["rest"]["until"] * config.recipe.epochs) == 20
    assert config.recipe.lr == (0.01 if cell.student.startswith(("mobilenet", "shufflenet")) else 0.05)


@pytest.mark.parametrize(
    ("pair", "soft", "beta", "dkd"),
    [
        ("resnet32x4-resnet8x4", (2, 9), 8, (2, 9, 72)),
        ("vgg13-vgg8", (3, 9), 6, (2, 15, 30)),
        ("wrn_40_2-wrn_40_1", (2, 9), 6, (2, 12, 24)),
        ("wrn_40_2-wrn_16_2", (2, 9), 6, (2, 12, 24)),
        ("resnet56-resnet20", (2, 9), 2, (3, 18, 36)),
        ("resnet110-resnet32", (2, 9), 2, (2, 15, 30)),
        ("resnet110-resnet20", (4, 12), 2, (2, 15, 30)),
    ],
)
def test_logit_standardization_has_two_rows_of_each_method(pair, soft, beta, dkd):
    """Temperature and weights, from the names of the logs that its table links to."""
    teacher, _, student = pair.partition("-")
    found = {}
    for cell in cells("logitstd_cifar100"):
        if (cell.teacher, cell.student) == (teacher, student):
            ((method, values),) = settings(composed(cell.method, cell.overrides)).items()
            found[method, values["standardize"]] = values["temperature"], values["weights"]
    assert found == {
        ("kd", False): (4, {"soft": 0.9, "task": 0.1}),
        ("kd", True): (soft[0], {"soft": soft[1], "task": 0.1}),
        ("dkd", False): (4, {"target": 1, "rest": beta}),
        ("dkd", True): (dkd[0], {"target": dkd[1], "rest": dkd[2]}),
    }
    assert len(jobs("logitstd_cifar100", ["method=dkd"], pair)) == 2


def test_an_unknown_table_names_the_others():
    with pytest.raises(KdrunError, match=r"no table 'kdzoo_cifar'. Did you mean kdzoo_cifar10"):
        cells("kdzoo_cifar")


def test_a_table_is_the_jobs_of_a_sweep():
    """One pair, some rows, a budget; what the command says wins over the table."""
    found = jobs("kdzoo_cifar10", ["method=kd", "seed=0", "recipe=quick"], "resnet110-resnet20", "smoke")
    (job,) = found
    assert job[:3] == ["teacher=resnet110", "student=resnet20", "method=kd"]
    assert set(job[3:]) == {
        "dataset=cifar10", "recipe=quick", "recipe.epochs=1", "teacher.recipe.epochs=1", "seed=0",
    }  # fmt: skip
    assert len(jobs("kdzoo_cifar10", ["seed=0"])) == 66
    assert expand([["method=kd", "seed=1"]]) == [["method=kd", "seed=1"]]
    twice = expand([["table=kdzoo_cifar10", "pair=resnet20-resnet20", "method=kd", f"seed={seed}"] for seed in (0, 1)])
    assert [job[-1] for job in twice] == ["seed=0", "seed=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["method=dkd"],), "table kdzoo_cifar10 has no row 'dkd'. Did you mean kd"),
        (([], "resnet20-resnet8"), "table kdzoo_cifar10 has no pair 'resnet20-resnet8'"),
        (([], None, "tiny"), "no budget 'tiny'. Choices: full, short, smoke"),
    ],
)
def test_what_a_table_lacks_is_told(arguments, message):
    with pytest.raises(KdrunError, match=re.escape(message)):
        jobs("kdzoo_cifar10", *arguments)


def reproduce(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(SCRIPT), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not part of the source distribution")
@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        ("nope", "no table 'nope'|kdzoo_cifar100|logitstd_cifar100", 1),
        ("kdzoo_cifar100 pair=a-b", "has no pair 'a-b'|resnet110-resnet20", 1),
        ("kdzoo_cifar100_r20_r21", "no pair 'resnet20-resnet21'|Did you mean resnet20-resnet20?", 1),
        ("mdistiller_cifar100_r32x4_r8", "no pair 'resnet32x4-resnet8'|Did you mean resnet32x4-resnet8x4?", 1),
        ("kdzoo_cifar100 budget=tiny", "no budget 'tiny'|full, short, smoke", 1),
        ("kdzoo_cifar100 seeds=abc", "seeds=abc|whole number|seeds=3", 2),
        ("kdzoo_cifar100 seeds=0", "seeds=0|whole number|seeds=3", 2),
        ("kdzoo_cifar100 seeds=", "seeds=|whole number|seeds=3", 2),
        ("kdzoo_cifar100 seed=0,1", "seed=0,1|seeds=N", 2),
    ],
)
def test_reproduce_says_in_one_line_what_is_wrong(arguments, words, status, tmp_path):
    done = reproduce(tmp_path, *arguments.split())
    assert done.returncode == status
    (line,) = done.stderr.splitlines()
    assert not [word for word in words.split("|") if word not in line], line
    assert not done.stdout
    assert not [*tmp_path.rglob("*.json")]


@pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not part of the source distribution")
def test_reproduce_says_how_it_is_used(tmp_path):
    for arguments, status in (((), 2), (("--help",), 0)):
        done = reproduce(tmp_path, *arguments)
        assert done.returncode == status
        assert (done.stdout or done.stderr).startswith("Reproduce a published table")
        assert bool(done.stdout) == (status == 0)


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not part of the source distribution")
def test_reproduce_trains_and_reports(tmp_path):
    """A pair of a table on other images, at the smallest budget: two rows, two seeds, a table at the end; again, all is done."""
    arguments = [
        "kdzoo_cifar10_r20_r20",
        "seeds=2",
        "budget=smoke",
        "method=none,kd",
        "dataset=digits",
        "recipe=quick",
    ]
    for told in ("4 runs asked for: 2 seed; 1 teacher to train first", "4 runs asked for: 2 seed; 4 done, 0 to do"):
        done = reproduce(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == told
        assert "resnet20 -> resnet20" in done.stdout
        assert "gain over none" in done.stdout  # the table of the sweep


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not part of the source distribution")
def test_two_rows_of_one_method_are_two_runs(tmp_path):
    arguments = ["method=dkd", "dataset=digits", "budget=smoke"]
    done = reproduce(tmp_path, "logitstd_cifar100_r56_r20", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "2 runs asked for; 1 teacher to train first"
    records = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/digits/dkd/**/record.json")]
    assert {record["identity"]["method"]["dkd"]["standardize"] for record in records} == {False, True}
