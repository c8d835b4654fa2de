"""How fast models are beside each other: seconds, measured in turn with one thread, and the work that was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from kdrun.methods.taps import device_of

REPEATS = 5  # passes of each model

Model = Callable[[Any], Any]


def seconds_of(models: Sequence[Model], batches: Sequence[Any]) -> list[float]:
    """The median seconds of each model for all batches (inputs), in turn, so that a busy moment meets all of them.

    The models are in eval mode and compute in float32.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: list[list[float]] = [[] for _ in models]
    try:
        with torch.no_grad():
            for model in models:
                model(batches[0])  # a first pass is slow
            for _ in range(REPEATS):
                for model, own in zip(models, times, strict=True):
                    own.append(_once(model, batches))
    finally:
        torch.set_num_threads(threads)
    return [median(own) for own in times]


def some_batches(loader: Any, size: int, samples: int) -> list[Any]:
    """Inputs of about this many samples in batches of `size`, evenly spaced over the split: a loader may sort it by length."""
    parts = [part for batch in loader.batches() for part in _parts(batch["input"], size)]
    wanted = min(max(1, samples // size), len(parts))
    return [parts[(2 * i + 1) * len(parts) // (2 * wanted)] for i in range(wanted)]


def _parts(x: Any, size: int) -> list[Any]:
    """The whole parts of `size` samples of a batch; a smaller batch stays as it is."""
    count = len(x if isinstance(x, Tensor) else next(iter(x.values())))
    if count <= size:
        return [x]
    rows = [slice(start, start + size) for start in range(0, count - size + 1, size)]
    return [x[part] if isinstance(x, Tensor) else {key: value[part] for key, value in x.items()} for part in rows]


def work(model: Model, batches: Sequence[Any]) -> int:
    """The floating-point operations of a model on these batches: products of matrices and attention."""
    own = {}
    for_cpu = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if for_cpu is not None:
        own[for_cpu] = _attention
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=own) as counter:
        for batch in batches:
            model(batch)
    return int(counter.get_total_flops())


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _once(model: Model, batches: Sequence[Any]) -> float:
    """Seconds of a pass: on a CPU those that this thread computed, which no other process makes longer."""
    clock = time.thread_time if device_of(batches[0]).type == "cpu" else time.perf_counter
    _wait(batches[0])
    began = clock()
    for batch in batches:
        model(batch)
    _wait(batches[0])
    return clock() - began


def _wait(x: Tensor | Any) -> None:
    device = device_of(x)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
