"""The configs of a sweep's jobs: what Hydra would compose for each, with one composition for all jobs that choose the same files.

Jobs of a sweep mostly choose few combinations of files (method=kd, student=resnet8) and many values (seed=17). Hydra composes
the files once for each combination; a copy of that config then gets the values, by Hydra's own function, in the order of the job.
Anything that fails on this way is composed again by Hydra alone, so every error is Hydra's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict, read_write


class Composer:
    """Composes the jobs of one sweep. It can stand in for Hydra's config loader where a launcher composes a job."""

    def __init__(self, loader: ConfigLoader, config: DictConfig):
        self.loader, self.config = loader, config
        self.parser = OverridesParser.create()
        self.parsed: dict[str, tuple[Override, bool]] = {}
        self.composed: dict[tuple[str, ...], DictConfig] = {}  # by the overrides that choose files
        self.plain: dict[tuple[str, ...], DictConfig] = {}  # the same without Hydra's own part

    def job_config(self, job: Sequence[str]) -> DictConfig:
        """The config that a job gets, without Hydra's own part."""
        try:
            overrides, files = self._parse(job)
            if files not in self.plain:
                self.plain[files] = without_hydra(copy.deepcopy(self._compose(files)))
            config = copy.deepcopy(self.plain[files])
            ConfigLoaderImpl._apply_overrides_to_config(self._values(overrides), config)
            return config
        except Exception:
            return without_hydra(self.loader.load_sweep_config(self.config, list(job)))

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The whole config of a job, as a launcher asks Hydra's loader for it."""
        try:
            if master_config is not self.config:
                raise ValueError("the config of another sweep")
            overrides, files = self._parse(sweep_overrides)
            config = copy.deepcopy(self._compose(files))
            ConfigLoaderImpl._apply_overrides_to_config(self._values(overrides), config)
            job = config.hydra.job
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.overrides.task = [override.input_line for override in overrides]
                job.override_dirname = get_overrides_dirname(overrides, **job.config.override_dirname)
            return config
        except Exception:
            return self.loader.load_sweep_config(master_config, list(sweep_overrides))

    def _compose(self, files: tuple[str, ...]) -> DictConfig:
        if files not in self.composed:
            self.composed[files] = self.loader.load_sweep_config(self.config, list(files))
        return self.composed[files]

    def _parse(self, job: Sequence[str]) -> tuple[list[Override], tuple[str, ...]]:
        """The overrides of a job, and those among them that choose files."""
        for item in job:
            if item not in self.parsed:
                (override,) = self.parser.parse_overrides([item])
                self.parsed[item] = override, self._chooses_files(override)
        return [self.parsed[item][0] for item in job], tuple(item for item in job if self.parsed[item][1])

    def _values(self, overrides: list[Override]) -> list[Override]:
        return [override for override in overrides if not self.parsed[str(override.input_line)][1]]

    def _chooses_files(self, override: Override) -> bool:
        """As Hydra decides it: what names a group of files, unless a dictionary is given."""
        if override.is_hydra_override() or override.is_sweep_override():
            raise ValueError("Hydra's own settings are the same for all jobs, and a job has one value of a key")
        if self.config.hydra.get("searchpath"):
            raise ValueError("more groups than the loader's repository knows")
        repository: Any = self.loader.repository  # type: ignore[attr-defined]
        return not isinstance(override.value(), dict) and repository.group_exists(override.key_or_group)


def without_hydra(config: DictConfig) -> DictConfig:
    """Hydra takes its own part away before it calls a job."""
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config
