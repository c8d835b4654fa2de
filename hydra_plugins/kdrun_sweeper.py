"""Where Hydra looks for sweepers. What this one does stands in kdrun/sweep.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


@dataclass
class Conf(BasicSweeperConf):
    """`hydra/sweeper=kdrun`, which conf/config.yaml chooses."""

    _target_: str = "hydra_plugins.kdrun_sweeper.KdrunSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="kdrun", node=Conf, provider="kdrun")


class KdrunSweeper(BasicSweeper):
    """Hydra's own sweeper with a plan: missing teachers first, finished runs not launched at all, a manifest of what was asked for."""

    def __init__(self, params: Any = None, max_batch_size: int | None = None):
        super().__init__(max_batch_size, params)

    def sweep(self, arguments: list[str]) -> Any:
        from kdrun import sweep

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs = sweep.expand(self.split_arguments(overrides, None)[0])
        if sweep.ONLY_PLAN:
            sweep.plan(overrides, jobs, self._compose)
            return None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        teachers, students = sweep.begin(folder, overrides, jobs, self._compose)
        for batch, first in ((teachers, len(jobs)), (students, 0)):
            for start in range(0, len(batch), self.max_batch_size or max(len(batch), 1)):
                part = batch[start : start + (self.max_batch_size or len(batch))]
                for done in self.launcher.launch(part, initial_job_idx=first + start):
                    _ = done.return_value  # raises what a job raised; kdrun's own jobs leave their errors in job.json
        return None

    def _compose(self, job: list[str]) -> DictConfig:
        """The config of one job; an error here ends the sweep before its first job."""
        assert self.config is not None
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        with read_write(composed), open_dict(composed):
            del composed["hydra"]  # as Hydra does before it calls a job
        return composed
