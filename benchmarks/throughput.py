"""Images per second of kdrun's loop beside the loop that one would write by hand, in one process, in turns.

    python benchmarks/throughput.py --root FOLDER [--teacher resnet20] [--student resnet8] [--rounds 5] [--batches 20]

FOLDER holds train/<class>/* and test/<class>/* of one size. The plain loop is ordinary on purpose: torchvision transforms in
a DataLoader, float32, NCHW, the teacher run on every batch, .item() every step, as public distillation repositories train
CIFAR. Both loops have the same models, batch size and losses. A round times `batches` batches of each; the ratio is taken
round by round, so that a machine whose speed drifts does not decide it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from rounds import Silent
from torchvision import datasets, transforms

from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.registry import MODELS
from kdrun.config.schema import conf_folder
from kdrun.engine.build import build
from kdrun.engine.loop import Progress, enter, train_epoch
from kdrun.engine.optimization import StepPerBatch
from kdrun.engine.precision import resolve


def kdrun_rounds(args: argparse.Namespace, outputs: str) -> Iterator[float]:
    """Seconds per image of kdrun's own train_epoch over args.batches batches, a round at a time."""
    register_nodes()
    overrides = [
        "dataset=image_folder", f"dataset.root={args.root}", f"teacher={args.teacher}", f"student={args.student}",
        "method=kd", "recipe=kdzoo", f"recipe.batch_size={args.batch_size}", f"outputs={outputs}",
        f"engine.precision={args.precision}", f"engine.device={args.device}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        config = validate(compose("config", overrides))
    compute = resolve(config.engine)
    print(f"kdrun: {compute.words}")
    parts = build(config, compute)
    parts.train.limit = args.batches
    stage = parts.distillation.stages[0]
    enter(parts.distillation, stage)
    optimization = StepPerBatch(stage, config.recipe, len(parts.train))
    for epoch in range(10**6):
        line = train_epoch(
            parts, stage, config.recipe, optimization, epoch % config.recipe.epochs, Silent(), Progress()
        )  # fmt: skip
        yield 1 / line.samples_per_s


def plain_rounds(args: argparse.Namespace) -> Iterator[float]:
    """Seconds per image of the loop by hand."""
    device = "cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu"
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    normalise = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    data = datasets.ImageFolder(f"{args.root}/train", transforms.Compose([*crop, normalise]))
    loader = torch.utils.data.DataLoader(data, args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True)
    classes = len(data.classes)
    teacher = MODELS.get(args.teacher)(classes).to(device).eval()
    student = MODELS.get(args.student)(classes).to(device).train()
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    batches = iter(loader)
    while True:
        began = time.perf_counter()
        for _ in range(args.batches):
            images, labels = next(batches)
            images, labels = images.to(device), labels.to(device)
            with torch.no_grad():
                t_logits = teacher(images)
            s_logits = student(images)
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
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=20, help="timed batches of each loop a round")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that warms up")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader processes of the plain loop")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as outputs:
        ours, plain = kdrun_rounds(args, outputs), plain_rounds(args)
        timed = [(next(ours), next(plain)) for _ in range(args.rounds + 1)][1:]
    ratios = [b / a for a, b in timed]
    found = {
        "kdrun_images_per_s": round(1 / statistics.median(a for a, _ in timed), 1),
        "plain_images_per_s": round(1 / statistics.median(b for _, b in timed), 1),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "pair": f"{args.teacher} -> {args.student}",
        "batch_size": args.batch_size,
        "rounds": args.rounds,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
