"""What a model costs: its parameters and the multiply-adds of one sample."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from kdrun.methods.taps import dry_run, first_rows

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def parameters(model: nn.Module) -> int:
    """The number of parameters, each once."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, example: Any) -> int:
    """Multiply-adds of the convolutions and linear layers for the first input of the batch `example`.

    Norms, activations, pooling, biases and functional calls (F.conv2d, attention) are not counted. The model runs once in eval mode.
    """
    total = 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, TRANSPOSED):  # each input value meets a kernel
            total += args[0].numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, CONVOLUTIONS):  # each output value is a sum over a kernel
            total += output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS))]
    try:
        dry_run(model, first_rows(example, 1))
    finally:
        for handle in handles:
            handle.remove()
    return total
