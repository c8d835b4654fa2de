"""Which device and which number format a run computes in, and how the choice is put into words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdrun.config.schema import Engine
from kdrun.errors import KdrunError

THREADS = torch.get_num_threads()  # the default, for the jobs of a sweep that come after one with engine.threads


@dataclass(frozen=True)
class Compute:
    """The resolved engine: `autocast` is None in float32."""

    device: torch.device
    precision: str
    autocast: torch.dtype | None
    words: str  # for the log's first lines


def resolve(engine: Engine) -> Compute:
    """Turn `auto` into what the hardware has: cuda where there is one; bf16 where it is computed natively, else fp32.

    A GPU says so itself. A CPU needs the bf16 instructions of AVX-512 or AMX: with them a resnet20 step took half the time of
    one in fp32; without them bf16 is emulated and slower.
    """
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise KdrunError(
            "engine.device=cuda but torch sees no GPU. Say engine.device=cpu, or install a CUDA build of torch"
        )
    device = torch.device("cuda" if engine.device != "cpu" and torch.cuda.is_available() else "cpu")
    precision = engine.precision
    if precision == "auto":
        precision = "bf16" if _native_bf16(device) else "fp32"
    threads = engine.threads or THREADS
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(engine.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not engine.deterministic
    torch.backends.cudnn.deterministic = engine.deterministic
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    on = f"cpu, {threads} thread{'s' * (threads != 1)}" if device.type == "cpu" else device.type
    words = f"{on}, {precision}{' (losses fp32)' if precision != 'fp32' else ''}"
    return Compute(device, precision, torch.bfloat16 if precision == "bf16" else None, words)


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public names for these yet
    return any(getattr(torch.cpu, name, bool)() for name in names)
