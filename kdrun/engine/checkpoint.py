"""Weights and resume states on disk: written to a temporary name and renamed, read without executing anything."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdrun.engine.record import atomically
from kdrun.errors import KdrunError


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file of contiguous CPU copies."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    atomically(path, save(plain))


def save_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    atomically(path, text.encode())


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A resume state: tensors, numbers and strings only, so that it can be read without unpickling code."""
    buffer = io.BytesIO()  # torch's own writer would hide a full disk behind its words
    torch.save(state, buffer)
    atomically(path, buffer.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """A resume state of this program; anything else is an error that names the file."""
    try:
        return _unpickle(path)
    except KdrunError as error:
        raise KdrunError(f"{error}. This is a run's resume state: rerun=true starts the run over") from error


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Hash of names, shapes and bytes: equal exactly when the weights are equal bit for bit."""
    value = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        value.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        value.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return value.hexdigest()


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or from a .pt/.pth of plain tensors (a state dict, or one under a common key).

    A pickle that holds anything but tensors and plain values is refused, never executed.
    """
    path = Path(path)
    if not path.is_file():
        raise KdrunError(f"no checkpoint {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise KdrunError(
                f"{path} is not a whole safetensors file ({error}); it may be truncated: copy it again"
            ) from error
    found = _unpickle(path)
    for key in ("state_dict", "model", "net", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise KdrunError(f"{path} holds no state dict of tensors (looked under state_dict, model, net too)")
    return {name.removeprefix("module."): value for name, value in found.items()}


def load_into(model: nn.Module, weights: dict[str, Tensor], path: str | Path, name: str) -> None:
    """Load strictly; a checkpoint of another architecture or number of classes is an error with both shapes."""
    wanted = model.state_dict()
    for key in sorted(wanted.keys() & weights.keys()):
        if wanted[key].shape != weights[key].shape:
            raise KdrunError(
                f"{path} does not fit {name}: {key} is {tuple(weights[key].shape)} in the file, {tuple(wanted[key].shape)} in the model"
                + (" (another number of classes?)" if key.startswith(("head", "fc", "classifier", "linear")) else "")
            )
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        said = [f"it {verb} {_first(keys)}" for verb, keys in (("lacks", missing), ("has besides", extra)) if keys]
        raise KdrunError(
            f"{path} does not fit {name}: {len(wanted)} tensors wanted, {len(weights)} found; {'; '.join(said)}. "
            "Is it another architecture?"
        )
    model.load_state_dict(weights)


def _first(keys: list[str], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on pickles that it is about to refuse
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise KdrunError(
            f"{path} is refused: it is a pickle of more than tensors, and kdrun executes none. Save the state dict alone"
        ) from error
    except Exception as error:  # a broken file can break the reader anywhere
        size = path.stat().st_size
        raise KdrunError(
            f"{path} cannot be read ({size:,} bytes, no whole PyTorch file); it may be truncated: copy it again"
        ) from error
