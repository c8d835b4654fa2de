"""The teachers of a table: their scores, and a different name for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdrun.report.labels import settings
from kdrun.report.models import Models, teacher_node


@dataclass(frozen=True, order=True)
class Teacher:
    """A trained teacher. `protocol`: which of its epochs gave its weights, last or best."""

    name: str
    score: float
    protocol: str


def teachers(runs: Iterable[dict]) -> list[Teacher]:
    """The teachers of these runs that have a score, sorted by name."""
    runs = [run for run in runs if run["teacher"]]
    names = teacher_names(runs)
    by_weights = {run["teacher"]["sha256"]: run for run in reversed(runs) if run["teacher"]["score"] is not None}
    return sorted(
        Teacher(names[sha], run["teacher"]["score"], "best" if teacher_node(run).get("weights") == "best" else "last")
        for sha, run in by_weights.items()
    )


def teacher_names(runs: Iterable[dict]) -> dict[str, str]:
    """{sha256 of its weights: name}; the names of teachers of one model hold the settings in which these differ."""
    by_weights = {run["teacher"]["sha256"]: run for run in runs if run["teacher"]}
    models = Models(by_weights.values())
    own = settings(by_weights.values(), models)
    of_model: dict[str, list[str]] = {}
    for sha, run in by_weights.items():
        of_model.setdefault(str(models.name(run, "teacher")), []).append(sha)
    names = {}
    for name, members in of_model.items():
        values = {sha: own[by_weights[sha]["group"]].values for sha in members}
        keys = [key for key in next(iter(values.values())) if key.startswith("teacher.")]
        keys = [key for key in keys if len({one.get(key) for one in values.values()}) > 1]
        texts = {
            sha: ", ".join(f"{k.removeprefix('teacher.')}={v[k]}" for k in keys if k in v) for sha, v in values.items()
        }
        for sha, text in texts.items():
            is_unique = list(texts.values()).count(text) == 1
            text = text if is_unique else f"{text}, sha256={sha[:8]}".removeprefix(", ")
            longer = f"{name[:-1]}, {text})" if name.endswith(")") else f"{name} ({text})"
            names[sha] = longer if len(members) > 1 else name
    return names
