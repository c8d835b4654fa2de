"""Sentences per second of kdrun's loop beside the loop that one would write by hand with transformers, in one process, in turns.

    python benchmarks/text.py --root FOLDER --model FOLDER [--layers 3] [--rounds 5] [--batches 20] [--threads 1] [--only-kept]

--root is a folder of GLUE's SST-2 (train, validation, test), --model the folder or hub id of a pretrained model, or
package:NAME/FOLDER. The teacher is the whole model, the student has `layers` of its layers. Three loops of kdrun and two by hand:

- kd, and kd whose teacher runs in every step (no kept logits), and none (hard labels alone)
- by hand, float32, the teacher run on every batch, every sentence padded to 128 tokens ("fixed"), or to the longest of its batch

All have the same models, batch size, losses and optimiser (AdamW). A round times `batches` batches of each; ratios are taken round by
round, so that a machine whose speed drifts does not decide them. --only-kept times kd and none alone: what kept logits cost beside hard
labels. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from rounds import Part, Silent

from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.schema import Config, conf_folder
from kdrun.engine.build import build
from kdrun.engine.loop import Progress, enter, train_epoch
from kdrun.engine.optimization import StepPerBatch
from kdrun.engine.precision import resolve
from kdrun.tasks import task_of
from kdrun.tasks.text.data.loader import padded

MAX_LENGTH = 128


def config_of(args: argparse.Namespace, method: str, outputs: str) -> Config:
    overrides = [
        "dataset=sst2", f"dataset.root={args.root}", f"dataset.max_length={MAX_LENGTH}", f"teacher.name_or_path={args.model}",
        f"student.name_or_path={args.model}", f"student.layers={args.layers}", f"method={method}", f"outputs={outputs}",
        f"recipe.batch_size={args.batch_size}", f"engine.precision={args.precision}", f"engine.device={args.device}",
        f"engine.threads={args.threads or 'null'}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(compose("config", overrides))


def kdrun_rounds(config: Config, dataset: Any, batches: int, kept: torch.Tensor | None) -> Iterator[float]:
    """Seconds per sentence of kdrun's own train_epoch, a round at a time. `kept`: the teacher's logits."""
    parts = build(config, resolve(config.engine), dataset)
    parts.distillation.kept = kept
    parts.train = Part(parts.train, batches)  # type: ignore[assignment]
    stage = parts.distillation.stages[0]
    enter(parts.distillation, stage)
    optimization = StepPerBatch(stage, config.recipe, len(parts.train))
    for epoch in range(10**6):
        line = train_epoch(
            parts, stage, config.recipe, optimization, epoch % config.recipe.epochs, Silent(), Progress()
        )  # fmt: skip
        yield 1 / line.samples_per_s


def plain_rounds(config: Config, dataset: Any, args: argparse.Namespace, fixed: bool) -> Iterator[float]:
    """Seconds per sentence of the loop by hand. Tokens are there already, as with datasets.map."""
    compute = resolve(config.engine)
    parts = build(config, compute, dataset)
    teacher, student = parts.distillation.teacher.module.eval(), parts.distillation.student.module.train()  # type: ignore[union-attr]
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), 2e-5)
    split = dataset.train
    order = iter(torch.randperm(len(split)).split(args.batch_size))
    while True:
        began = time.perf_counter()
        for _ in range(args.batches):
            rows = next(order)
            inputs = padded(split.ids, None, split.starts[rows], split.lengths[rows], dataset.pad_id)
            if fixed:
                more = MAX_LENGTH - inputs["input_ids"].shape[1]
                inputs = {key: F.pad(value, (0, more), value=0) for key, value in inputs.items()}
            inputs = {key: value.to(compute.device) for key, value in inputs.items()}
            labels = split.labels[rows].to(compute.device)
            with torch.no_grad():
                t_logits = teacher(inputs)
            s_logits = student(inputs)
            soft = F.kl_div(F.log_softmax(s_logits / 4, 1), F.softmax(t_logits / 4, 1), reduction="batchmean") * 16
            loss = F.cross_entropy(s_logits, labels) + 0.1 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        yield (time.perf_counter() - began) / (args.batches * args.batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20, help="timed batches of each loop a round")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only-kept", action="store_true", help="kd and none alone")
    args = parser.parse_args()
    register_nodes()
    with tempfile.TemporaryDirectory() as outputs:
        kd, none = (config_of(args, method, outputs) for method in ("kd", "none"))
        print(f"kdrun: {resolve(kd.engine).words}")
        dataset = task_of(kd).load(kd.dataset, outputs)
        kept = torch.randn(len(dataset.train), len(dataset.classes)).to(
            resolve(kd.engine).device
        )  # any values cost the same
        loops = {
            "kd": kdrun_rounds(kd, dataset, args.batches, kept),
            "none": kdrun_rounds(none, dataset, args.batches, None),
        }
        if not args.only_kept:
            loops |= {
                "kd, teacher in every step": kdrun_rounds(kd, dataset, args.batches, None),
                "by hand, fixed padding": plain_rounds(kd, dataset, args, fixed=True),
                "by hand": plain_rounds(kd, dataset, args, fixed=False),
            }
        rounds = [{name: next(loop) for name, loop in loops.items()} for _ in range(args.rounds + 1)][1:]
    report(rounds, args)


def report(rounds: list[dict[str, float]], args: argparse.Namespace) -> None:
    """Sentences per second of each loop, and how many times as many kd has."""

    def ratio(slow: str, fast: str) -> dict[str, Any]:
        values = [one[slow] / one[fast] for one in rounds]
        return {"median": round(statistics.median(values), 2), "range": [round(min(values), 2), round(max(values), 2)]}

    speeds = {name: round(1 / statistics.median(one[name] for one in rounds), 1) for name in rounds[0]}
    for name, speed in speeds.items():
        print(f"{name:28}{speed:8.1f} sentences/s   {ratio(name, 'kd')['median']:.2f} times kd's time")
    result = {
        "sentences_per_s": speeds, "cost_of_kd_over_none": ratio("kd", "none"), "layers": args.layers,
        "batch_size": args.batch_size, "rounds": args.rounds,
    }  # fmt: skip
    if not args.only_kept:
        result["kd_over_plain_fixed"] = ratio("by hand, fixed padding", "kd")
        result["kd_over_plain"] = ratio("by hand", "kd")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
