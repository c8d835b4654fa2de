"""Search over hyper-parameters with Optuna, on the holdout score: `kdrun -m hydra/sweeper=search ...`.

Every sweep override is a dimension: a choice (a,b,c), a range(...), an interval(low,high), log-scaled by tag(log, interval(...)). The
study is a SQLite file; started again, the same command goes on with it. Every trial is a run like any other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from kdrun.engine import record as records
from kdrun.errors import KdrunError
from kdrun.job import prepare


def search(
    overrides: Sequence[Override],
    compose: Callable[[list[str]], DictConfig],
    launch: Callable[[list[list[str]], int], None],
    *,
    trials: int,
    at_once: int,
    study_file: str,
    seed: int,
    folder: Path,
) -> None:
    """Ask, train and tell until the study has `trials` finished trials; then say the best. Failed trials are told as such."""
    try:
        import optuna
    except ImportError as error:
        raise KdrunError("hydra/sweeper=search needs Optuna: pip install 'kdrun[search]'") from error
    fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
    space = {o.get_key_element(): _distribution(o) for o in overrides if o.is_sweep_override()}
    _check(space, fixed, compose)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(study_file).parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{study_file}", study_name=_name(fixed, space), direction="maximize", load_if_exists=True,
    )  # fmt: skip
    before = _take_up(study)
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))  # one that goes on draws other points
    finished = optuna.trial.TrialState.COMPLETE
    print(f"search   {len(space)} dimensions, {before} of {trials} trials done   study {study_file}", flush=True)
    number = 0
    while (left := trials - len(study.get_trials(states=(finished,)))) > 0:
        asked = [study.ask(space) for _ in range(min(at_once, left))]
        batch = [[*fixed, *_said(trial.params)] for trial in asked]
        launch(batch, number)
        number += len(batch)
        scores = [_holdout_score(job, compose) for job in batch]
        for trial, score in zip(asked, scores, strict=True):
            state = finished if score is not None else optuna.trial.TrialState.FAIL
            study.tell(trial, score, state)
            told = f"holdout {100 * score:.2f}" if score is not None else "failed"
            print(f"  trial {trial.number:<4} {told}   {' '.join(_said(trial.params))}", flush=True)
        if all(score is None for score in scores):
            raise KdrunError(
                f"every trial of the last batch failed; {folder} has their errors. The same command goes on with the study"
            )
    best = study.best_trial
    words = " ".join(_said(best.params))
    print(
        f"best     holdout {100 * (best.value or 0):.2f} of {trials} trials, an optimistic figure: it was chosen   {words}"
    )
    print(
        f"next     kdrun {' '.join(fixed)} {words}   (with seeds of its own, against none: the test set has chosen nothing)"
    )
    print(f"trials   kdrun report {study_file}")
    (folder / "search.json").write_text(
        json.dumps({"study": study_file, "best": best.params, "holdout": best.value}), encoding="utf-8"
    )


def _said(parameters: dict[str, Any]) -> list[str]:
    """A trial's values as overrides, numbers with four digits: more say nothing and are no one's to type."""
    return [f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in parameters.items()]


def _distribution(override: Override) -> Any:
    """What Optuna draws a dimension from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if override.get_key_element().lstrip("+") in ("seed", "teacher.seed"):
        raise KdrunError(
            "a search over seeds picks the luckiest one; fix seed=NUMBER, and compare what was found over other seeds"
        )
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([str(item) for item in override.sweep_string_iterator()])
    if isinstance(value, RangeSweep):
        whole = all(float(x).is_integer() for x in (value.start, value.stop, value.step) if x is not None)
        start, step = value.start or 0, value.step
        last = [x for x in value.range()][-1]
        return (
            IntDistribution(int(start), int(last), step=int(step))
            if whole
            else FloatDistribution(float(start), float(last), step=float(step))
        )
    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        return FloatDistribution(float(value.start), float(value.end), log="log" in value.tags)
    raise KdrunError(f"{override.input_line} is no dimension of a search: give a,b,c, range(...) or interval(low,high)")


def _check(space: dict[str, Any], fixed: list[str], compose: Callable[[list[str]], DictConfig]) -> None:
    """There is something to search, and it is chosen on a holdout."""
    if not space:
        raise KdrunError("a search needs a dimension, as in 'method.kd.temperature=interval(1,10)'")
    config = prepare(compose([*fixed, *(f"{key}={_any(value)}" for key, value in space.items())])).config
    if config.protocol != "holdout":
        raise KdrunError(
            "a search chooses on the holdout, never on the test set: say dataset.holdout=N protocol=holdout (N images of the training set)"
        )


def _any(distribution: Any) -> Any:
    return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


def _name(fixed: list[str], space: dict[str, Any]) -> str:
    """A study is what it searches: another space or other settings are another study of the same file."""
    import hashlib

    said = json.dumps([sorted(fixed), {key: str(value) for key, value in sorted(space.items())}])
    return f"kdrun-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def _take_up(study: Any) -> int:
    """Trials that were running when a search was killed are asked for again, first; returns how many are finished."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params, skip_if_exists=False)
        study.tell(trial.number, state=TrialState.FAIL)
    return len(study.get_trials(states=(TrialState.COMPLETE,)))


def _holdout_score(job: list[str], compose: Callable[[list[str]], DictConfig]) -> float | None:
    """The holdout score of a trial's run; None where it is not done."""
    try:
        record = records.read(prepare(compose(job)).folder)
    except KdrunError as error:
        print(f"  {error}", file=sys.stderr)
        return None
    if record is None or record["status"] != "done" or not record["holdout"]:
        return None
    score: float = record["holdout"]["score"]
    return score
