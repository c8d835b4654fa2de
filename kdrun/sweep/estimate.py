"""How long a run will take: estimated from similar finished runs, else from a few timed steps of its models on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.plan import Plan
from kdrun.tasks import task_of

SAMPLES = 16  # in a timed step
EVALUATION = 1 / 3  # time of an evaluated sample as a share of a training sample: only the forward pass


@dataclass
class Estimate:
    """Seconds of training and bytes on disk, and the source of the estimate."""

    seconds: float
    size: float
    source: str


def finished_runs(outputs: str) -> list[dict[str, Any]]:
    """The finished runs of an output folder, each with the size of its folder in bytes."""
    finished = []
    for path in Path(outputs, "runs").glob(f"**/{records.NAME}"):
        try:
            record = records.read(path.parent)
        except KdrunError:
            continue
        if record is not None and record["status"] == "done" and record["time"]["train_s"]:
            size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
            finished.append({**record, "size": size})
    return finished


def estimate(plan: Plan, finished: list[dict[str, Any]]) -> Estimate | None:
    """Estimate from the most similar runs; None if there is none.

    Runs are similar if they train the same student on the same samples; runs with the same methods come first. Their median time for
    one sample is multiplied by the number of samples and by the epochs of all stages.
    """
    config, student = plan.config, plan.identity["student"]
    checksum = plan.identity["dataset"]["checksum"]
    task = task_of(config)
    alike = [
        record
        for record in finished
        if record["dataset"]["checksum"] == checksum
        and task.costs_alike(config.dataset, config.outputs, record)
        and record["identity"].get("student") == student
    ]
    same_methods = [record for record in alike if record["method"] == [*config.method]]
    chosen = same_methods or alike
    if not chosen:
        return None
    each = median(
        record["time"]["train_s"]
        / (record["dataset"]["train_n"] * _epochs(record["recipe"], record["identity"]["method"]))
        for record in chosen
    )
    kept = chosen[0]["dataset"]
    samples = kept["train_n"] + chosen[0]["identity"]["dataset"]["holdout"] - config.dataset.holdout
    methods = {name: {"stages": values.stages} for name, values in config.method.items()}
    seconds = each * samples * _epochs(vars(config.recipe), methods)
    source = f"{len(chosen)} {'runs like it' if same_methods else 'other methods of this student'}"
    return Estimate(seconds, median(record["size"] for record in chosen), source)


def rough(plan: Plan) -> Estimate | None:
    """Estimate without similar runs: from two training steps of the student and two forward passes of the teacher, on random inputs.

    None if the data set is missing and its size is not known. Takes a few seconds and imports torch.
    """
    config, task = plan.config, task_of(plan.config)
    try:
        train_n, test_n = task.sizes(config.dataset, config.outputs)
        x = task.timing_input(SAMPLES, config.dataset, config.outputs)
    except KdrunError:
        return None
    if not train_n or x is None:
        return None
    import torch

    from kdrun.methods.taps import total
    from kdrun.runs.plan import model_arguments
    from kdrun.tasks.model import build_model

    def per_sample(node: Any, backward: bool) -> float:
        model = build_model(node.name, 10, model_arguments(node), node.output)
        times = []
        for _ in range(2):  # the first one warms up
            began = time.perf_counter()
            with torch.set_grad_enabled(backward):
                output = model(x)
            if backward:
                total(output).backward()
            times.append(time.perf_counter() - began)
        return min(times) / SAMPLES

    student = per_sample(config.student, backward=True)
    teacher = per_sample(config.teacher, backward=False) if config.teacher.name != "none" else 0.0
    epochs = _epochs(vars(config.recipe), {name: {"stages": values.stages} for name, values in config.method.items()})
    seconds = epochs * (train_n * (student + teacher) + test_n * student * EVALUATION)
    return Estimate(seconds, 0.0, f"rough: {SAMPLES} {task.unit} timed")


def _epochs(recipe: dict[str, Any], methods: dict[str, Any]) -> float:
    """Epochs of all stages: each stage that belongs to a method adds its share of the epochs of the recipe."""
    stages = [stage for values in methods.values() for stage in (values.get("stages") or {}).values()]
    shares = [stage["epochs"] for stage in stages if isinstance(stage, dict) and stage.get("epochs")]
    epochs: float = recipe["epochs"] * (1 + sum(shares))
    return epochs
