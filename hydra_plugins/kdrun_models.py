"""The groups `teacher`, `student` and `dataset` of Hydra: a choice for every model that kdrun knows, and for every dataset of a plug-in,
made when it is asked for.

Hydra copies its sources of configs at every composition. This one holds nothing, so the copy costs nothing: a hundred nodes in
Hydra's ConfigStore took 0.1 s of each composition, and 0.3 s to make them all when the command starts.
"""

import sys
from contextlib import suppress
from typing import Any, List, Optional  # noqa: UP035

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin

SCHEME = "kdrun"
GROUPS = ("dataset", "student", "teacher")


class ModelSource(ConfigSource):
    """`kdrun://models`: teacher/NAME and student/NAME for the models of the registry, dataset/NAME for the datasets of plug-ins."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        from kdrun.config.nodes import registry_choice

        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        if not self.is_config(config_path):
            raise ConfigLoadError(f"no model and no dataset {config_path}")
        node = registry_choice(group, name)
        return ConfigResult(provider=self.provider, path=self.full_path(), config=node, header={"package": None})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", *GROUPS)

    def is_config(self, config_path: str) -> bool:
        from kdrun.config.nodes import registry_choices

        group, _, name = config_path.strip("/").removesuffix(".yaml").rpartition("/")
        return name in registry_choices(group)

    def list(self, config_path: str, results_filter: Optional[ObjectType]) -> List[str]:  # noqa: UP006
        from kdrun.config.nodes import registry_choices

        group = config_path.strip("/")
        if not group:
            return [] if results_filter == ObjectType.CONFIG else list(GROUPS)
        return [] if results_filter == ObjectType.GROUP else sorted(registry_choices(group))

    def __getstate__(self) -> dict[str, Any]:
        """With the modules of plug-ins: the processes of a sweep compose their jobs before kdrun itself is called there."""
        from kdrun.config.registry import DATASETS, MODELS

        items = (*MODELS.plugins.values(), *DATASETS.plugins.values())
        return {**self.__dict__, "plugins": sorted({item.__module__ for item in items})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from kdrun.config.registry import import_plugins
        from kdrun.errors import KdrunError

        self.__dict__ |= {key: value for key, value in state.items() if key != "plugins"}
        # What cannot be imported is reported where it is needed. Ray's workers, for example, do not compose.
        with suppress(KdrunError):
            import_plugins(module for module in state["plugins"] if module not in sys.modules)


class ModelSearchPath(SearchPathPlugin):
    """Adds the models to the search path of kdrun's own command; other programs with Hydra do not get them."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        schema = ConfigStore.instance().repo.get("schema.yaml")
        if schema is not None and schema.provider == "kdrun":
            search_path.append(provider="kdrun", path=f"{SCHEME}://models")
