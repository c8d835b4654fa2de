"""What happens to a run from outside or in its numbers: NaN, signals, a full disk, a second process, changed source."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from last_wins import last_wins

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TINY = ["dataset=digits", "recipe=quick", "student=resnet8", "recipe.batch_size=200"]
ALONE = [*TINY, "method=none", "recipe.epochs=2"]
LONG = [*TINY, "method=none", "recipe.epochs=30"]  # epochs of 0.2 s


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kdrun", *last_wins(arguments)]


def kdrun(folder: Path, *arguments: str, **settings) -> subprocess.CompletedProcess:
    settings = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 300, **settings}
    return subprocess.run(command(*arguments), cwd=folder, **settings)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """A run in the background that Ctrl-C reaches, even where the tests themselves were started with SIGINT ignored (`&`)."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen(command(*arguments), cwd=folder, env=ENVIRONMENT, preexec_fn=heard, **pipes)


def records(folder: Path) -> dict[Path, dict]:
    return {path.parent: json.loads(path.read_text()) for path in (folder / "outputs").rglob("record.json")}


def only(folder: Path) -> tuple[Path, dict]:
    (found,) = records(folder).items()
    return found


def wait_for(folder: Path, name: str, process: subprocess.Popen, seconds: float = 180) -> Path:
    """The first file `name` below outputs/, once there is one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        found = sorted((folder / "outputs").rglob(name))
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no {name}: {process.communicate()}")


def temporaries(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".tmp" in p.name or p.name.startswith(".record.json.")]


def one_line(stderr: str) -> str:
    (line,) = stderr.splitlines()
    assert line.startswith("kdrun: ")
    return line


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_kill_while_a_run_is_cleared_is_harmless(kept, tmp_path, monkeypatch):
    """rerun=true killed after any number of files: never a record whose weights are gone, never a resume from half a folder."""
    from kdrun.runs.folder import clear

    names = [
        "config.yaml",
        "curves.jsonl",
        "last.ckpt",
        "record.json",
        "student.safetensors",
        "student-best.safetensors",
    ]
    for name in [*names, ".lock"]:
        (tmp_path / name).touch()
    left, unlink = [kept], Path.unlink

    def killed(path, **arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            clear(tmp_path)
    found = {path.name for path in tmp_path.iterdir()}
    assert "last.ckpt" not in found or found >= {*names}
    assert "record.json" not in found or found >= {*names} - {"last.ckpt"}
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
def test_nan_stops_and_says_where(tmp_path):
    arguments = [*ALONE, "recipe.lr=1e30", "recipe.warmup=0"]
    line = one_line((done := kdrun(tmp_path, *arguments)).stderr)
    assert done.returncode == 1
    assert "NaN at step" in line
    assert "term task" in line
    _, record = only(tmp_path)
    assert record["status"] == "nan"
    assert record["error"]["term"] == "task"
    assert record["error"]["step"] >= 1
    again = kdrun(tmp_path, *arguments)
    assert again.returncode == 1
    assert "rerun=true" in one_line(again.stderr)


FAULT = """
import atexit, threading
from kdrun.engine import loop
from kdrun.methods import Distillation
calls = []
def fault(*arguments, **named):
    calls.append(1)
    if len(calls) == 8:
        raise RuntimeError("broken")
    return was(*arguments, **named)
