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
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

# What an override raises that is wrong, or that only Hydra itself can deal with.
UNUSUAL = (HydraException, OmegaConfBaseException, ValueError)


class Composer:
    """Composes the jobs of one sweep. It can stand in for Hydra's config loader where a launcher composes a job."""

    def __init__(self, loader: ConfigLoader, config: DictConfig):
        self.loader, self.config = loader, config
        self.parser = OverridesParser.create()
        self.parsed: dict[str, tuple[Override, bool]] = {}
        self.composed: dict[tuple[str, ...], DictConfig] = {}  # by the overrides that choose files
        # The same without Hydra's own part, and whether an interpolation is in it.
        self.plain: dict[tuple[str, ...], tuple[DictConfig, bool]] = {}

    def job_config(self, job: Sequence[str]) -> DictConfig:
        """The config that a job gets, without Hydra's own part. For reading: it shares nodes with those of other jobs."""
        try:
            overrides, files = self._parse(job)
            if files not in self.plain:
                plain = without_hydra(copy.deepcopy(self._compose(files)))
                self.plain[files] = plain, _interpolates(plain)
            (plain, interpolates), values = self.plain[files], self._values(overrides)
            whole = interpolates or any("${" in str(value.input_line) for value in values)
            config = copy.deepcopy(plain) if whole else _copied(plain, values)
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
            return config
        except UNUSUAL:
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
        except UNUSUAL:
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


def _copied(config: DictConfig, values: list[Override]) -> DictConfig:
    """A copy that these values can be set on. Parts of the config that none of them touches are shared: copying them, too, took
    half of the time. Not for configs with interpolations, which look through the whole config from where they stand.
    """
    content = dict(config.__dict__["_content"])
    copied = DictConfig(None)  # copy.copy would copy all that is below
    copied.__dict__.update(
        {**config.__dict__, "_content": content, "_metadata": copy.deepcopy(config._metadata), "_flags_cache": None}
    )
    for key in {value.key_or_group.partition(".")[0] for value in values} & content.keys():
        content[key] = copy.deepcopy(content[key])
        content[key]._set_parent(copied)
    return copied


def _interpolates(node: Any) -> bool:
    """Whether a value in a config stands for another one."""
    if node._is_interpolation():
        return True
    if not isinstance(node, (DictConfig, ListConfig)) or node._is_none() or node._is_missing():
        return False
    keys = node.keys() if isinstance(node, DictConfig) else range(len(node))
    return any(_interpolates(node._get_node(key)) for key in keys)  # type: ignore[arg-type]


def without_hydra(config: DictConfig) -> DictConfig:
    """Hydra takes its own part away before it calls a job."""
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config
