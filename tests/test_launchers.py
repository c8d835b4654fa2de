"""Launchers: what a job may use under each, and the same sweep under submitit and Ray: teachers first, what is missing, what failed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from last_wins import last_wins
from omegaconf import OmegaConf

from kdrun.config.explain import EXTRAS, message
from kdrun.sweep import job, launchers

TINY = [
    "dataset=digits", "recipe=quick", "recipe.epochs=1", "teacher=resnet14", "teacher.recipe.epochs=1", "student=resnet8",
]  # fmt: skip
SUBMITIT = ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2"]
RAY = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]


def has(extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(f"hydra_plugins.hydra_{extra}_launcher") is None
    return pytest.mark.skipif(missing, reason=f"pip install 'kdrun[{extra}]'")


HERE = [
    pytest.param(SUBMITIT, marks=has("submitit"), id="submitit_local"),
    pytest.param(RAY, marks=has("ray"), id="ray"),
]


def kdrun(folder: Path, *arguments: str) -> tuple[int, str, str]:
    home = folder / "home"  # Ray writes a token there
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", *last_wins(arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", HERE)
def test_a_sweep_is_the_same_under_every_launcher(launcher, tmp_path):
    """Teachers first; the lines of the jobs are on the screen; a job that fails is told and leaves the others alone; a second
    start trains what was added alone.
    """
    status, out, err = kdrun(tmp_path, "-m", *TINY, "method=none,kd", "seed=0,1", *launcher)
    assert status == 0, out + err
    lines = [line for line in out.splitlines() if not line.startswith("log ")]
    assert lines[0] == "4 runs asked for: 2 method x 2 seed; 1 teacher to train first"
    assert lines[1].startswith("  teacher   resnet14")
    assert all(line.startswith("  student") and "done in" in line for line in lines[2:6])
    assert "\nkd                 2" in out

    status, out, err = kdrun(tmp_path, "-m", *TINY, "method=none,kd,at", "seed=0,1,-1", *launcher)
    assert status == 3, out + err
    assert out.splitlines()[0] == "9 runs asked for: 3 method x 3 seed; 4 done, 5 to do"
    assert (out.count("already done"), out.count("done in"), out.count("  FAILED ")) == (4, 2, 3)
    assert "method=none seed=-1 and 2 more: seed is -1; it must be 0 or more" in out
    assert "\nat                 2" in out
    assert "6 done, 3 failed; the same command trains only what is missing" in err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", HERE)
def test_what_comes_after_a_failed_job_is_skipped_if_asked(launcher, tmp_path):
    """sweep.on_error=stop: what has not begun when a job fails is skipped, and says so."""
    one = ["hydra.sweeper.max_batch_size=1"]
    launcher = [argument for argument in launcher if "max_batch_size" not in argument] + one
    tiny = [*TINY, "teacher=none", "sweep.on_error=stop", "method=none"]
    status, out, _ = kdrun(tmp_path, "-m", *tiny, "seed=-1,0", *launcher)
    assert status == 3
    assert "sweep.on_error=stop, and a job before it failed" in out
    assert not list(tmp_path.glob("outputs/runs/**/record.json"))


DEADLY = """
import os
import signal

from kdrun.methods import Method, register


@register
class Deadly(Method):
    teacher = "none"

    def build(self, pair, *, power: float):
        if power == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    def loss(self, student, teacher, batch):
        return {"size": (student.logits ** 2).mean()}
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", HERE)
def test_a_killed_process_is_told_and_the_others_are_waited_for(launcher, tmp_path):
    """A job whose process is killed counts as failed, and the sweep goes on to its table. The method is a plug-in of the current
    folder, which the processes of the jobs find too.
    """
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "deadly.py").write_text(DEADLY)
    (tmp_path / "my_lab" / "method").mkdir()
    (tmp_path / "my_lab" / "method" / "deadly.yaml").write_text("deadly:\n  power: 1.0\n  weights: {size: 0.1}\n")
    tiny = [*TINY, "teacher=none", "plugins=[my_lab.deadly]", "method=deadly", "method.deadly.power=9,1,2"]
    status, out, err = kdrun(tmp_path, "--config-dir", "my_lab", "-m", *tiny, *launcher)
    assert status == 3, out + err
    assert out.count("done in") == 2
    assert "kdrun: a job was lost: " in err
    assert "the job left no state: was it killed, or never started?" in out
    assert "2 done, 1 failed" in err


