"""kdrun's loop with recipe=yolo gives the weights that ultralytics' own trainer gives, bit for bit, on the same batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_data import config, tiny
from ultralytics.models.yolo.detect import DetectionTrainer

from kdrun.engine.build import build
from kdrun.engine.loop import Progress, fit
from kdrun.engine.precision import resolve
from kdrun.tasks.detection.detector import plain

RECIPE = ("recipe.epochs=3", "recipe.nbs=12", "recipe.warmup=0.5", "recipe.ema=0.99", "recipe.mosaic=0")


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Batches:
    """kdrun's batches as the library's trainer reads them."""

    def __init__(self, loader: Any):
        self.loader, self.epoch = loader, 0
        self.batch_size, self.num_workers, self.drop_last = loader.batch_size, 0, False
        self.sampler, self.dataset = range(len(loader.split)), loader.samples

    def __len__(self) -> int:
        return len(self.loader)

    def reset(self) -> None:
        pass

    def __iter__(self) -> Any:
        for batch in self.loader.epoch(self.epoch):
            boxes = {key: batch[key] for key in ("cls", "bboxes", "batch_idx")}
            yield {"img": (batch["input"] * 255).round().to(torch.uint8), **boxes}
        self.epoch += 1


def library_trainer(cfg: Any, parts: Any, file: Path, folder: Path) -> DetectionTrainer:
    recipe, model = (
        cfg.recipe,
        plain(
            parts.distillation.student.module, parts.distillation.student.module.state_dict(), parts.dataset.classes, {}
        ),
    )

    class Trainer(DetectionTrainer):
        def get_dataloader(self, path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
            return Batches(parts.train)

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return model.requires_grad_(True).to(
                memory_format=torch.channels_last
            )  # as kdrun's: the layout changes bits

        def validate(self) -> Any:
            return {}, 0.0

        def save_model(self) -> bool:
            return False

        def get_validator(self) -> Any:
            return SimpleNamespace(metrics=SimpleNamespace(keys=[]), dataloader=None, args=SimpleNamespace())

        def final_eval(self) -> None:
            pass

    return Trainer(
        overrides={
            "model": "yolov8n.yaml", "data": str(file), "imgsz": 64, "epochs": recipe.epochs, "batch": recipe.batch_size,
            "optimizer": {"sgd": "SGD", "adamw": "AdamW"}[recipe.optimizer], "lr0": recipe.lr, "lrf": recipe.lrf,
            "momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "warmup_epochs": recipe.warmup * recipe.epochs,
            "warmup_momentum": recipe.warmup_momentum, "warmup_bias_lr": recipe.warmup_bias_lr, "nbs": recipe.nbs,
            "cos_lr": recipe.schedule == "cosine", "amp": False, "device": "cpu", "plots": False, "val": False,
            "project": str(folder), "close_mosaic": 0, "verbose": False,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        ("recipe=yolo", "recipe.schedule=cosine"),
        ("recipe=yolo_sgd",),
        ("recipe=yolo_sgd", "recipe.batch_size=5", "recipe.nbs=5"),
    ],
    ids=["adamw", "sgd", "a step for each batch"],
)
def test_weights_are_those_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    file = tiny(tmp_path / "data")
    cfg = config(more[0], *RECIPE, *more[1:], "method=none", f"dataset.data={file}", f"outputs={tmp_path / 'out'}")
    parts = build(cfg, resolve(cfg.engine))
    trainer = library_trainer(cfg, parts, file, tmp_path / "library")
    decay = 0.99
    from ultralytics.engine import trainer as module

    ema = module.ModelEMA
    monkeypatch.setattr(module, "ModelEMA", lambda model: ema(model, decay=decay))
    before = {key: value.clone() for key, value in parts.distillation.student.module.state_dict().items()}
    trainer.train()
    fit(parts, Silent(), Progress())  # type: ignore[arg-type]
    mine, theirs = parts.distillation.student.module.state_dict(), trainer.model.state_dict()
    moved = [key for key in mine if not torch.equal(mine[key], before[key])]
    assert len(moved) > 300
    assert {key for key in mine if not torch.equal(mine[key], theirs[key])} == set()
    averaged, expected = parts.distillation.trained.state_dict(), trainer.ema.ema.state_dict()
    assert {
        key for key in expected if expected[key].is_floating_point() and not torch.equal(averaged[key], expected[key])
    } == set()
    assert any(not torch.equal(averaged[key], mine[key]) for key in moved)
