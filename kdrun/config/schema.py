"""The typed config: what every run has. kdrun/config/nodes.py has the nodes of models and methods, checks.py the checks.

Nothing here imports torch: a typo is answered before anything heavy is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from kdrun import PACKAGE


@dataclass
class Recipe:
    """How a model is trained. Milestones and warm-up are shares of the epochs, so `recipe.epochs=10` scales them.

    A task adds its augmentation (`Task.Augment`): images have crop, padding and flip.
    """

    name: str = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    optimizer: str = MISSING  # sgd | adamw
    lr: float = MISSING
    momentum: float = MISSING
    nesterov: bool = MISSING
    weight_decay: float = MISSING
    schedule: str = MISSING  # step | cosine | linear | constant
    milestones: list[float] = MISSING
    gamma: float = MISSING
    warmup: float = MISSING


@dataclass
class Data:
    """What every dataset has; each file of conf/dataset gives one. A task adds what its samples need (`Task.Data`)."""

    name: str = MISSING
    root: str | None = None
    holdout: int = 0
    label: str | None = None  # what it is called in folders and tables; null: its name, or that of the folder


@dataclass
class Engine:
    """How a run is computed. Of these only precision and deterministic are part of a run's identity."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "auto"  # auto | fp32 | bf16
    deterministic: bool = True
    threads: int | None = None  # torch threads; null: torch's own choice
    workers: int = 2  # of the DataLoader, for data that does not fit in memory
    log_every: int = 50  # steps between points in TensorBoard
    rehearse: bool = False  # show each term's share of the gradient and stop
    debug: bool = False  # tracebacks


@dataclass
class Loss:
    """`task`: weight of the supervised loss, where the methods' own `weights.task` does not say or disagrees."""

    task: float | None = None


@dataclass
class Sweep:
    """`on_error`: what a sweep does after a job that failed."""

    on_error: str = "continue"  # continue | stop


@dataclass
class Config:
    """One run, as composed from conf/config.yaml and the command line."""

    dataset: Any = field(default_factory=dict)  # Task.Data of the task that the dataset belongs to
    teacher: Any = MISSING
    student: Any = MISSING
    method: Any = MISSING
    recipe: Any = field(default_factory=dict)  # Recipe and Task.Augment
    loss: Loss = field(default_factory=Loss)
    engine: Engine = field(default_factory=Engine)
    seed: int = 0
    protocol: str = "last"  # last | best | holdout
    rerun: bool = False
    table: Any = None  # of a sweep: a published table, expanded into its cells (kdrun/config/tables.py)
    pair: str | None = None  # of a table: teacher-student; null: every pair
    budget: str = "full"  # of a table: full | short | smoke
    phase: str = "all"  # all | teacher: stop once the teacher is ready (a sweep's first jobs)
    sweep: Sweep = field(default_factory=Sweep)
    outputs: str = "outputs"
    plugins: list[str] = field(default_factory=list)


def conf_folder() -> Path:
    """conf/ lies beside the package in a checkout and inside it in a wheel."""
    return PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def method_names() -> list[str]:
    """The choices of the group method that kdrun ships."""
    return sorted(file.stem for file in (conf_folder() / "method").glob("*.yaml"))