@pytest.mark.slow
@has("submitit")
def test_submitit_starts_a_job_again_that_ran_out_of_time(tmp_path):
    """timeout_min: the job is told 30 s before its end, starts again and goes on after its last epoch."""
    tiny = last_wins([*TINY, "teacher=none", "method=none", "recipe.epochs=100000"])
    command = [
        sys.executable,
        "-m",
        "kdrun",
        "-m",
        *tiny,
        "hydra/launcher=submitit_local",
        "hydra.launcher.timeout_min=1",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(240):
            time.sleep(0.5)
            logs = list(tmp_path.glob("outputs/runs/**/log.txt"))
            if logs and "goes on after epoch" in logs[0].read_text():
                break
        else:
            pytest.fail("the job did not go on")
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@has("submitit")
def test_the_config_of_slurm_composes(tmp_path):
    """SLURM itself is not here to be run: its settings are accepted, and without a cluster one line says so."""
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]
    slurm += ["hydra.launcher.cpus_per_task=4", "hydra.launcher.max_num_timeout=10"]
    status, out, err = kdrun(tmp_path, *slurm, "--cfg", "hydra", "-p", "hydra.launcher")
    assert status == 0, err
    composed = OmegaConf.create(out)
    assert (composed.partition, composed.cpus_per_task, composed.max_num_timeout) == ("gpu", 4, 10)
    assert composed._target_.endswith("SlurmLauncher")


PAGE = Path(__file__).parents[1] / "docs" / "sweeps.md"