was, {place} = {place}, fault
left = lambda: [t for t in threading.enumerate() if type(t).__name__ == "_AsyncWriterThread"]
atexit.register(lambda: print("open:", left()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("place", "epochs", "step"), [("Distillation.after_step", 2, 8), ("loop.evaluate", 8, None)])
def test_an_exception_is_recorded_with_its_place(place, epochs, step, tmp_path):
    """In a step, and in the evaluation after an epoch; TensorBoard's thread does not outlive the run."""
    (tmp_path / "fault.py").write_text(FAULT.format(place=place))
    done = kdrun(tmp_path, *ALONE, f"recipe.epochs={epochs}", "plugins=[fault]")
    assert done.returncode == 1
    assert "broken" in one_line(done.stderr)
    assert "open: []" in done.stdout
    error = only(tmp_path)[1]["error"]
    assert (error["type"], error["stage"], error["step"]) == ("RuntimeError", "distil", step)


@pytest.mark.slow
def test_nan_keeps_the_last_good_checkpoint(tmp_path):
    """Two epochs are good; the rate of the third, after the milestone, is 1e30 times the first's."""
    arguments = [*LONG, "recipe.epochs=4", "recipe.schedule=step", "recipe.milestones=[0.5]", "recipe.gamma=1e30"]
    done = kdrun(tmp_path, *arguments, "recipe.warmup=0")
    assert done.returncode == 1
    assert "checkpoint is kept" in one_line(done.stderr)
    import torch

    folder, record = only(tmp_path)
    assert record["last"]["epoch"] == 2
    state = torch.load(folder / "last.ckpt", weights_only=True)
    assert state["progress"]["epoch"] == 2
    assert all(v.isfinite().all() for v in state["distillation"].values())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_the_same_command_goes_on(number, status, tmp_path):
    process = start(tmp_path, *LONG)
    wait_for(tmp_path, "last.ckpt", process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == status
    assert "the same command goes on" in one_line(stderr)
    folder, record = only(tmp_path)
    assert record["status"] == "interrupted"
    assert record["error"]["stage"] == "distil"
    assert not temporaries(tmp_path)
    assert not (folder / ".holder.json").exists()
    done = kdrun(tmp_path, *LONG)
    assert done.returncode == 0, done.stderr
    _, record = only(tmp_path)
    assert (record["status"], record["resumed"], record["last"]["epoch"]) == ("done", 1, 30)


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path):
    """The disk is a limit on the size of a file, which writes meet as they meet a full disk."""
    process = start(tmp_path, *LONG)
    checkpoint = wait_for(tmp_path, "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    before = checkpoint.read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    done = kdrun(tmp_path, *LONG, preexec_fn=limit)
    assert done.returncode == 1
    assert "free space" in one_line(done.stderr)
    assert checkpoint.read_bytes() == before
    assert not temporaries(tmp_path)
    assert only(tmp_path)[1]["status"] == "failed"
    assert kdrun(tmp_path, *LONG).returncode == 0
    assert only(tmp_path)[1]["status"] == "done"


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_leaves_no_running_record(tmp_path):
    (tmp_path / "full.py").write_text(
        "import errno\nfrom kdrun.engine import journal\n"
        "def full(path, text):\n    raise OSError(errno.ENOSPC, 'full', str(path))\njournal.save_text = full\n"
    )
    done = kdrun(tmp_path, *ALONE, "plugins=[full]")
    assert done.returncode == 1
    assert "free space" in one_line(done.stderr)
    assert only(tmp_path)[1]["status"] == "failed"


@pytest.mark.slow
def test_a_second_process_names_the_holder(tmp_path):
    process = start(tmp_path, *LONG, "recipe.epochs=100")
    try:
        wait_for(tmp_path, "last.ckpt", process)
        second = kdrun(tmp_path, *LONG, "recipe.epochs=100")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert second.returncode == 4
    assert f"process {process.pid} on" in one_line(second.stderr)


@pytest.mark.slow
def test_a_teacher_that_another_process_trains_is_waited_for(tmp_path):
    pair = [*TINY, "teacher=resnet14", "method=kd", "recipe.epochs=1", "teacher.recipe.epochs=40"]
    first = start(tmp_path, *pair)
    wait_for(tmp_path, "last.ckpt", first)
    second = start(tmp_path, *pair, "seed=1")
    out, stderr = second.communicate(timeout=300)
    _, first_err = first.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (0, 0), stderr + first_err
    assert "waiting for it" in out
    assert f"process {first.pid}" in out
    found = list(records(tmp_path).values())
    teachers = [record for record in found if record["method"] == ["none"]]
    assert len(found) == 3
    assert len(teachers) == 1
    assert teachers[0]["resumed"] == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = kdrun(folder, *ALONE)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_finished_run_answers_without_torch(finished):
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kdrun", *ALONE],
        cwd=finished, env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    after = os.times()  # of the processor: by the clock, other tests count as well
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0
    assert "already done" in done.stdout
    assert not [
        line for line in done.stderr.splitlines() if line.rpartition("|")[2].strip() in ("torch", "torchvision")
    ]
    assert seconds < 2


@pytest.mark.slow
def test_another_protocol_trains_nothing(finished):
    folder, _ = only(finished)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = kdrun(finished, *ALONE, "protocol=best")
    assert done.returncode == 0
    assert "already done" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_method_whose_source_changed_says_so(tmp_path):
    source = (ROOT / "kdrun" / "methods" / "kd.py").read_text().replace("class KD(", "class MyKD(")
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    yaml = (ROOT / "conf" / "method" / "kd.yaml").read_text().replace("\nkd:", "\nmykd:")
    (tmp_path / "conf" / "method" / "mykd.yaml").write_text(yaml)
    pair = [*TINY, "teacher=resnet8", "recipe.epochs=1", "method=mykd", "plugins=[mine]", "--config-dir", "conf"]
    first = kdrun(tmp_path, *pair)
    assert first.returncode == 0, first.stderr
    assert "has changed" not in kdrun(tmp_path, *pair).stdout
    (tmp_path / "mine.py").write_text(source + "\n# other words\n")
    assert "has changed" not in kdrun(tmp_path, *pair).stdout
    (tmp_path / "mine.py").write_text(source + "\nANOTHER = 1\n")
    again = kdrun(tmp_path, *pair)
    assert again.returncode == 0
    assert "source of mykd has changed" in again.stdout
    assert "rerun=true" in again.stdout.splitlines()[-1]
    sweep = kdrun(tmp_path, *pair, "-m", "seed=0,1,2").stdout
    assert sweep.count("already done, but the source of mykd has changed since") == 1
    assert "note     the source of mykd has changed since mykd resnet8 seed 0; rerun=true" in sweep
    sweep = kdrun(tmp_path, *pair, "-m", "seed=0,1", "rerun=true").stdout
    assert "has changed" not in sweep


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("seed=1 rerun=false", "the same command"),
        ("seed=1 rerun=true", "the same command without rerun=true"),
        ("++rerun=1", "the same command without rerun=true"),
    ],
)
def test_a_rerun_is_not_taken_up_by_its_own_command(arguments, said):
    from kdrun.screen import again

    assert again(arguments.split()) == said


