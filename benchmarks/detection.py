"""What distillation costs a detector: seconds per image of kdrun's loop, in one process, in turns.

    python benchmarks/detection.py [--data FILE.yaml] [--imgsz 160] [--teacher yolov8s] [--student yolov8n] [--rounds 5] [--batches 8]

Without --data the generated shapes are used. Timed are the student alone (none), the teacher's forward pass on the same batches
(folded, without gradients), and each method; and by hand, ultralytics' own DistillationModel with AdamW on kdrun's batches, in float32.
The overhead of a method is its time over that of the student alone plus the teacher's forward pass, round by round. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator

import torch
from hydra import compose, initialize_config_dir
from rounds import Part, Silent

from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.schema import Config, conf_folder
from kdrun.engine.build import Parts, build
from kdrun.engine.loop import Progress, enter, optimization_of, train_epoch
from kdrun.engine.precision import resolve

METHODS = ("mimic", "cwd", "mgd", "fgd", "yolo_logits", "yolo_boxes", "[cwd,yolo_boxes,yolo_logits]", "ultralytics")


def config_of(args: argparse.Namespace, method: str, outputs: str) -> Config:
    data = ["dataset=yolo", f"dataset.data={args.data}"] if args.data else ["dataset=shapes"]
    overrides = [
        *data, f"dataset.imgsz={args.imgsz}", f"teacher={args.teacher}", f"student={args.student}", f"method={method}",
        f"recipe.batch_size={args.batch_size}", f"outputs={outputs}", f"engine.precision={args.precision}",
        f"engine.device={args.device}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(compose("config", overrides))


def built(config: Config, batches: int, folded: bool = True) -> Parts:
    """The parts of a run; weights that would be measured are 1, which costs the same."""
    parts = build(config, resolve(config.engine))
    parts.weights = {term: value if isinstance(value, (int, float)) else 1.0 for term, value in parts.weights.items()}
    parts.train = Part(parts.train, batches)  # type: ignore[assignment]
    if folded and parts.distillation.teacher is not None:
        parts.task.fold(parts.distillation.teacher.module)
    return parts


def kdrun_rounds(config: Config, batches: int) -> Iterator[float]:
    """Seconds per image of kdrun's own train_epoch, a round at a time."""
    parts = built(config, batches)
    stage = parts.distillation.stages[0]
    enter(parts.distillation, stage)
    optimization = optimization_of(parts, stage, config.recipe)
    for epoch in range(10**6):
        line = train_epoch(
            parts, stage, config.recipe, optimization, epoch % config.recipe.epochs, Silent(), Progress()
        )  # fmt: skip
        yield 1 / line.samples_per_s


def teacher_rounds(config: Config, batches: int) -> Iterator[float]:
    """Seconds per image of the teacher's forward pass, as the distillation makes it."""
    parts = built(config, batches)
    teacher = parts.distillation.teacher
    assert teacher is not None
    teacher.eval()
    for epoch in range(10**6):
        inputs = [batch["input"] for batch in parts.train.epoch(epoch)]  # read before: the student's epoch counts that
        began = time.perf_counter()
        with torch.no_grad():
            for x in inputs:
                teacher(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        yield (time.perf_counter() - began) / sum(len(x) for x in inputs)


def library_rounds(config: Config, args: argparse.Namespace) -> Iterator[float]:
    """Seconds per image of ultralytics' own distillation by hand."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.distill_model import DistillationModel

    from kdrun.tasks.detection.detector import plain

    parts = built(config, args.batches, folded=False)  # as the library leaves its teacher
    device = parts.compute.device
    settings = get_cfg(overrides={"imgsz": args.imgsz})
    pair = [parts.distillation.teacher.module, parts.distillation.student.module]  # type: ignore[union-attr]
    teacher, student = (plain(model, model.state_dict(), parts.dataset.classes, settings).to(device) for model in pair)
    model = DistillationModel(teacher, student.requires_grad_(True)).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for epoch in range(10**6):
        began, images = time.perf_counter(), 0
        for batch in parts.train.epoch(epoch):
            loss, _ = model({"img": batch["input"], **{key: batch[key] for key in ("cls", "bboxes", "batch_idx")}})
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            images += len(batch["index"])
        yield (time.perf_counter() - began) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data yaml of ultralytics; default: the generated shapes")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--teacher", default="yolov8s")
    parser.add_argument("--student", default="yolov8n")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8, help="timed batches of each loop a round")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that warms up")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    register_nodes()
    with tempfile.TemporaryDirectory() as outputs:
        configs = {method: config_of(args, method, outputs) for method in ("none", *args.methods)}
        some = next(iter(args.methods))
        print(f"kdrun: {resolve(configs['none'].engine).words}")
        loops = {"student alone": kdrun_rounds(configs["none"], args.batches)}
        loops["teacher forward"] = teacher_rounds(configs[some], args.batches)
        loops |= {method: kdrun_rounds(configs[method], args.batches) for method in args.methods}
        loops["ultralytics by hand, fp32"] = library_rounds(configs[some], args)
        rounds = [{name: next(loop) for name, loop in loops.items()} for _ in range(args.rounds + 1)][1:]
    report(rounds, args)


def report(rounds: list[dict[str, float]], args: argparse.Namespace) -> None:
    """Images per second of each loop, and its time over that of the student alone plus the teacher."""
    result = {}
    for name in rounds[0]:
        ratios = [one[name] / (one["student alone"] + one["teacher forward"]) for one in rounds]
        speed = 1 / statistics.median(one[name] for one in rounds)
        result[name] = {
            "images_per_s": round(speed, 1), "ratio": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        }  # fmt: skip
        print(f"{name:30}{speed:8.1f} images/s   {result[name]['ratio']:.2f} times alone + teacher")
    print(json.dumps({"loops": result, "imgsz": args.imgsz, "batch_size": args.batch_size, "rounds": args.rounds}))


if __name__ == "__main__":
    main()
