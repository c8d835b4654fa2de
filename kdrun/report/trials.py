"""The trials of a search (kdrun/sweep/search.py), read from its study file: best holdout score first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.render import ExtraTable
from kdrun.tasks.metric import ACCURACY, Metric


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
    return [_table(study) for study in studies]


def _table(study: Any) -> ExtraTable:
    """The trials of a study. Its attribute `metric` says what was measured; studies without it are of accuracies."""
    all_trials = study.get_trials(deepcopy=False)
    metric = Metric(**study.user_attrs["metric"]) if "metric" in study.user_attrs else ACCURACY
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    ordered = sorted(all_trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0)))
    keys = list(dict.fromkeys(key for trial in all_trials for key in trial.params))
    done = sum(trial.value is not None for trial in all_trials)
    others = f", {len(all_trials) - done} failed or not finished" if done < len(all_trials) else ""
    caption = (
        f"study {study.study_name}: {done} finished trial{'s' * (done != 1)}{others}; {metric.label}"
        f"{f' in {metric.unit}' if metric.unit else ''} on the holdout. The search chose by this score, so the best one is optimistic; "
        "the test set was not used to choose"
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
        score = "" if line["holdout"] is None else metric.text(line["holdout"])
        rows.append([str(line["trial"]), score, *(_setting(line[key]) for key in keys), line["state"]])
    return ExtraTable(caption, ["trial", "holdout", *keys, "state"], rows, data)


def _setting(value: Any) -> str:
    """A value as the search writes it on the command line."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
