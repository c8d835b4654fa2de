"""The keys of the config that belong to detection: the data, and what the library's training adds to a recipe. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdrun.config import schema

STRIDE = 32  # of the coarsest map: sides of inputs are multiples of it


@dataclass
class Data(schema.Data):
    """Where images and boxes come from, and how large an image is shown to a model."""

    data: str | None = None  # a data yaml of ultralytics: path, train, val, test, names
    imgsz: int = field(default=640, metadata={"least": STRIDE})  # px of the longer side
    test: str = field(default="auto", metadata={"choices": ("auto", "test", "val")})  # the split that reports
    memory: str = field(default="auto", metadata={"choices": ("auto", "always", "never")})  # keep images in memory


@dataclass
class Augment:
    """What a recipe of detectors has beside epochs, rate and the like. Names and meaning are those of ultralytics."""

    nbs: int = field(default=64, metadata={"least": 1})  # images of an optimiser step: gradients of batches are summed
    lrf: float = field(default=0.01, metadata={"least": 0})  # the rate of the last epoch, as a share of recipe.lr
    warmup_momentum: float = field(default=0.8, metadata={"least": 0})
    warmup_bias_lr: float = field(default=0.1, metadata={"least": 0})
    ema: float = field(default=0.9999, metadata={"least": 0})  # decay of the average weights, which are kept; 0: none
    box: float = field(default=7.5, metadata={"least": 0})  # gains of the three parts of the detection loss
    cls: float = field(default=0.5, metadata={"least": 0})
    dfl: float = field(default=1.5, metadata={"least": 0})
    mosaic: float = field(default=1.0, metadata={"least": 0})  # probability; four images in one
    close_mosaic: int = field(default=10, metadata={"least": 0})  # last epochs without mosaic, mixup and cutmix
    mixup: float = field(default=0.0, metadata={"least": 0})
    cutmix: float = field(default=0.0, metadata={"least": 0})
    hsv_h: float = field(default=0.015, metadata={"least": 0})
    hsv_s: float = field(default=0.7, metadata={"least": 0})
    hsv_v: float = field(default=0.4, metadata={"least": 0})
    degrees: float = field(default=0.0, metadata={"least": 0})
    translate: float = field(default=0.1, metadata={"least": 0})
    scale: float = field(default=0.5, metadata={"least": 0})
    shear: float = field(default=0.0, metadata={"least": 0})
    perspective: float = field(default=0.0, metadata={"least": 0})
    flipud: float = field(default=0.0, metadata={"least": 0})
    fliplr: float = field(default=0.5, metadata={"least": 0})


OF_IMAGES = (
    "mosaic", "mixup", "cutmix", "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective",
    "flipud", "fliplr",
)  # fmt: skip
