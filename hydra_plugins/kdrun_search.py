"""Where Hydra looks for sweepers: `hydra/sweeper=search`. What it does stands in kdrun/search.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional  # noqa: UP035

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


@dataclass
class Conf:
    """`hydra.sweeper.trials=50 hydra.sweeper.study=outputs/kd.db`."""

    _target_: str = "hydra_plugins.kdrun_search.SearchSweeper"
    params: Optional[Dict[str, str]] = None  # noqa: UP006
    trials: int = 20
    at_once: int = 1  # trials asked for together: as many as the launcher runs side by side
    study: str = "${outputs}/study.db"
    seed: int = 0  # of the sampler


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=Conf, provider="kdrun")


class SearchSweeper(BasicSweeper):
    """Optuna asks, the launcher trains, the holdout answers."""

    def __init__(self, params: Any, trials: int, at_once: int, study: str, seed: int):
        super().__init__(None, params)
        self.trials, self.at_once, self.study, self.seed = trials, at_once, study, seed

    def sweep(self, arguments: list[str]) -> Any:
        from kdrun.search import search

        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        search(
            overrides, self._compose, self._launch,
            trials=self.trials, at_once=self.at_once, study_file=self.study, seed=self.seed, folder=folder,
        )  # fmt: skip
        return None

    def _launch(self, batch: list[list[str]], first: int) -> None:
        assert self.launcher is not None
        for done in self.launcher.launch(batch, initial_job_idx=first):
            _ = done.return_value

    def _compose(self, job: list[str]) -> DictConfig:
        assert self.config is not None
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        return composed
