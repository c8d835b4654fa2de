"""The keys of the config that belong to images: data and augmentation. Imports nothing that is slow to import."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from kdrun.config import schema


@dataclass
class Data(schema.Data):
    """Where images come from, and how they are normalised."""

    size: int | None = None  # px
    flip: bool = True  # False: images must never be mirrored
    memory: str = field(default="auto", metadata={"choices": ("auto", "always", "never")})
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass
class Augment:
    """How training images are augmented; a part of the recipe."""

    # What fills the border before the random crop.
    crop: str = field(default=MISSING, metadata={"choices": ("zero", "reflect", "none")})
    padding: int | None = field(
        default=None, metadata={"least": 0}
    )  # px on each side; null: side / 8, the published 4 at 32 px
    flip: bool = MISSING
