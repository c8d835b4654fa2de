"""From samples to a TextDataset: tokens, labels as tensors, and the holdout."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kdrun.tasks import cache
from kdrun.tasks.draws import split_holdout
from kdrun.tasks.text.data import tokenizer as tokenizers
from kdrun.tasks.text.data.base import TextDataset, TextSplit
from kdrun.tasks.text.data.samples import Part, Samples

CHUNK = 10_000  # samples that are tokenised in one call: the library's results take ten times the memory of the ids


def assemble(cfg: Any, outputs: str, samples: Samples) -> TextDataset:
    """The TextDataset of these samples. Takes dataset.holdout out of the training rows; else the validation file is the holdout.

    A trained tokenizer learns from the whole training file, so that it does not depend on the holdout.
    """
    known = [] if cfg.holdout or samples.validation is None else [samples.validation]
    checksum = samples.checksum()
    words = (text for texts in samples.train.texts for text in texts)
    loaded = tokenizers.load(cfg, outputs, _digest(samples.train), words)
    loaded.tokenizer.enable_truncation(cfg.max_length, strategy="longest_first")
    notes = list(samples.notes)
    if cfg.holdout and samples.validation is not None:
        notes.append(
            f"{samples.validation.name} is not used: dataset.holdout={cfg.holdout} takes that many rows out of the training file"
        )
    splits = []
    for part in (samples.train, samples.test, *known):
        split, cut = _split(part, loaded, cfg.max_length, outputs, bool(samples.classes))
        splits.append(split)
        if cut:
            notes.append(f"{cut:,} of {len(split):,} texts of {part.name} have more than {cfg.max_length} tokens and are cut "
                         f"(dataset.max_length)")  # fmt: skip
    train, held_out = split_holdout(splits[0], cfg.holdout, samples.classes, "texts")
    return TextDataset(
        cfg.name, samples.classes, checksum, train, splits[2] if known else held_out, splits[1], loaded.tokenizer,
        loaded.sha256, loaded.vocabulary, loaded.pad_id, loaded.mask_id, loaded.special_ids, cfg.max_length, notes,
    )  # fmt: skip


def _split(
    part: Part, loaded: tokenizers.Loaded, max_length: int, outputs: str, classes: bool
) -> tuple[TextSplit, int]:
    """The split of one file, and how many of its texts were cut."""
    name = hashlib.sha256(f"{_digest(part)} {loaded.sha256} {max_length}".encode()).hexdigest()[:32]
    path = Path(outputs, "cache", "text", f"{name}.safetensors")
    tokens = _kept(path, len(part.texts))
    if tokens is None:
        tokens = encode(loaded.tokenizer, part.texts)
        cache.write(path, save(tokens))
    ids, starts, segments = (torch.from_numpy(tokens[key]) for key in ("ids", "starts", "segments"))
    labels = torch.tensor(part.labels) if classes else torch.tensor(part.labels, dtype=torch.float32)[:, None]
    split = TextSplit(part.texts, labels, torch.arange(len(labels)), ids, starts, segments if len(segments) else None)
    return split, int(tokens["cut"][0])


def encode(tokenizer: Any, texts: list[tuple[str, ...]]) -> dict[str, np.ndarray]:
    """Tokens of all samples: ids int32 and segments uint8, flat (segments empty where all are 0), starts int64, cut int64 (1,).

    The library uses all cores (RAYON_NUM_THREADS sets another number).
    """
    # Said aloud, because without it the library prints a warning in each reader process that is forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    ids, segments, lengths, cut = [], [], [], 0
    for first in range(0, len(texts), CHUNK):
        rows: Any = texts[first : first + CHUNK]
        rows = [row[0] for row in rows] if len(rows[0]) == 1 else rows
        encodings = tokenizer.encode_batch_fast(rows)
        lengths += [len(one) for one in encodings]
        cut += sum(bool(one.overflowing) for one in encodings)
        ids.append(np.concatenate([np.array(one.ids, dtype=np.int32) for one in encodings]))
        segments.append(np.concatenate([np.array(one.type_ids, dtype=np.uint8) for one in encodings]))
    flat = np.concatenate(segments)
    return {
        "ids": np.concatenate(ids),
        "starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "segments": flat if flat.any() else flat[:0],
        "cut": np.array([cut], dtype=np.int64),
    }


def _kept(path: Path, count: int) -> dict[str, np.ndarray] | None:
    """The tokens in a cache file; None where there is no file, or one that is broken."""
    try:
        with safe_open(str(path), "np") as file:
            tokens = {key: file.get_tensor(key) for key in ("ids", "starts", "segments", "cut")}
    except (OSError, SafetensorError):
        return None
    ids, starts = tokens["ids"], tokens["starts"]
    if len(starts) != count + 1 or starts[-1] != len(ids) or len(tokens["segments"]) not in (0, len(ids)):
        return None
    return tokens


def _digest(part: Part) -> str:
    return hashlib.sha256(json.dumps(part.texts).encode()).hexdigest()
