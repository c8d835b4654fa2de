"""A short study of every method: does it train, and does any of them hurt? One command; started again it goes on.

    python scripts/sanity.py FOLDER [--jobs 2] [--outputs outputs]

FOLDER holds CIFAR-10 as train/<class>/*.jpg and test/<class>/*.jpg. A fixed subset of 10,000 training images (the first 1,000 file names
of each class) is linked into OUTPUTS/data/sanity-10k; resnet20 is trained on it for 30 epochs, then resnet8 for 8 epochs with each
file of conf/method, seeds 0 and 1, by `jobs` processes of one thread each. Writes docs/measured/sanity.json and docs/sanity.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from kdrun.config.checks import validate
from kdrun.config.listing import methods_of_every_task
from kdrun.config.nodes import register_nodes
from kdrun.config.schema import Config, conf_folder
from kdrun.engine.build import build
from kdrun.engine.loop import enter, weight_of
from kdrun.engine.precision import resolve
from kdrun.runs.checkpoint import load_into, load_state, load_weights
from kdrun.runs.folder import STATE, WEIGHTS
from kdrun.runs.plan import make_plan

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1)
STUDY = [
    "dataset=image_folder", "recipe=quick", "recipe.epochs=8", "teacher=resnet20", "teacher.recipe.epochs=30", "student=resnet8",
    "engine.threads=1",
]  # fmt: skip
DOUBT = 2.0  # points below the student alone that want an explanation


def subset(source: Path, target: Path, per_class: int = 1000) -> Path:
    """Links to the first files of each class of `train`, and to the whole of `test`."""
    for folder in sorted((source / "train").iterdir()):
        (target / "train" / folder.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir())[:per_class]:
            link = target / "train" / folder.name / file.name
            if not link.exists():
                link.symlink_to(file.resolve())
    if not (target / "test").exists():
        (target / "test").symlink_to((source / "test").resolve())
    return target


def run_all(overrides: list[str], jobs: int) -> None:
    """Train what is missing: the teacher first, then every method and seed, shared out over `jobs` sweeps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdrun"]
    subprocess.run([*command, *overrides, "method=kd", "seed=0"], check=True, env=environment)
    names, seeds = methods_of_every_task(), ",".join(map(str, SEEDS))
    shares = [["-m", *overrides, f"method={','.join(names[i::jobs])}", f"seed={seeds}"] for i in range(jobs)]
    running = [subprocess.Popen([*command, *share], env=environment) for share in shares]
    if any([process.wait() for process in running]):
        sys.exit("some runs failed; their records say why. Started again, this command goes on")


def config_of(overrides: list[str], method: str, seed: int) -> Config:
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(compose("config", [*overrides, f"method={method}", f"seed={seed}"]))


def gradients(config: Config, trained: bool, batches: int = 4) -> dict[str, float]:
    """For each term of the last stage the norm of its weighted gradient in the student over the supervised loss's.

    A mean over a few batches of the first epoch with the initial weights, or of the last one after training; weights as the yaml has
    them, without their schedules.
    """
    plan, compute = make_plan(config), resolve(config.engine)
    parts = build(config, compute)
    distillation = parts.distillation
    if distillation.teacher is not None and plan.teacher is not None:
        path = plan.teacher.folder / WEIGHTS["last"]
        load_into(distillation.teacher.module, load_weights(path), path, "teacher")
    if trained:
        distillation.load_state_dict(load_state(plan.folder / STATE)["distillation"])
    number, epoch = len(distillation.stages) - 1, config.recipe.epochs - 1 if trained else 0
    enter(distillation, distillation.stages[number])
    distillation.begin_epoch(number, epoch)
    parameters = list(distillation.student.module.parameters())
    norms: dict[str, list[float]] = {}
    for batch in islice(parts.train.epoch(epoch), batches):
        _, terms = distillation(batch, distillation.stages[number])
        for name, value in terms.items():
            weighted = weight_of(parts.weights, name) * value
            found = torch.autograd.grad(weighted, parameters, retain_graph=True, allow_unused=True)
            square = sum(g.float().square().sum() for g in found if g is not None)
            norms.setdefault(name, []).append(float(square) ** 0.5)
        distillation.after_step()
    means = {name: statistics.mean(values) for name, values in norms.items()}
    return {name: round(mean / means["task"], 3) for name, mean in means.items() if name != "task"}


