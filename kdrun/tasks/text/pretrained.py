"""Where the files of a pretrained model lie: a folder of the user's, or the local copy of one on the Hugging Face hub. No torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.tasks.cache import file_sha256

PACKAGE = "package:"  # before a folder inside an installed Python package
WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
INSTALL = "pip install 'kdrun[text]'"


def folder_of(name_or_path: str, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of a pretrained model or tokenizer: a folder, package:NAME/FOLDER (inside an installed Python package), or a hub id.

    What is only on the hub is downloaded, unless `local_files_only`.

    KdrunError where there is no such folder and no way to the hub.
    """
    if name_or_path.startswith(PACKAGE):
        return _in_package(name_or_path.removeprefix(PACKAGE))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1 or path.exists():
        raise KdrunError(f"{name_or_path} is no folder (current folder: {Path.cwd()}); give one with config.json")
    return _snapshot(name_or_path, revision, local_files_only)


def _in_package(place: str) -> Path:
    """The folder `model` of package:NAME/model."""
    name, _, inside = place.partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # of a.b without a; of an empty name
        spec = None
    folders = [Path(root, inside) for root in spec.submodule_search_locations or ()] if spec else []
    for folder in folders:
        if folder.is_dir():
            return folder
    if spec is None:
        raise KdrunError(
            f"{PACKAGE}{place}: no Python package '{name}' is installed here; package:NAME/FOLDER is a folder inside an installed package"
        )
    raise KdrunError(f"{PACKAGE}{place}: the package {name} has no folder '{inside}'")


@lru_cache
def _snapshot(name: str, revision: str | None, local_files_only: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download  # comes with transformers
    except ImportError as error:
        raise KdrunError(f"{name} is no folder, and the hub needs an extra: {INSTALL}") from error
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
    except Exception as missing:
        if local_files_only:
            raise KdrunError(
                f"{name} is no folder and not among the downloaded models (local_files_only=true); give a folder with config.json"
            ) from missing
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise KdrunError(
            f"{name} is no folder (current folder: {Path.cwd()}), and the hub cannot give it ({type(error).__name__}). Without a network, "
            "give the folder of a model, with config.json, model.safetensors and tokenizer.json: name_or_path=FOLDER"
        ) from error


def architecture(folder: Path) -> dict[str, Any]:
    """The content of config.json of a model's folder."""
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise KdrunError(
            f"{folder} has no config.json: a folder for name_or_path has config.json, model.safetensors and tokenizer.json"
        ) from error
    except (OSError, ValueError) as error:
        raise KdrunError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, dict) or "model_type" not in content:
        raise KdrunError(f"{file} names no model_type: it is no config of a transformers model")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder. KdrunError where there is none; pickles are never read."""
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles:
        raise KdrunError(
            f"{folder} holds its weights as {pickles[0]}, which can execute code and is never read; save them as {WEIGHTS} "
            "(model.save_pretrained(FOLDER) of transformers)"
        )
    raise KdrunError(f"{folder} has no weights ({WEIGHTS}); give the folder of a whole model, or init=random")


def sha256(folder: Path, *names: str) -> str:
    """The hash of some files of a folder, each with its name; patterns are allowed. A file is read again only if it has changed."""
    files = sorted({file for name in names for file in folder.glob(name)})
    lines = (f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
