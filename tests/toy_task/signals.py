"""A task of one's own: signals of many lengths in, their mean frequency out; the error is an RMSE, and lower is better.

docs/adding-a-task.md explains it part by part. `kdrun --config-dir conf plugins=[signals] dataset=signals student=signal_net ...`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.schema import Data
from kdrun.models import register as register_model
from kdrun.seeds import stream
from kdrun.tasks import Evaluation, Metric, Task, register

LONGEST = 24  # steps of a signal
Batch = dict[str, Any]


@dataclass
class Signals(Data):
    """The keys of conf/dataset/signals.yaml: those that every dataset has, and two of its own."""

    train_n: int = 96
    test_n: int = 48


@dataclass
class Noise:
    """What this task adds to a recipe."""

    noise: float = 0.05  # standard deviation, added to training signals


@dataclass
class Split:
    """Signals (N, LONGEST), padded with zeros; mask (N, LONGEST) is true where a signal is; labels (N, 1)."""

    signal: Tensor
    mask: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: Tensor) -> Split:
        return Split(self.signal[rows], self.mask[rows], self.labels[rows], self.index[rows])


def make_split(count: int, seed: int) -> Split:
    """Sums of two sines of random lengths. The label is the mean of their frequencies."""
    draw = torch.Generator().manual_seed(seed)
    frequency_N2 = 0.2 + torch.rand(count, 2, generator=draw)
    length_N = torch.randint(LONGEST // 2, LONGEST + 1, (count,), generator=draw)
    time_T = torch.arange(LONGEST)
    mask_NT = time_T < length_N[:, None]
    signal_NT = torch.sin(frequency_N2[:, :, None] * time_T).sum(1) * mask_NT
    return Split(signal_NT, mask_NT, frequency_N2.mean(1, keepdim=True), torch.arange(count))


class Loader:
    """Batches {"input": {"signal", "mask"}, "label", "index"}; order and noise depend on (seed, epoch, index) alone."""

    def __init__(self, split: Split, batch_size: int, device: Any, seed: int = 0, noise: float = 0.0):
        self.split, self.batch_size, self.device, self.seed, self.noise = split, batch_size, device, seed, noise

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    @property
    def smallest(self) -> int:
        return len(self.split) % self.batch_size or self.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        for rows in torch.randperm(len(self.split), generator=draw).split(self.batch_size):
            yield self._batch(rows, epoch)

    def batches(self) -> Iterator[Batch]:
        for rows in torch.arange(len(self.split)).split(self.batch_size):
            yield self._batch(rows, None)

    def view(self, index: Tensor, epoch: int) -> dict[str, Tensor]:
        rows = torch.cat([(self.split.index == i).nonzero()[0] for i in index])
        return self._batch(rows, epoch)["input"]

    def first(self, count: int) -> dict[str, Tensor]:
        return self._batch(torch.arange(count), None)["input"]

    def _batch(self, rows: Tensor, epoch: int | None) -> Batch:
        part = self.split.rows(rows)
        signal, mask = part.signal, part.mask
        if epoch is not None and self.noise:
            signal = signal + self.noise * torch.stack([self._noise(int(i), epoch) for i in part.index]) * mask
        inputs = {"signal": signal.to(self.device), "mask": mask.to(self.device)}
        return {"input": inputs, "label": part.labels.to(self.device), "index": part.index.to(self.device)}

    def _noise(self, index: int, epoch: int) -> Tensor:
        draw = torch.Generator().manual_seed(stream(self.seed, "augment", epoch, index))
        return torch.randn(LONGEST, generator=draw)


class ErrorEvaluator:
    """RMSE and mean squared error of one model on one split."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, output: Tensor, batch: Batch) -> None:
        self.outputs.append(output)
        self.labels.append(batch["label"])

    def result(self) -> Evaluation:
        outputs, labels = torch.cat(self.outputs), torch.cat(self.labels)
        error = (outputs - labels).square().mean().item()
        return Evaluation({"rmse": error**0.5}, error, {"logits": outputs, "labels": labels})