def collect(overrides: list[str]) -> dict[str, Any]:
    """Scores, milliseconds a step and gradient ratios of every method."""
    found: dict[str, Any] = {}
    for method in methods_of_every_task():
        configs = [config_of(overrides, method, seed) for seed in SEEDS]
        plans = [make_plan(config) for config in configs]
        records = [plan.record() for plan in plans]
        if not all(record and record["status"] == "done" for record in records):
            print(f"{method}: not finished")
            continue
        lines = [json.loads(line) for line in (plans[0].folder / "curves.jsonl").read_text().splitlines()]
        speeds = [line["samples_per_s"] for line in lines if line["stage"] == "distil"]
        found[method] = {
            "scores": [round(100 * record["last"]["score"], 2) for record in records],
            "agreement": [round(100 * r["agreement"], 2) for r in records if r["agreement"] is not None],
            "images_per_s": round(statistics.median(speeds)),
            "gradients": {when: gradients(configs[0], when == "end") for when in ("start", "end")},
        }
        print(f"{method:<16} {found[method]}", flush=True)
    teacher = make_plan(config_of(overrides, "kd", 0)).teacher.record()
    return {
        "command": f"python scripts/sanity.py cifar10-jpeg --jobs 2; each cell: kdrun {' '.join(STUDY)} method=NAME seed=0,1",
        "teacher": round(100 * teacher["last"]["score"], 2),
        "torch": torch.__version__,
        "methods": found,
    }


def page(found: dict[str, Any], notes: dict[str, str]) -> str:
    """docs/sanity.md: a table, best first, and what stands behind every method far below the student alone."""
    methods = found["methods"]
    mean = {name: statistics.mean(m["scores"]) for name, m in methods.items()}
    rows = ["| method | seed 0 | seed 1 | mean | - none | agreement | images/s | gradient / task's, start and end |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in sorted(methods, key=lambda name: -mean[name]):
        m = methods[name]
        agreement = f"{statistics.mean(m['agreement']):.1f}" if m["agreement"] else ""
        start, end = m["gradients"]["start"], m["gradients"]["end"]
        ratios = ", ".join(f"{term.partition('.')[2]} {start[term]:.2g}, {end[term]:.2g}" for term in start)
        rows.append(
            f"| {name} | {m['scores'][0]:.2f} | {m['scores'][1]:.2f} | {mean[name]:.2f} | {mean[name] - mean['none']:+.2f} "
            f"| {agreement} | {m['images_per_s']:,} | {ratios} |"
        )
    later = "".join(
        f"\n{name} was measured later on another machine with a teacher of {m['teacher']:.2f} %, and is compared with `none` of the others."
        for name, m in methods.items()
        if "teacher" in m
    )
    low = [name for name in sorted(mean, key=mean.get) if mean[name] < mean["none"] - DOUBT]
    said = [f"- `{name}` ({mean[name] - mean['none']:+.2f}): {notes.get(name, 'NOT YET EXPLAINED')}" for name in low]
    below = "\n".join(said) if said else f"No method lies more than {DOUBT:g} points below the student alone."
    return TEXT.format(
        command=found["command"],
        teacher=found["teacher"],
        later=later,
        table="\n".join(rows),
        below=below,
        count=len(methods),
        doubt=DOUBT,
    )


TEXT = """<!-- Generated by scripts/sanity.py from docs/measured/sanity.json and sanity-notes.json. -->

# Does every method train?

Each of the {count} files of conf/method that images can be trained with, for 8 epochs of `recipe=quick` on 10,000 images of CIFAR-10
(JPEG, the first 1,000 of each class), resnet20 -> resnet8, two seeds, tested on all 10,000 test images. The teacher, trained for
30 epochs on the same images, has {teacher:.2f} %.{later}

```
{command}
```

{table}

**What it says.** That every loss trains, what it costs, and how hard each pulls with its published weight. **What it does not say.**
Which method is better: two seeds have no useful interval, the weights were published for 200 epochs and more, methods with stages of their
own train longer, and the binomial standard error of one score is about half a point.

`gradient / task's`: the norm of the weighted term's gradient in the student over that of the supervised loss, with the initial weights
and after training, mean over four batches of seed 0, without schedules. `images/s`: median over the epochs of the `distil` stage of seed 0,
one thread, two processes side by side, on a machine that did other work too: [methods.md](methods.md) has costs measured by
themselves.

## More than {doubt:g} points below the student alone

{below}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    args = parser.parse_args()
    register_nodes()
    root = subset(args.folder, args.outputs / "data" / "sanity-10k")
    overrides = [*STUDY, f"dataset.root={root}", f"outputs={args.outputs}"]
    run_all(overrides, args.jobs)
    found = collect(overrides)
    measured = ROOT / "docs" / "measured"
    (measured / "sanity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    notes = json.loads((measured / "sanity-notes.json").read_text(encoding="utf-8"))
    (ROOT / "docs" / "sanity.md").write_text(page(found, notes), encoding="utf-8")


if __name__ == "__main__":
    main()
