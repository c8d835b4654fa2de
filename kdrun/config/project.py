"""kdrun.yaml: what a project would otherwise repeat in every command. It lies beside the user's work and is found from subfolders, too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError, choices

NAME = "kdrun.yaml"
KEYS = {
    "config_dir": "a folder with method/NAME.yaml and the like, as --config-dir",
    "plugins": "a list of modules, as plugins=[...]",
    "outputs": "the folder for everything that runs write, as outputs=...",
    "threads": "torch's threads, as engine.threads=N",
}


def find(folder: Path) -> Path | None:
    """The project file of a folder: in it, or in the nearest one above."""
    return next((place / NAME for place in (folder, *folder.parents) if (place / NAME).is_file()), None)


def read(file: Path) -> dict[str, Any]:
    """Its keys, with paths from the file's own folder. KdrunError, naming the file, for what it cannot hold."""
    import yaml  # comes with omegaconf

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise KdrunError(f"{file} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise KdrunError(f"{file} must hold keys with values: {', '.join(KEYS)}")
    for key, value in settings.items():
        if key not in KEYS:
            raise KdrunError(f"{file} has no key '{key}'. {choices(str(key), KEYS)}")
        fits = isinstance(value, list) if key == "plugins" else isinstance(value, int if key == "threads" else str)
        if not fits:
            raise KdrunError(f"{file}: {key} is {value!r}; it must be {KEYS[key]}")
    for key in ("config_dir", "outputs"):
        if key in settings:
            settings[key] = str(file.parent / Path(settings[key]).expanduser())
    return settings


def with_project(arguments: Sequence[str]) -> list[str]:
    """The arguments with those of the project of the current folder; its own folder is on the path for plug-ins then."""
    file = find(Path.cwd())
    if file is None:
        return list(arguments)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    return with_settings(arguments, read(file))


def with_settings(arguments: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """The arguments of a run with what the project says and the command does not."""
    added = list(arguments)
    keys = {argument.lstrip("+").partition("=")[0] for argument in arguments}
    flags = {argument.partition("=")[0] for argument in arguments}
    if "config_dir" in settings and not flags & {"--config-dir", "-cd"}:
        added = ["--config-dir", settings["config_dir"], *added]
    if settings.get("plugins") and "plugins" not in keys:
        added.append(f"plugins=[{','.join(map(str, settings['plugins']))}]")
    if "outputs" in settings and "outputs" not in keys:
        added.append(f'outputs="{settings["outputs"]}"')
    if "threads" in settings and "engine.threads" not in keys:
        added.append(f"engine.threads={settings['threads']}")
    return added


def outputs_here() -> str:
    """The folder for what runs write, where the command does not say it."""
    file = find(Path.cwd())
    return str(read(file).get("outputs", "outputs")) if file is not None else "outputs"
