"""How long the command takes before it trains: help, lists, completion, a finished run, plans, and the start of a sweep.

    python benchmarks/start.py [--other CHECKOUT] [--jobs 100 1000]

The real command in a new folder, with the digits. `--other`: another checkout of kdrun, timed in turns with this one. Short commands
are timed three times, and the fastest counts; plans and starts of sweeps once. The time of the processor stands beside the time on
the clock, because other programs change it less.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
RUN = ["dataset=digits", "recipe=quick", "recipe.epochs=1", "student=resnet8"]
FINISHED = [*RUN, "teacher=none", "method=none"]
COMPLETION = "kdrun method=r"


def sweep(jobs: int) -> list[str]:
    """The overrides of a sweep of so many jobs: four methods and their seeds."""
    return [*RUN, "teacher=resnet14", "method=none,kd,rkd,at", f"seed=range(0,{jobs // 4})", "outputs=elsewhere"]


def start(checkout: Path, folder: Path, arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "COMP_LINE": COMPLETION}
    return subprocess.Popen(
        [sys.executable, "-m", "kdrun", *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


def timed(checkout: Path, folder: Path, arguments: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of the processor that a command took; of a sweep (-m), until its first line."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = start(checkout, folder, arguments)
    assert process.stdout is not None
    if arguments[0] == "-m":
        line = process.stdout.readline()
        clock = time.perf_counter() - began
        process.kill()
        process.wait()
        if "runs asked for" not in line:
            raise SystemExit(f"{checkout}: the sweep did not start")
    else:
        process.communicate()
        clock = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{checkout}: kdrun {' '.join(arguments)} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, action="append", default=[])
    parser.add_argument("--jobs", type=int, nargs="*", default=[100, 1000])
    options = parser.parse_args()
    checkouts = [*(path.resolve() for path in options.other), HERE]
    rows = [
        ("--help", ["--help"], 3),
        ("methods", ["methods"], 3),
        ("shell completion", ["-sc", "query=bash"], 3),
        ("a finished run", FINISHED, 3),
        *((f"plan of {jobs:,} jobs", ["plan", *sweep(jobs)], 1) for jobs in options.jobs),
        *((f"start of {jobs:,} jobs (-m)", ["-m", *sweep(jobs)], 1) for jobs in options.jobs),
    ]
    with tempfile.TemporaryDirectory() as place:
        folders = {path: Path(place, str(number)) for number, path in enumerate(checkouts)}
        for path, folder in folders.items():  # each reads its own records
            folder.mkdir()
            start(path, folder, FINISHED).communicate()
        print(f"{'seconds on the clock (of the processor)':<40}" + "".join(f"{path.name:>20}" for path in checkouts))
        for name, arguments, times in rows:
            taken: dict[Path, list[tuple[float, float]]] = {path: [] for path in checkouts}
            for _ in range(times):
                for path, folder in folders.items():
                    taken[path].append(timed(path, folder, arguments))
            fastest = [[min(times) for times in zip(*taken[path], strict=True)] for path in checkouts]
            cells = [f"{clock:.2f} ({processor:.2f})" for clock, processor in fastest]
            print(f"{name:<40}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
