"""A model of texts that takes strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import KdrunError
from kdrun.tasks.text.data.loader import collated
from kdrun.tasks.text.data.tokenizer import library
from kdrun.tasks.text.models.exits import exits_of


class Reader(nn.Module):
    """A student with its tokenizer: texts to logits (B, classes), or numbers (B, 1).

    A text is a string; for a task of pairs it is a tuple of two strings. Longer texts are cut as in training.
    """

    def __init__(self, model: nn.Module, preprocessing: Mapping[str, Any], tokenizer: Path, classes: Sequence[str]):
        super().__init__()
        if not tokenizer.is_file():
            raise KdrunError(f"{tokenizer} is gone: without its tokenizer the student cannot read strings")
        self.model, self.classes, self.pad_id = model, list(classes), preprocessing["pad_id"]
        self.pairs, self.segments = preprocessing["pairs"], preprocessing["segments"]
        self.tokenizer = library().Tokenizer.from_file(str(tokenizer))

    @property
    def threshold(self) -> float:
        """Of a model with exits: how unsure a branch may be of a text that leaves after its layer; 0 is the whole model."""
        return exits_of(self.model).threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        exits_of(self.model).threshold = value

    def inputs(self, texts: str | Sequence[str | tuple[str, str]]) -> dict[str, Tensor]:
        """What the model itself takes: the tokens of the texts, padded to the longest."""
        is_pair = isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(text, str) for text in texts)
        one = isinstance(texts, str) or (self.pairs and is_pair)
        texts = [texts] if one else list(texts)  # type: ignore[list-item]
        if not texts:
            raise ValueError("no texts; give one string or more")
        for text in texts:
            if isinstance(text, (tuple, list)) != self.pairs:
                wanted = "a tuple of two texts" if self.pairs else "one text, a string"
                raise ValueError(f"a sample of this model is {wanted}; this one is {text!r}")
        tokens = [
            (encoding.ids, encoding.type_ids)
            for encoding in self.tokenizer.encode_batch([tuple(t) if isinstance(t, list) else t for t in texts])
        ]
        inputs = collated(tokens, self.pad_id, self.segments)
        device = next(self.model.parameters()).device
        return {key: value.to(device) for key, value in inputs.items()}

    def forward(self, texts: str | Sequence[str | tuple[str, str]]) -> Tensor:
        logits: Tensor = self.model(self.inputs(texts))
        return logits

    def predict(self, texts: str | Sequence[str | tuple[str, str]]) -> list[tuple[str, float]]:
        """The most likely class of each text, and its probability. ValueError for a model of numbers."""
        if not self.classes:
            raise ValueError("this model gives numbers, no classes: student(texts) returns them")
        with torch.no_grad():
            probability_N, class_N = self(texts).softmax(1).max(1)
        return [(self.classes[k], p) for k, p in zip(class_N.tolist(), probability_N.tolist(), strict=True)]


def sentences(tokenizer: Any, inputs: Mapping[str, Tensor]) -> list[str]:
    """The texts of a batch, as the tokenizer reads their tokens back."""
    rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].sum(1).tolist(), strict=True)
    return [tokenizer.decode(ids[:length], skip_special_tokens=True) for ids, length in rows]
