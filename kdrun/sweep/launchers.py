"""What kdrun knows of Hydra's launchers: how much of the machine a job may use, and where its lines are printed.

The jobs of basic and joblib print on kdrun's own screen. The processes of submitit and Ray print elsewhere, so the lines of a job
are read from the state that it leaves, and are printed here as jobs end (`repeated`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from hydra.core.utils import JobReturn

from kdrun import process
from kdrun.process import cores
from kdrun.sweep.folder import read_job

GIVES_GPUS = ("submitit_slurm", "ray")  # these set CUDA_VISIBLE_DEVICES for every job


def name(hydra: Any) -> str:
    """The launcher as it was chosen: hydra/launcher=NAME."""
    return str(hydra.runtime.choices["hydra/launcher"])


def side_by_side(hydra: Any) -> int:
    """How many jobs share this machine's cores; 1 where a job is alone, or the launcher deals the cores out itself.

    submitit_local starts all that it is given at once, so kdrun gives it no more jobs at a time than there are cores for.
    """
    launcher, sweeper = hydra.launcher, hydra.sweeper
    if name(hydra) == "joblib":
        jobs = launcher.n_jobs
        return jobs if jobs > 0 else max(1, cores() + 1 + jobs)  # joblib's -1: as many as cores; -2: one less
    if name(hydra) == "submitit_local":
        at_once = sweeper.get("max_batch_size") or sweeper.get("at_once")
        return at_once or max(1, cores() // (launcher.cpus_per_task or 1))
    return 1


def threads(hydra: Any) -> int | None:
    """Torch's threads in one job: the cores that the launcher gives it, or its share of the cores here; None: torch's own choice."""
    launcher = hydra.launcher
    if name(hydra) == "ray":
        return max(1, int(launcher.ray.remote.get("num_cpus") or 1))  # 1 is Ray's own default
    if name(hydra).startswith("submitit_") and launcher.cpus_per_task:
        return int(launcher.cpus_per_task)
    jobs = side_by_side(hydra)
    return max(1, cores() // jobs) if jobs > 1 else None


def takes_turns(hydra: Any) -> bool:
    """Whether the jobs deal the GPUs out among themselves, round robin."""
    return name(hydra) not in GIVES_GPUS and side_by_side(hydra) > 1


def notes(hydra: Any) -> list[str]:
    """Lines for the user before the first job: where the logs are, and that the launcher hides the GPUs unless it is told otherwise."""
    lines = []
    if name(hydra).startswith("submitit_"):
        lines.append(f"log      {hydra.sweep.dir}/.submitit/*/*_log.out and *_log.err")
    hides = None
    if name(hydra) == "submitit_local" and not hydra.launcher.gpus_per_node:
        hides = "hydra.launcher.gpus_per_node=N"
    if name(hydra) == "ray" and not hydra.launcher.ray.remote.get("num_gpus"):
        hides = "+hydra.launcher.ray.remote.num_gpus=1"
    if hides and any(Path("/dev").glob("nvidia[0-9]*")):
        lines.append(f"note     {name(hydra)} hides this machine's GPUs from its jobs unless {hides}")
    return lines


def arrive(hydra: Any) -> None:
    """Set up the process of a job that another program started, as on a Ray cluster: the command's folder and environment."""
    process.prepare()
    if os.getcwd() != hydra.runtime.cwd:
        os.chdir(hydra.runtime.cwd)


def settle(launcher: Any) -> None:
    """Ray's settings that a sweep needs, where the user has set nothing else."""
    if hasattr(launcher, "ray_cfg"):
        init = launcher.ray_cfg.init
        init.setdefault("log_to_driver", False)  # it leaves out lines that look alike, as those of two seeds do
        init.setdefault("logging_level", "warning")
        if init.get("address"):
            init.setdefault("object_store_memory", None)  # the launcher sets a size, which a running cluster refuses


@contextmanager
def repeated(folder: Path, launcher: str) -> Iterator[None]:
    """Print the lines of jobs that run elsewhere, as soon as each leaves its state (jobs/<number>.json)."""
    if not (launcher == "ray" or launcher.startswith("submitit_")):
        yield
        return
    seen, over = set(folder.glob("jobs/*.json")), Event()

    def print_new() -> None:
        for path in sorted(set(folder.glob("jobs/*.json")) - seen, key=lambda path: path.stat().st_mtime):
            seen.add(path)
            for line in read_job(path).get("lines", []):
                print(line, flush=True)

    def watch() -> None:
        while not over.wait(0.5):
            print_new()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print_new()


@contextmanager
def patient(launcher: str, report: Callable[[Exception], None]) -> Iterator[None]:
    """Wait for every job of a launch, also after one whose process died: `report` is given its error, Hydra an empty result.

    The launchers of submitit and Ray wait for one job after the other and give up at the first without a result, which would leave
    the later ones to themselves. So the function that they wait with is replaced meanwhile.
    """
    owner: Any
    died: Any
    empty: Any
    if launcher == "ray":
        import ray

        owner, name, died, empty = ray, "get", ray.exceptions.RayError, JobReturn()
    elif launcher.startswith("submitit_"):
        from submitit.core import core, utils

        owner, name, died, empty = core.Job, "results", utils.UncompletedJobError, [JobReturn()]
    else:
        yield
        return
    wait = getattr(owner, name)

    def wait_or_report(job: Any) -> Any:
        try:
            return wait(job)
        except died as error:
            report(error)
            return empty

    setattr(owner, name, wait_or_report)
    try:
        yield
    finally:
        setattr(owner, name, wait)


def gist(error: BaseException) -> str:
    """The most telling line of a long message: the last of a traceback, or else the first two lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    raised = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return raised[-1] if raised else " ".join(lines[:2]) or type(error).__name__
