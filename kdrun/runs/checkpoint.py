"""Weights and resume states on disk. Files are written under a temporary name and then renamed. Reading executes no code."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdrun.errors import KdrunError
from kdrun.runs import fitting
from kdrun.runs.fitting import Weights
from kdrun.runs.record import atomically
from kdrun.runs.unpickle import read


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file with contiguous copies of the tensors on the CPU."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    atomically(path, save(plain))


def save_text(path: Path, text: str) -> None:
    """Write a text file: the whole of it, or nothing."""
    atomically(path, text.encode())


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A resume state: tensors, numbers and strings only, so that it can be read without unpickling code."""
    buffer = io.BytesIO()  # written to a file, torch's own error would hide that the disk is full
    torch.save(state, buffer)
    atomically(path, buffer.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Read a resume state that kdrun wrote. Any other file is an error that names it."""
    try:
        return read(path)
    except KdrunError as error:
        raise KdrunError(f"{error}. This is a run's resume state: rerun=true starts the run over") from error


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Hash of names, shapes and bytes. Two hashes are equal if and only if the weights are equal bit for bit."""
    value = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        value.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        value.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return value.hexdigest()


def load_weights(path: str | Path) -> Weights:
    """The tensors of a .safetensors file, or of a state dict in a .pt or .pth file, under the names that they have there.

    Nothing in a pickle is executed. If a file has several state dicts, the first one in the order of `fitting.ORDER` is returned;
    `load_checkpoint` chooses the one that fits a model.
    """
    content = _content(Path(path))
    candidates = fitting.candidates(content)
    if not candidates:
        raise KdrunError(f"{path} {fitting.no_weights(content)}")
    return candidates[0].weights


def load_checkpoint(model: nn.Module, path: str | Path, name: str, role: str, key: str | None = None) -> str | None:
    """Load the weights of a file into a model: those under `key`, or the first that fit.

    Returns a line that says which weights were taken if the file has several, else None.
    """
    content = _content(Path(path))
    candidates = fitting.at_key(content, key, role, path) if key else fitting.candidates(content, role)
    if not candidates:
        raise KdrunError(f"{path} {fitting.no_weights(content)}")
    wanted = fitting.wanted_by(model)
    fits = [one for one in candidates if fitting.misfit(fitting.fitted(one.weights, wanted), wanted) is None]
    taken = (fits or candidates)[0]
    try:
        load_into(model, taken.weights, path, name)
    except KdrunError as error:
        part = None if fits else fitting.part_that_fits(taken.weights, wanted)
        if part is None:
            raise
        way = f"{role}.checkpoint_key={'.'.join((*taken.path, part))}"
        raise KdrunError(f"{error} A part of it fits: say {way}") from error
    others = [str(one) for one in candidates if one is not taken]
    if not others:
        return None
    other = next((".".join(one.path) for one in candidates if one is not taken and one.path), "KEY")
    return (
        f"the weights under '{taken}' of {Path(path).name} are taken, not those under {fitting.some(others)}: "
        f"{role}.checkpoint_key={other} takes others"
    )


def load_into(model: nn.Module, weights: Weights, path: str | Path, name: str) -> None:
    """Load every tensor of the model. Prefixes of wrappers and counters of batches are ignored.

    A checkpoint of another architecture or number of classes is an error that gives both shapes. Other names, NaN and quantised
    weights are errors too. Weights in half or double precision are converted to the model's precision.
    """
    wanted = fitting.wanted_by(model)
    weights = fitting.fitted(weights, wanted)
    wrong = fitting.misfit(weights, wanted) or fitting.unsound(weights, wanted)
    if wrong:
        raise KdrunError(f"{path} does not fit {name}: {wrong}")
    plain, state = fitting.plain_names(model), model.state_dict()
    for mine, value in state.items():
        if plain.get(mine) in weights:
            value = weights[plain[mine]]
            state[mine] = value if is_lazy(state[mine]) else value.reshape(state[mine].shape)
    model.load_state_dict(state)


def plain_state(model: nn.Module) -> Weights:
    """The model's state dict as it is saved: tensors under their names, without the prefixes of wrappers."""
    return fitting.wanted_by(model)


def _content(path: Path) -> Any:
    """The content of a file. Its first bytes tell whether it is safetensors, not its name."""
    if not path.is_file():
        raise KdrunError(f"no checkpoint {path}")
    with open(path, "rb") as file:
        head = file.read(9)
    if head[:2] == b"PK" or (path.suffix != ".safetensors" and head[8:] != b"{"):
        return read(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise KdrunError(
            f"{path} is not a complete safetensors file ({error}); it may be truncated: copy it again"
        ) from error
