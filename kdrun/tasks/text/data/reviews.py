"""4,000 sentences about films that this file generates from a small grammar: there is no download, and a run takes seconds.

They are not written by people. Whether a sentence is for or against the film depends on its adjectives, on negation ("not",
"hardly"), and on which clause of a contrast counts: "although A , B", "A , but B" and "B , although A" all mean B. A model that only
counts good and bad words is wrong in a third of them. NOISE of the training labels are wrong on purpose, as some labels by people
are; those of the test sentences are right.
"""

from __future__ import annotations

import random
from typing import Any

from kdrun.tasks.text.data.samples import Part, Samples

CLASSES = ["negative", "positive"]
TRAIN_ROWS, TEST_ROWS = 3_000, 1_000
SEED = 21
NOISE = 0.05
LEAST, MOST = 5, 25  # words of a sentence

# Words against a film, and words for it.
ADJECTIVES = (
    ("awful", "bland", "boring", "clumsy", "cold", "dull", "empty", "hollow", "lazy", "messy", "stale", "tedious", "ugly", "weak"),
    ("bold", "brilliant", "charming", "clever", "elegant", "fresh", "funny", "gripping", "honest", "lively", "lovely", "smart",
     "superb", "warm"),
)  # fmt: skip
VERBS = (
    ("annoys", "bores", "disappoints", "drags", "fails", "stumbles"),
    ("amuses", "delights", "entertains", "excels", "shines", "works"),
)
ASPECTS = (
    "acting", "camera", "cast", "comedy", "dialogue", "direction", "drama", "ending", "humour", "music", "opening", "pacing", "plot",
    "romance", "score", "script", "story", "style",
)  # fmt: skip
OWNERS = ("", "", "", "", "of this film", "of the second half", "in the final act")
DEGREES = ("", "", "", "very", "quite", "really", "so")
NOT_IS = ("is not", "is never", "is hardly", "is far from")
NOT_DOES = ("never", "hardly", "rarely")
LEADS = ("", "", "", "", "in the end", "to be fair", "all in all")
NEGATED = 0.2  # share of the clauses
SINGLE, AGREEING = (
    0.3,
    0.35,
)  # share of the sentences with one clause, and with two that agree; the others are contrasts


class Writer:
    """Writes sentences. All its randomness comes from random.Random.random, which gives the same numbers in every version of Python."""

    def __init__(self, seed: int):
        self.random = random.Random(seed).random

    def pick(self, options: Any) -> Any:
        return options[int(self.random() * len(options))]

    def clause(self, label: int) -> str:
        """A clause about one aspect that says `label`: a word of that side, or one of the other side and a negation."""
        negated = self.random() < NEGATED
        side = 1 - label if negated else label
        subject = f"the {self.pick(ASPECTS)} {self.pick(OWNERS)}"
        if self.random() < 0.25:
            return f"{subject} {self.pick(NOT_DOES) if negated else ''} {self.pick(VERBS[side])}"
        verb = self.pick(NOT_IS) if negated else f"is {self.pick(DEGREES)}"
        return f"{subject} {verb} {self.pick(ADJECTIVES[side])}"

    def sentence(self, label: int) -> str:
        """A sentence whose meaning is `label`: one clause, two that agree, or a contrast of which one clause counts."""
        main, kind = self.clause(label), self.random()
        if kind < SINGLE:
            body = main
        elif kind < SINGLE + AGREEING:
            body = f"{main} and {self.clause(label)}"
        else:
            other = self.clause(1 - label)
            body = self.pick((f"although {other} , {main}", f"{other} , but {main}", f"{main} , although {other}"))
        lead = self.pick(LEADS)
        return " ".join(f"{lead + ' ,' if lead else ''} {body} .".split())


def samples(cfg: Any, outputs: str) -> Samples:
    """3,000 training and 1,000 test sentences, all different, half of them positive."""
    writer, seen = Writer(SEED), set()
    rows: list[tuple[str, int]] = []
    while len(rows) < TRAIN_ROWS + TEST_ROWS:
        label = len(rows) % 2
        text = writer.sentence(label)
        if LEAST <= len(text.split()) <= MOST and text not in seen:
            seen.add(text)
            rows.append((text, label))
    train = [(text, 1 - label if writer.random() < NOISE else label) for text, label in rows[:TRAIN_ROWS]]
    notes = [f"the sentences are generated, and {NOISE:.0%} of the training labels are wrong on purpose"]
    return Samples(CLASSES, _part("train", train), None, _part("test", rows[TRAIN_ROWS:]), notes)


def listing(cfg: Any, outputs: str) -> list[Any]:
    """What changes when the sentences do."""
    return [SEED, NOISE, TRAIN_ROWS, TEST_ROWS, samples(cfg, outputs).checksum()]


def _part(name: str, rows: list[tuple[str, int]]) -> Part:
    return Part(name, [(text,) for text, _ in rows], [label for _, label in rows])