@pytest.mark.slow
@pytest.mark.parametrize("which", ["last", "best"])
def test_weights_of_a_teacher_that_are_not_those_of_its_record_are_refused(which, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    pair = [
        *TINY,
        "teacher=resnet8",
        "method=kd",
        "recipe.epochs=1",
        "teacher.recipe.epochs=1",
        f"teacher.weights={which}",
    ]
    assert kdrun(tmp_path, *pair).returncode == 0
    (teacher,) = (folder for folder, record in records(tmp_path).items() if record["method"] == ["none"])
    path = teacher / ("student.safetensors" if which == "last" else "student-best.safetensors")
    weights = load_file(path)
    save_file({**weights, "head.bias": torch.ones(10)}, path)
    line = one_line((done := kdrun(tmp_path, *pair, "seed=1")).stderr)
    assert done.returncode == 1
    sha256 = json.loads((teacher / "record.json").read_text())["student"]["sha256"]
    assert not [word for word in (path.name, sha256[:8], "rerun=true", "student=resnet8") if word not in line], line
    path.unlink()
    assert f"{path.name} are gone" in one_line(kdrun(tmp_path, *pair, "seed=1").stderr)


def test_threads_of_one_job_are_not_those_of_the_next():
    import torch

    from kdrun.config.schema import Engine
    from kdrun.engine.precision import resolve

    before = torch.get_num_threads()
    assert "cpu, 3 threads" in resolve(Engine(device="cpu", threads=3)).words
    assert torch.get_num_threads() == 3
    resolve(Engine(device="cpu"))
    assert torch.get_num_threads() == before
    assert "cpu, 1 thread, " in resolve(Engine(device="cpu", threads=1)).words
    resolve(Engine(device="cpu"))


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_cublas_is_told_to_be_deterministic(given, monkeypatch):
    from kdrun import cli

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    assert cli.run(["--version"]) == 0
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (given or ":4096:8")