def test_every_command_of_the_page_composes(tmp_path):
    """The commands of docs/sweeps.md name settings that exist; those of a launcher that is not installed are left out."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for line in "".join(blocks).replace("\\\n", " ").splitlines() if line.startswith("kdrun -m")]
    assert len(lines) > 6
    for line in lines:
        arguments = [re.sub(r"=([\w.]+),.*", r"=\1", one) for one in shlex.split(line, comments=True)[2:]]
        arguments = [re.sub(r"=interval\(.*\)", "=2", one) for one in arguments]  # one job of the sweep
        status, _, err = kdrun(tmp_path, *arguments, "--cfg", "job")
        assert status == 0 or "is not installed: pip install" in err, (line, err)


def hydra(launcher: str, settings: dict, sweeper: dict | None = None):
    node = {"runtime": {"choices": {"hydra/launcher": launcher}}, "launcher": settings, "sweeper": sweeper or {}}
    return OmegaConf.create({**node, "job": {"num": 3}, "sweep": {"dir": "outputs/sweeps/now"}})


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (hydra("basic", {}), None),
        (hydra("joblib", {"n_jobs": 1}), None),
        (hydra("joblib", {"n_jobs": 4}), 2),
        (hydra("joblib", {"n_jobs": -1}), 1),
        (hydra("joblib", {"n_jobs": 16}), 1),
        (hydra("submitit_local", {"cpus_per_task": None}), 1),  # as many jobs at a time as cores
        (hydra("submitit_local", {"cpus_per_task": 4}), 4),
        (hydra("submitit_local", {"cpus_per_task": None}, {"max_batch_size": 2}), 4),
        (hydra("submitit_local", {"cpus_per_task": None}, {"at_once": 4}), 2),  # of a search
        (hydra("submitit_slurm", {"cpus_per_task": 6}), 6),
        (hydra("submitit_slurm", {"cpus_per_task": None}), None),  # torch sees the cores that SLURM gave
        (hydra("ray", {"ray": {"remote": {}}}), 1),
        (hydra("ray", {"ray": {"remote": {"num_cpus": 4}}}), 4),
        (hydra("ray", {"ray": {"remote": {"num_cpus": 0.5}}}), 1),
    ],
)
def test_a_job_takes_its_share_of_the_threads(node, expected, monkeypatch):
    """Of 8 cores: what the launcher was asked to give, or the share beside the other jobs; engine.threads overrules both."""
    monkeypatch.setattr(launchers, "cores", lambda: 8)

    def threads(asked: int | None) -> int | None:
        engine = SimpleNamespace(threads=asked)
        job.share(SimpleNamespace(config=SimpleNamespace(engine=engine), teacher=None), node)
        return engine.threads

    assert threads(None) == expected
    assert threads(3) == 3


@pytest.mark.parametrize(
    ("node", "gpu"),
    [
        (hydra("basic", {}), None),
        (hydra("joblib", {"n_jobs": 4}), 1),
        (hydra("submitit_local", {"cpus_per_task": 2}), 1),
        (hydra("submitit_slurm", {"cpus_per_task": 2}), None),  # SLURM and Ray say which GPU a job sees
        (hydra("ray", {"ray": {"remote": {"num_gpus": 1}}}), None),
    ],
)
def test_gpus_are_dealt_out_round_robin_where_the_launcher_does_not(node, gpu, monkeypatch):
    """Job 3 of two GPUs has the second."""
    import torch

    chosen: list[int] = []
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    job.share(SimpleNamespace(config=SimpleNamespace(engine=SimpleNamespace(threads=1)), teacher=None), node)
    assert chosen == ([] if gpu is None else [gpu])


def test_a_launcher_that_hides_gpus_says_so(monkeypatch):
    """submitit_local and Ray show a job no GPU unless they are asked to."""
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    (note,) = launchers.notes(hydra("ray", {"ray": {"remote": {}}}))
    assert "+hydra.launcher.ray.remote.num_gpus=1" in note
    assert launchers.notes(hydra("ray", {"ray": {"remote": {"num_gpus": 1}}})) == []
    log, note = launchers.notes(hydra("submitit_local", {"gpus_per_node": None}))
    assert log.startswith("log      outputs/sweeps/now/.submitit/")
    assert "hydra.launcher.gpus_per_node=N" in note


def test_a_running_ray_cluster_is_asked_for_no_object_store():
    """The launcher sets a size, which Ray refuses where it connects to a cluster; what the user set stands."""
    cluster = SimpleNamespace(ray_cfg=OmegaConf.create({"init": {"address": "auto", "log_to_driver": True}}))
    launchers.settle(cluster)
    assert cluster.ray_cfg.init == {
        "address": "auto", "log_to_driver": True, "logging_level": "warning", "object_store_memory": None,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "extra"), EXTRAS.items())
def test_a_launcher_that_is_not_installed_is_one_line(name, extra):
    from hydra.errors import MissingConfigException

    error = MissingConfigException("", f"hydra/launcher/{name}", ["basic"])
    assert message(error) == f"hydra/launcher={name} is not installed: pip install 'kdrun[{extra}]'"


def test_lines_of_jobs_are_printed_once_as_they_come(tmp_path, capsys):
    """What an earlier sweep left in the folder is not printed again; half a file is not printed at all."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "0.json").write_text(json.dumps({"lines": ["of an earlier sweep"]}))
    with launchers.repeated(tmp_path, "submitit_local"):
        for number, text in ((1, json.dumps({"lines": ["one", "two"]})), (2, '{"lines": ["thr')):
            (tmp_path / "jobs" / f"{number}.json").write_text(text)
    assert capsys.readouterr().out == "one\ntwo\n"


def test_the_gist_of_a_long_message():
    assert launchers.gist(RuntimeError("Job 1\nhas no output (state: INTERRUPTED)\nlog")) == (
        "Job 1 has no output (state: INTERRUPTED)"
    )
    assert launchers.gist(RuntimeError("failed with trace:\n---\n  File x\nImportError: no kdrun\n---")) == (
        "ImportError: no kdrun"
    )
    assert launchers.gist(KeyError()) == "KeyError"
