"""Early exits for an encoder. Liu et al.: FastBERT: a Self-distilling BERT with Adaptive Inference Time, ACL 2020,
https://arxiv.org/abs/2004.02178.

A branch classifier reads the OUTPUT of each layer but the last. (The script of Knowledge-Distillation-NLP reads the input of layer i
in its branch i: its first branches see embeddings alone, and no branch sees what the layer before the last makes of a sentence.)
When the model is used, a sentence whose branch is sure enough leaves the batch, and the next layers compute the rest alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.errors import KdrunError

HEADS, NARROWER = 2, 6  # of a branch, as published: 128 of BERT's 768; it must be cheap beside a layer
EVERY = -1.0  # the threshold of a new model: every branch is computed, and nobody leaves


def uncertainty(logits_BK: Tensor) -> Tensor:
    """The entropy of softmax(logits) over log K: (B,), from 0 (sure) to 1 (all K classes alike). The paper's `Uncertainty`."""
    return torch.special.entr(logits_BK.float().softmax(1)).sum(1) / math.log(logits_BK.shape[1])


class Branch(nn.Module):
    """A branch classifier, the paper's: hidden states (B, T, D) to a sixth of their width, self-attention with two heads, the first token.

    tanh(linear), attention, tanh(linear) of the first token, linear to K logits. The others' queries are not computed, and the linear
    layer that ends the paper's attention is not there: another one follows, and both are one. A pooled first token and a linear layer
    (DeeBERT's exit) is ten times cheaper, but the first token of a low layer knows little: on SST-2, with a frozen MiniLM of accuracy
    81.5, such exits after layers 1 to 5 had 50.9, 50.9, 50.9, 74.0 and 81.0, and the paper's (width 128) 77.8, 80.0, 81.0, 81.8 and 82.1.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        narrow = HEADS * max(8, width // NARROWER // HEADS)
        self.narrow = nn.Linear(width, narrow)
        self.query, self.key_value = nn.Linear(narrow, narrow), nn.Linear(narrow, 2 * narrow)
        self.dense, self.out = nn.Linear(narrow, narrow), nn.Linear(narrow, classes)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        x_BTN = torch.tanh(self.narrow(x_BTD))
        q_BH1d = self.query(x_BTN[:, :1]).unflatten(2, (HEADS, -1)).transpose(1, 2)
        k_BHTd, v_BHTd = self.key_value(x_BTN).unflatten(2, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mask_B11T = None if mask_BT is None else mask_BT[:, None, None].bool()
        x_BH1d = F.scaled_dot_product_attention(q_BH1d, k_BHTd, v_BHTd, attn_mask=mask_B11T)
        return self.out(torch.tanh(self.dense(x_BH1d.flatten(1))))  # type: ignore[no-any-return]


class Exits(nn.ModuleList):
    """The branch classifiers of a model, and who is still in the batch while a forward pass lasts.

    In train mode every branch is computed and nobody leaves: this is how branches learn. In eval mode `threshold` decides: a
    sentence leaves after the first layer whose branch has an uncertainty below it. 0: nobody leaves, and no branch is computed.
    The threshold is saved with the weights.
    """

    def __init__(self, branches: list[nn.Module], layers: int):
        super().__init__(branches)
        self.layers, self.left = layers, [0] * layers
        self.register_buffer("limit", torch.tensor(EVERY))
        self.begin(None)

    limit: Tensor
    # Of one pass of the model:
    watches: bool  # every branch is computed, for its tap
    bound: float  # of the uncertainty; 0: nobody leaves
    mask_BT: Tensor | None
    size: int  # sentences
    rows: Tensor | None  # who is left; None: nobody leaves in this pass
    logits: Tensor | None  # of those who have left

    @property
    def threshold(self) -> float:
        """From 0 (the whole model) to 1 (nearly all leave after the first layer)."""
        return round(float(self.limit), 6)

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise KdrunError(f"the threshold of early exit is {value}; it must lie between 0 (the whole model) and 1")
        self.limit.fill_(value)

    @property
    def is_empty(self) -> bool:
        """Whether every sentence of this pass has left."""
        return self.rows is not None and len(self.rows) == 0

    def count(self) -> list[int]:
        """How many sentences left after each layer (the last: who stayed to the end) since the last call."""
        left, self.left = self.left, [0] * self.layers
        return left

    def begin(self, mask_BT: Tensor | None) -> None:
        """Before a pass of the model, also where the pass before it was broken off."""
        limit = float(self.limit)
        self.watches = self.training or limit < 0
        self.bound = 0.0 if self.watches else limit
        self.mask_BT, self.size, self.rows, self.logits = mask_BT, 0, None, None

    def enter(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a layer: masks and other tensors of all sentences, cut down to those who are left."""
        if layer == 0 and self.bound:
            x_BTD = args[0] if args else kwargs["hidden_states"]
            self.size, self.rows = len(x_BTD), torch.arange(len(x_BTD), device=x_BTD.device)
        if self.rows is None or len(self.rows) == self.size:
            return None
        return self._cut(args), self._cut(kwargs)

    def _cut(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == self.size:
            return value[self.rows]
        if isinstance(value, Mapping):
            return {key: self._cut(one) for key, one in value.items()}
        return tuple(map(self._cut, value)) if isinstance(value, tuple) else value

    def leave(self, layer: int, output: Any) -> Any:
        """After a layer but the last: its branch, and the hidden states of those who stay."""
        if self.rows is None:
            if self.watches:
                self[layer](_hidden(output), self.mask_BT)  # for its tap
            return None
        logits_BK = self[layer](_hidden(output), None if self.mask_BT is None else self.mask_BT[self.rows])
        goes_B = uncertainty(logits_BK) < self.bound
        gone = int(goes_B.sum())
        if not gone:
            return None
        self.left[layer] += gone
        if self.logits is None:
            self.logits = logits_BK.new_zeros(self.size, logits_BK.shape[1])
        self.logits[self.rows[goes_B]] = logits_BK[goes_B]
        self.rows = self.rows[~goes_B]
        kept = _hidden(output)[~goes_B]
        return kept if isinstance(output, Tensor) else (kept, *output[1:])

    def end(self, output: Any) -> Any:
        """After the model: the logits of all, in the order of the batch."""
        rows, logits = self.rows, self.logits
        self.mask_BT = self.rows = self.logits = None
        if rows is None:
            return None
        self.left[-1] += len(rows)
        if logits is None:  # nobody has left
            return None
        last = output if isinstance(output, Tensor) else output.logits
        logits[rows] = last.to(logits.dtype)
        if isinstance(output, Tensor):
            return logits
        output.logits = logits
        return output


def _hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


class Layers(nn.ModuleList):
    """The layers of an encoder with exits: a loop over them ends as soon as every sentence has left."""

    exits: tuple[Exits, ...] = ()  # a tuple, so that it is no submodule

    def __iter__(self) -> Iterator[nn.Module]:
        for layer in self._modules.values():
            if any(exits.is_empty for exits in self.exits):
                return
            yield layer  # type: ignore[misc]


def add_exits(model: nn.Module, classes: int) -> nn.Module:
    """Give a text classifier of the transformers library its branches: `model.exits`, and the taps exit1..exit(n-1), logits (B, K).

    The model declares `blocks`, the path of its layers, whose first argument is the hidden states (B, T, D); names of weights stay.
    """
    if classes < 2:
        raise KdrunError("exits=true needs classes: the entropy of a single number says nothing; leave exits out")
    parent, _, name = str(model.blocks).rpartition(".")
    layers = Layers(model.get_submodule(str(model.blocks)).children())
    if len(layers) < 2:
        raise KdrunError("exits=true needs two layers or more: the model has one, and nothing could be left out")
    branches: list[nn.Module] = [Branch(model.config.hidden_size, classes) for _ in range(len(layers) - 1)]  # type: ignore[union-attr, arg-type]
    model.exits = exits = Exits(branches, len(layers))
    layers.exits = (exits,)
    setattr(model.get_submodule(parent), name, layers)
    taps = {f"exit{number + 1}": f"exits.{number}" for number in range(len(exits))}
    model.taps = {**getattr(model, "taps", {}), **taps}  # type: ignore[assignment]
    model.register_forward_pre_hook(_Begin(exits), with_kwargs=True)
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(_Enter(exits, number), with_kwargs=True)
        if number < len(exits):
            layer.register_forward_hook(_Leave(exits, number))
    model.register_forward_hook(_End(exits))
    return model


class _Hook:
    """A hook is an object, not a closure: a copy of the model then has hooks on its own exits."""

    def __init__(self, exits: Exits, layer: int = 0):
        self.exits, self.layer = exits, layer


class _Begin(_Hook):
    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self.exits.begin(args[1] if len(args) > 1 else kwargs.get("attention_mask"))


class _Enter(_Hook):
    def __call__(self, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        return self.exits.enter(self.layer, args, kwargs)


class _Leave(_Hook):
    def __call__(self, layer: nn.Module, args: Any, output: Any) -> Any:
        return self.exits.leave(self.layer, output)


class _End(_Hook):
    def __call__(self, model: nn.Module, args: Any, output: Any) -> Any:
        return self.exits.end(output)


def exits_of(model: nn.Module) -> Exits:
    """The exits of a model, or of a model with its preprocessing; set `.threshold` on them. KdrunError where it has none."""
    for module in model.modules():
        if isinstance(module, Exits):
            return module
    raise KdrunError(f"{type(model).__name__} has no exits; a model of text has them with exits=true")