class SignalTask(Task):
    """Signals in, a frequency out."""

    name = "signals"
    unit = "signals"
    metrics = (Metric("rmse", "RMSE", "rad/step", higher_is_better=False),)
    datasets = ("signals",)
    Data, Augment = Signals, Noise

    def checksum(self, cfg: Any, outputs: str) -> str:
        return hashlib.sha256(f"signals {cfg.train_n} {cfg.test_n}".encode()).hexdigest()

    def sizes(self, cfg: Any, outputs: str) -> tuple[int, int]:
        return cfg.train_n - cfg.holdout, cfg.test_n

    def load(self, cfg: Any, outputs: str) -> Any:
        train, test = make_split(cfg.train_n, 0), make_split(cfg.test_n, 1)
        rows = torch.arange(cfg.train_n)
        holdout = train.rows(rows[: cfg.holdout]) if cfg.holdout else None
        return SimpleNamespace(
            name=cfg.name, classes=[], checksum=self.checksum(cfg, outputs), train=train.rows(rows[cfg.holdout :]),
            holdout=holdout, test=test, notes=[],
        )  # fmt: skip

    def loaders(self, dataset: Any, config: Any, device: Any, layout: Any) -> tuple[Any, dict[str, Any]]:
        recipe = config.recipe
        splits = {"test": dataset.test, **({"holdout": dataset.holdout} if dataset.holdout else {})}
        evals = {name: Loader(split, 32, device) for name, split in splits.items()}
        return Loader(dataset.train, recipe.batch_size, device, config.seed, recipe.noise), evals

    def outputs(self, dataset: Any) -> int:
        return 1

    def outputs_of(self, record: Any) -> int:
        return 1

    def check_output(self, output: Any, outputs: int) -> str | None:
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] != outputs:
            return f"gives {tuple(getattr(output, 'shape', ()))} where (batch, {outputs}) numbers are wanted"
        return None

    def timing_input(self, count: int, cfg: Any, outputs: str) -> Any:
        return {"signal": torch.rand(count, LONGEST), "mask": torch.ones(count, LONGEST, dtype=torch.bool)}

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        return (output - batch["label"]).square().mean()

    def evaluator(self) -> Any:
        return ErrorEvaluator()

    def train_sum(self, output: Tensor, batch: Any) -> Tensor:
        return (output - batch["label"]).square().sum()

    def train_score(self, mean: float) -> float:
        return mean**0.5

    def agreement(self, student: Evaluation, teacher: Evaluation) -> float:
        """1 where both give the same number everywhere, and less the further they are apart."""
        apart = (student.predictions["logits"] - teacher.predictions["logits"]).square().mean().sqrt()
        return 1 / (1 + apart.item())

    def preprocessing(self, dataset: Any) -> dict[str, Any]:
        return {"longest": LONGEST}

    def preprocessor(self, model: nn.Module, record: Any, folder: Any) -> nn.Module:
        return Padded(model, record["dataset"]["preprocessing"]["longest"])


class Padded(nn.Module):
    """A trained model that takes a list of signals (T,) of any length up to `longest`."""

    def __init__(self, model: nn.Module, longest: int):
        super().__init__()
        self.model, self.longest = model, longest

    def forward(self, signals: list[Tensor]) -> Tensor:
        signal, mask = (
            torch.zeros(len(signals), self.longest),
            torch.zeros(len(signals), self.longest, dtype=torch.bool),
        )
        for row, one in enumerate(signals):
            signal[row, : len(one)], mask[row, : len(one)] = one, True
        return self.model({"signal": signal, "mask": mask})


class SignalNet(nn.Module):
    """Two convolutions over time, and the mean over the steps that are not padding."""

    taps = {"stage1": "first", "stage2": "second", "pooled": "head:in"}  # noqa: RUF012

    def __init__(self, outputs: int, width: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(1, width, 5, padding=2), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(width, width, 5, padding=2), nn.ReLU())
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        mask_B1T = inputs["mask"][:, None].float()
        x_BWT = self.second(self.first(inputs["signal"][:, None]) * mask_B1T) * mask_B1T
        return self.head(x_BWT.sum(2) / mask_B1T.sum(2))


@register_model(task="signals")
def signal_net(classes: int, *, width: int = 8) -> nn.Module:
    """A small network for signals."""
    return SignalNet(classes, width)


TASK = register(SignalTask())
