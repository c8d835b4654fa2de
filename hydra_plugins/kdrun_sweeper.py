"""Where Hydra looks for sweepers. What they do stands in kdrun/sweep/planning.py and kdrun/sweep/search.py."""

from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional  # noqa: UP035

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write


@dataclass
class Conf(BasicSweeperConf):
    """`hydra/sweeper=kdrun`, which conf/config.yaml chooses."""

    _target_: str = "hydra_plugins.kdrun_sweeper.KdrunSweeper"
    only_plan: bool = False  # kdrun plan: print which runs are missing, and train nothing


@dataclass
class SearchConf:
    """`hydra/sweeper=search hydra.sweeper.trials=50 hydra.sweeper.study=outputs/kd.db`."""

    _target_: str = "hydra_plugins.kdrun_sweeper.SearchSweeper"
    params: Optional[Dict[str, str]] = None  # noqa: UP006
    trials: int = 20
    at_once: int = 1  # trials asked for together: as many as the launcher runs side by side
    study: str = "${outputs}/study.db"
    seed: int = 0  # of the sampler
    only_plan: bool = False


ConfigStore.instance().store(group="hydra/sweeper", name="kdrun", node=Conf, provider="kdrun")
ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConf, provider="kdrun")


class KdrunSweeper(BasicSweeper):
    """Hydra's own sweeper with a plan: missing teachers first, finished runs not launched at all, a manifest of what was asked for."""

    def __init__(self, params: Any = None, max_batch_size: int | None = None, only_plan: bool = False):
        super().__init__(max_batch_size, params)
        self.only_plan = only_plan
        self.composer: Any = None
        self.keys: dict[str, set[str]] = {}  # what each choice of the group `method` brings

    def sweep(self, arguments: list[str]) -> Any:
        from kdrun.sweep import launchers, planning, summary

        assert self.config is not None
        self._expand_home()
        overrides = self._overrides(arguments)
        jobs = planning.for_its_methods(planning.expand(self.split_arguments(overrides, None)[0]), self._keys_of)
        if self.only_plan:
            planning.show_plan(overrides, jobs, self._compose)
            return None
        teachers, students = planning.begin(self.config, overrides, jobs, self._compose)
        if teachers or students:
            for line in launchers.notes(self.config.hydra):
                print(line, flush=True)
        folder = Path(self.config.hydra.sweep.dir)
        try:
            self._launch(teachers, len(jobs))
            self._launch(students, 0)
        except Exception:
            summary.finish(folder, self.config)
            raise
        status = summary.finish(folder, self.config)
        if folder.name == "quickstart" and not status:
            print(summary.next_step(self._compose))
        if status:
            raise SystemExit(status)
        return None

    def _expand_home(self) -> None:
        """`~` in hydra.sweep.dir, where it comes from a file: Hydra itself makes folders below it."""
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        if folder != folder.expanduser():
            with read_write(self.config), open_dict(self.config):
                self.config.hydra.sweep.dir = str(folder.expanduser())
                self.config.hydra.overrides.hydra.append(f'hydra.sweep.dir="{folder.expanduser()}"')

    def _keys_of(self, method: str) -> set[str]:
        """The keys that a choice of the group `method` brings, which for a variant is another method's name."""
        assert self.hydra_context is not None
        if method not in self.keys:
            repository = self.hydra_context.config_loader.repository  # type: ignore[attr-defined]
            choice = repository.load_config(f"method/{method}")
            self.keys[method] = {str(key) for key in choice.config} if choice is not None else {method}
        return self.keys[method]

    def _overrides(self, arguments: list[str]) -> list[Override]:
        from kdrun.config.weights import quoted

        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return parser.parse_overrides(quoted([*self._parse_config(), *arguments]))  # a yaml's sweep has no quotes yet

    def _launch(self, jobs: list[list[str]], first: int) -> None:
        """Run jobs through the launcher, max_batch_size at a time; `first` is the number of the first one."""
        from kdrun.config import nodes
        from kdrun.config.explain import EXTRAS
        from kdrun.errors import KdrunError
        from kdrun.sweep import launchers, planning

        assert self.launcher is not None
        assert self.config is not None
        assert self.hydra_context is not None
        hydra, config = self.config.hydra, self.config
        name, folder = launchers.name(hydra), Path(hydra.sweep.dir)
        launchers.settle(self.launcher)
        if name == "basic":  # the jobs run in this process, so they need no loader that travels
            self.launcher.hydra_context = HydraContext(self._composer(), self.hydra_context.callbacks)  # type: ignore[attr-defined]
        size = self.max_batch_size or (launchers.side_by_side(hydra) if name == "submitit_local" else max(len(jobs), 1))

        def lost(error: Exception) -> None:
            planning.lost(folder, config, error)

        with launchers.repeated(folder, name), launchers.patient(name, lost):
            for start in range(0, len(jobs), size):
                try:
                    returned = self.launcher.launch(jobs[start : start + size], initial_job_idx=first + start)
                except BrokenProcessPool as error:  # joblib: one worker was killed, and it ended the others
                    lost(error)
                    continue
                except Exception as error:  # no SLURM here, no Ray at that address
                    if name not in EXTRAS:
                        raise
                    raise KdrunError(f"hydra/launcher={name} cannot run the jobs: {launchers.gist(error)}") from error
                if name == "ray":
                    nodes.forget()
                for done in returned:
                    if done.status != JobStatus.UNKNOWN:  # lost
                        _ = (
                            done.return_value
                        )  # raises what a job raised; kdrun's own leave their errors in jobs/<number>.json

    def _compose(self, job: list[str]) -> DictConfig:
        """The config of one job; an error here ends the sweep before its first job."""
        return self._composer().job_config(job)

    def _composer(self) -> Any:
        """Composes the jobs. Made when the first one is composed: `_expand_home` may change the sweep's config before."""
        from kdrun.sweep.compose import Composer

        assert self.config is not None
        assert self.hydra_context is not None
        if self.composer is None:
            self.composer = Composer(self.hydra_context.config_loader, self.config)
        return self.composer


class SearchSweeper(KdrunSweeper):
    """Optuna proposes values, the launcher trains, and the holdout score decides."""

    def __init__(self, params: Any, trials: int, at_once: int, study: str, seed: int, only_plan: bool = False):
        super().__init__(params, only_plan=only_plan)
        self.settings = {"trials": trials, "at_once": at_once, "study_file": study, "seed": seed}

    def sweep(self, arguments: list[str]) -> Any:
        from kdrun.errors import KdrunError
        from kdrun.sweep.search import search

        if self.only_plan:
            raise KdrunError(
                "a search cannot be planned: which runs it trains depends on their scores. Plan one of its trials instead"
            )
        assert self.config is not None
        self._expand_home()
        search(self._overrides(arguments), self._compose, self._launch, self.config, **self.settings)
        return None
