"""A run's hyper-parameters in TensorBoard."""

from __future__ import annotations

from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from kdrun.runs.identity import flat


def hyperparameters(board: SummaryWriter, record: dict[str, Any], step: int) -> None:
    """The run's row of the hparams tab: its settings, and its scores at the last step."""
    settings: dict[str, Any] = dict(flat(record["identity"])) | {"seed": record["seed"]}
    scores = {f"hparam/{which}": record[which]["score"] for which in ("last", "best") if record[which]}
    for summary in hparams(settings, scores):
        board._get_file_writer().add_summary(summary)  # add_hparams would open a folder of its own
    for name, value in scores.items():
        board.add_scalar(name, value, step)
