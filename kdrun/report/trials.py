"""The trials of a search (kdrun/sweep/search.py): what its study file holds, highest holdout score first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.render import Plain
from kdrun.report.table import percent


def trials(path: Path) -> list[Plain]:
    """A table for every study of a SQLite file. KdrunError where it is none, or Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise KdrunError(f"{path}: reading a study needs Optuna: pip install 'kdrun[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not path.is_file() or path.read_bytes()[:15] != b"SQLite format 3":
        raise KdrunError(
            f"{path} is no study of a search: give the file that hydra.sweeper.study names, as outputs/study.db"
        )
    storage = f"sqlite:///{path}"
    try:
        studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    except Exception as error:  # whatever its database layer says of a foreign file
        raise KdrunError(f"{path} is no study of a search ({type(error).__name__})") from error
    if not studies:
        raise KdrunError(f"{path} holds no study yet")
    return [_table(study.study_name, study.get_trials(deepcopy=False)) for study in studies]


def _table(name: str, found: list[Any]) -> Plain:
    told = sorted(found, key=lambda trial: -1.0 if trial.value is None else trial.value, reverse=True)
    keys = list(dict.fromkeys(key for trial in found for key in trial.params))
    done = sum(trial.value is not None for trial in found)
    others = f", {len(found) - done} failed or not finished" if done < len(found) else ""
    caption = (
        f"study {name}: {done} finished trial{'s' * (done != 1)}{others}; accuracy in % on the holdout, which chose: the highest is an "
        "optimistic figure; the test set has chosen nothing"
    )
    data: list[dict[str, Any]] = [
        {
            "trial": t.number,
            "holdout": t.value,
            **{key: t.params.get(key) for key in keys},
            "state": t.state.name.lower(),
        }
        for t in told
    ]
    rows = []
    for line in data:
        score = "" if line["holdout"] is None else percent(line["holdout"])
        rows.append([str(line["trial"]), score, *(_said(line[key]) for key in keys), line["state"]])
    return Plain(caption, ["trial", "holdout", *keys, "state"], rows, data)


def _said(value: Any) -> str:
    """As the search writes it on the command line."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
