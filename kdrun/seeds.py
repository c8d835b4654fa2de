"""Seed streams: every consumer of randomness gets its own, so that none disturbs another."""

from __future__ import annotations

import hashlib


def stream(seed: int, *name: object) -> int:
    """A 63-bit seed for the stream called `name` under the run's seed.

    stream(0, "student") gives the student's initial weights, stream(0, "order", 3) the batch order of epoch 3:
    pure functions, so any stream can be replayed without the ones before it.
    """
    key = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
