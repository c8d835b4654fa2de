"""What each method costs beside kd: time and memory of training, one method a process, in turns with kd.

    python benchmarks/methods.py [METHOD ...] [--rounds 7] [--steps 4] [--write docs/measured/costs.json]

resnet20 -> resnet8 on random images of 32 px, batches of 128, a training set of 50,000 rows, kdrun's own precision for the device. A
round times `steps` optimiser steps of each stage and of kd; the ratio is taken round by round and its median kept. The time of a
method with several stages is that of its stages by their shares of the epochs. Memory is how far the process's peak rises above what
it held before the first step (on a GPU: the allocator's peak), as a ratio to kd's own.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from kdrun.config.checks import validate
from kdrun.config.listing import methods_of_every_task
from kdrun.config.nodes import register_nodes
from kdrun.config.registry import METHODS, MODELS
from kdrun.config.schema import Config, conf_folder
from kdrun.engine.build import term_weights
from kdrun.engine.loop import enter, stage_recipe, weighted
from kdrun.engine.optimization import make_optimizer
from kdrun.engine.precision import resolve
from kdrun.methods.base import DataFacts, Stage
from kdrun.methods.distillation import Distillation
from kdrun.runs.plan import settings
from kdrun.tasks import classes as image

ROWS, CLASSES, BATCH, SIDE = 50_000, 10, 128, 32


def composed(method: str) -> Config:
    register_nodes()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(
            compose("config", ["teacher=resnet20", "student=resnet8", "dataset=cifar10", f"method={method}"])
        )


def trainer(method: str) -> tuple[torch.device, list[tuple[float, Callable[[], None]]]]:
    """For each stage its share of the epochs and a function that takes one optimiser step in it."""
    config = composed(method)
    compute = resolve(config.engine)
    device, generator = compute.device, torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).to(device, memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    batch = {"input": images, "label": labels[:BATCH].to(device), "index": torch.arange(BATCH, device=device)}

    def model(name: str) -> torch.nn.Module:
        return MODELS.get(name)(CLASSES).to(device, memory_format=torch.channels_last)

    methods = {name: (METHODS.get(name), value) for name, value in settings(config).items()}
    distillation = Distillation(
        model("resnet8"), model("resnet20") if config.teacher.name != "none" else None, methods,
        data=DataFacts(ROWS, labels, CLASSES, images[:2]), task=image.loss, autocast=compute.autocast,
        fresh=lambda _: model("resnet20"),
    )  # fmt: skip
    weights, _ = term_weights(config)

    def step_of(number: int, stage: Stage) -> Callable[[], None]:
        optimizer = make_optimizer(stage, stage_recipe(config.recipe, stage))

        def step() -> None:
            enter(distillation, stage)
            distillation.begin_epoch(number, 0)
            _, terms = distillation(batch, stage)
            optimizer.zero_grad(set_to_none=True)
            weighted(terms, weights).backward()
            optimizer.step()
            distillation.after_step()

        return step

    stages = enumerate(distillation.stages)
    return device, [(stage.settings.get("epochs", 1), step_of(number, stage)) for number, stage in stages]


def timed(device: torch.device, stages: list[tuple[float, Callable[[], None]]], steps: int) -> float:
    """Milliseconds a step, stages by their shares: of the processor's own time, which neighbours disturb least, or of a GPU."""
    total, clock = 0.0, time.perf_counter if device.type == "cuda" else time.process_time
    for share, step in stages:
        began = clock()
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        total += share * (clock() - began)
    return 1000 * total / steps


def peak(device: torch.device, stages: list[tuple[float, Callable[[], None]]]) -> float:
    """MiB by which two steps of each stage raise the peak above what is held before them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the old peak
        before = status("VmRSS")
    for _, step in stages:
        step(), step()
    after = torch.cuda.max_memory_allocated() if device.type == "cuda" else status("VmHWM")
    return (after - before) / 2**20


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def measure(method: str, rounds: int, steps: int) -> dict[str, Any]:
    device, stages = trainer(method)
    memory = peak(device, stages)
    _, kd = trainer("kd")
    timed(device, kd, 1)
    pairs = [(timed(device, stages, steps), timed(device, kd, steps)) for _ in range(rounds)]
    return {
        "time": round(statistics.median(a / b for a, b in pairs), 2),
        "ms": round(statistics.median(a for a, _ in pairs), 1),
        "kd_ms": round(statistics.median(b for _, b in pairs), 1),
        "mib": round(memory, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--write", type=Path)
    parser.add_argument(
        "--one", action="store_true", help="measure in this process and print JSON (used by the command itself)"
    )
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.methods[0], args.rounds, args.steps)))
        return
    found = {}
    for method in args.methods or methods_of_every_task():
        command = [sys.executable, __file__, method, "--one", "--rounds", str(args.rounds), "--steps", str(args.steps)]
        found[method] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{method:<16} {found[method]}", flush=True)
    if args.write:
        compute = resolve(composed("kd").engine)
        device = torch.cuda.get_device_name() if compute.device.type == "cuda" else processor()
        about = {"device": device, "engine": compute.words, "torch": torch.__version__, "methods": found}
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(json.dumps(about, indent=1) + "\n")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
