"""Search over hyper-parameters with Optuna, on the holdout score: `kdrun -m hydra/sweeper=search ...`.

Every sweep override is a dimension: choices (a,b,c), a range(...), an interval(low,high), or tag(log, interval(...)) for a logarithmic
scale. The study is a SQLite file; the same command continues it. Every trial is a run like any other.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from kdrun.errors import HeldError, KdrunError
from kdrun.runs import record as records
from kdrun.sweep.folder import open_folder
from kdrun.sweep.job import prepare
from kdrun.tasks import task_of
from kdrun.tasks.metric import Metric


def search(
    overrides: Sequence[Override],
    compose: Callable[[list[str]], DictConfig],
    launch: Callable[[list[list[str]], int], None],
    config: DictConfig,
    *,
    trials: int,
    at_once: int,
    study_file: str,
    seed: int,
) -> None:
    """Draw trials, train them and report their holdout scores to the study until `trials` are finished; then print the best.

    Only one process at a time may work on a search: a second process would think that the running trials of the first are dead.
    """
    if importlib.util.find_spec("optuna") is None:
        raise KdrunError("hydra/sweeper=search needs Optuna: pip install 'kdrun[search]'")
    for key, value in (("trials", trials), ("at_once", at_once)):
        if value < 1:
            raise KdrunError(f"hydra.sweeper.{key} is {value}; it must be a whole number of 1 or more")
    fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
    space = {o.get_key_element(): _distribution(o) for o in overrides if o.is_sweep_override()}
    metric = _check(space, fixed, compose)
    name = _name(fixed, space)
    study = _open(study_file, name, metric)
    try:
        with FileLock(Path(study_file).with_name(f".{Path(study_file).name}.{name}.lock"), timeout=0):
            one = Search(study, study_file, metric, space, fixed, compose, launch, open_folder(config))
            one.run(trials, at_once, seed)
    except Timeout:
        raise HeldError(
            f"another process works on this search in {study_file}; wait for it, or give another file: "
            "hydra.sweeper.study=FILE.db"
        ) from None


@dataclass
class Search:
    """A running search. `space`: key -> the distribution that Optuna draws its values from; `fixed`: the overrides of every trial."""

    study: Any
    study_file: str
    metric: Metric
    space: dict[str, Any]
    fixed: list[str]
    compose: Callable[[list[str]], DictConfig]
    launch: Callable[[list[list[str]], int], None]
    folder: Path

    def run(self, trials: int, at_once: int, seed: int) -> None:
        """Train batches of trials until `trials` are finished. Failed trials are reported to the study as failed."""
        import optuna

        before = _draw_again(self.study)
        # Another seed, so that a continued search does not draw the same points again.
        self.study.sampler = optuna.samplers.TPESampler(seed=seed + len(self.study.trials))
        dimensions = len(self.space)
        print(
            f"search   {dimensions} dimensions, {before} of {trials} trials done   study {self.study_file}", flush=True
        )
        number = 0
        while (left := trials - _finished(self.study)) > 0:
            drawn = [self.study.ask(self.space) for _ in range(min(at_once, left))]
            jobs = [[*self.fixed, *_overrides(trial.params)] for trial in drawn]
            self.launch(jobs, number)
            number += len(jobs)
            scores = [_holdout_score(job, self.compose) for job in jobs]
            self._report(drawn, scores)
            if all(score is None for score in scores):
                raise KdrunError(
                    f"every trial of the last batch failed; their errors are in {self.folder}. The same command continues the study"
                )
        self._print_best()

    def _report(self, drawn: list[Any], scores: list[float | None]) -> None:
        """Report the results of trials to the study, and print them."""
        from optuna.trial import TrialState

        for trial, score in zip(drawn, scores, strict=True):
            self.study.tell(trial, score, TrialState.COMPLETE if score is not None else TrialState.FAIL)
            words = f"holdout {self.metric.text(score)}" if score is not None else "failed"
            print(f"  trial {trial.number:<4} {words}   {' '.join(_overrides(trial.params))}", flush=True)

    def _print_best(self) -> None:
        """Print the best trial and the next command, and write the best trial into search.json."""
        best = self.study.best_trial
        words = " ".join(_overrides(best.params))
        print(
            f"best     holdout {self.metric.text(best.value)} of {_finished(self.study)} trials; this score is optimistic: "
            f"it is the best of many   {words}"
        )
        print(
            f"next     kdrun {' '.join(self.fixed)} {words}   (use new seeds and compare with method=none; the test set was not used yet)"
        )
        print(f"trials   kdrun report {self.study_file}")
        result = {"study": self.study_file, "best": best.params, "holdout": best.value}
        (self.folder / "search.json").write_text(json.dumps(result), encoding="utf-8")


def _open(study_file: str, name: str, metric: Metric) -> Any:
    """The study of this search in its file; a missing file is made."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = Path(study_file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        study = optuna.create_study(
            storage=f"sqlite:///{study_file}",
            study_name=name,
            direction="maximize" if metric.higher_is_better else "minimize",
            load_if_exists=True,
        )
        study.set_user_attr("metric", metric.as_dict())
        return study
    except (OSError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        why = getattr(error, "strerror", None) or getattr(error, "orig", None) or error
        raise KdrunError(
            f"hydra.sweeper.study={study_file} cannot be opened ({why}); give a file that can be written, or the file of an earlier "
            "search: hydra.sweeper.study=FILE.db"
        ) from error


def _finished(study: Any) -> int:
    """How many trials have a score."""
    from optuna.trial import TrialState

    return len(study.get_trials(states=(TrialState.COMPLETE,)))


def _overrides(parameters: dict[str, Any]) -> list[str]:
    """The values of a trial as overrides. Numbers have four digits, so that a user can type them."""
    return [f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in parameters.items()]


def _distribution(override: Override) -> Any:
    """The distribution that Optuna draws the values of an override from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    value, typed = override.value(), override.input_line
    if override.get_key_element().lstrip("+") in ("seed", "teacher.seed"):
        raise KdrunError(
            "a search over seeds only chooses the luckiest seed; set seed=NUMBER, and compare the best values with other seeds"
        )
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([str(item) for item in override.sweep_string_iterator()])
    if isinstance(value, RangeSweep):
        return _range(value, typed)
    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        low, high, log = float(value.start), float(value.end), "log" in value.tags
        if not low <= high:
            raise KdrunError(f"{typed} is empty; write the lower end first, as in interval({high:g},{low:g})")
        if log and low <= 0:
            raise KdrunError(f"{typed}: a logarithmic scale must start above 0, as in tag(log, interval(0.001,1))")
        return FloatDistribution(low, high, log=log)
    raise KdrunError(f"{typed} cannot be searched; give a,b,c, range(...) or interval(low,high)")


def _range(value: RangeSweep, typed: str | None) -> Any:
    """The distribution for a range. A range may count down; its end is not one of its values."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if "log" in value.tags:
        raise KdrunError(
            f"{typed}: a range cannot have a logarithmic scale; write tag(log, interval(low,high)), or choices a,b,c"
        )
    values = sorted(value.range()) if value.step else []
    if not values:
        raise KdrunError(f"{typed} is empty: the end of a range is not one of its values, as in range(1,4) for 1,2,3")
    low, high, step = values[0], values[-1], abs(value.step)
    if all(float(x).is_integer() for x in (low, step)):
        return IntDistribution(int(low), int(high), step=int(step))
    return FloatDistribution(float(low), float(high), step=float(step))


def _check(space: dict[str, Any], fixed: list[str], compose: Callable[[list[str]], DictConfig]) -> Metric:
    """Check that there is something to search and that a holdout chooses the best; returns the metric that chooses."""
    if not space:
        raise KdrunError("a search needs a dimension, as in 'method.kd.temperature=interval(1,10)'")
    config = prepare(compose([*fixed, *(f"{key}={_any(value)}" for key, value in space.items())])).config
    if config.protocol != "holdout":
        raise KdrunError(
            "a search uses the holdout and never the test set; add dataset.holdout=N protocol=holdout (N samples of the training set)"
        )
    return task_of(config).metrics[0]


def _any(distribution: Any) -> Any:
    return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


def _name(fixed: list[str], space: dict[str, Any]) -> str:
    """The name of a study: another search space or other settings make another study in the same file."""
    import hashlib

    whole = json.dumps([sorted(fixed), {key: str(value) for key, value in sorted(space.items())}])
    return f"kdrun-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def _draw_again(study: Any) -> int:
    """Put trials that were running when a search was killed first in the queue; returns the number of finished trials."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params, skip_if_exists=False)
        study.tell(trial.number, state=TrialState.FAIL)
    return _finished(study)


def _holdout_score(job: list[str], compose: Callable[[list[str]], DictConfig]) -> float | None:
    """The holdout score of the run of a trial; None if the run is not done."""
    try:
        record = records.read(prepare(compose(job)).folder)
    except KdrunError as error:
        print(f"  {error}", file=sys.stderr)
        return None
    if record is None or record["status"] != "done" or not record["holdout"]:
        return None
    score: float = record["holdout"]["score"]
    return score
