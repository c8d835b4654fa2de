"""The trials of a search (kdrun/sweep/search.py), read from its study file: highest holdout score first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.metric import ACCURACY
from kdrun.report.render import ExtraTable


def trials(path: Path) -> list[ExtraTable]:
    """A table for every study of a SQLite file. KdrunError where the file is no study, or Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise KdrunError(f"{path}: reading a study needs Optuna: pip install 'kdrun[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not path.is_file() or path.read_bytes()[:15] != b"SQLite format 3":
        raise KdrunError(
            f"{path} is no study of a search; give the file that hydra.sweeper.study names, such as outputs/study.db"
        )
    storage = f"sqlite:///{path}"
    try:
        studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    except Exception as error:  # its database layer raises many kinds of errors for a foreign file
        raise KdrunError(f"{path} is no study of a search ({type(error).__name__})") from error
    if not studies:
        raise KdrunError(f"{path} holds no study yet")
    return [_table(study.study_name, study.get_trials(deepcopy=False)) for study in studies]


def _table(name: str, all_trials: list[Any]) -> ExtraTable:
    ordered = sorted(all_trials, key=lambda trial: -1.0 if trial.value is None else trial.value, reverse=True)
    keys = list(dict.fromkeys(key for trial in all_trials for key in trial.params))
    done = sum(trial.value is not None for trial in all_trials)
    others = f", {len(all_trials) - done} failed or not finished" if done < len(all_trials) else ""
    caption = (
        f"study {name}: {done} finished trial{'s' * (done != 1)}{others}; accuracy in {ACCURACY.unit} on the holdout. The search chose by "
        "this score, so the highest is optimistic; the test set was not used to choose"
    )
    data: list[dict[str, Any]] = [
        {
            "trial": trial.number,
            "holdout": trial.value,
            **{key: trial.params.get(key) for key in keys},
            "state": trial.state.name.lower(),
        }
        for trial in ordered
    ]
    rows = []
    for line in data:
        score = "" if line["holdout"] is None else ACCURACY.text(line["holdout"])
        rows.append([str(line["trial"]), score, *(_setting(line[key]) for key in keys), line["state"]])
    return ExtraTable(caption, ["trial", "holdout", *keys, "state"], rows, data)


def _setting(value: Any) -> str:
    """A value as the search writes it on the command line."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
