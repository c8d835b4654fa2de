"""Read a PyTorch file without executing anything of it: torch's own reader for tensors, blanks for all other objects.

`torch.load(weights_only=True)` makes tensors and plain values, and refuses a file at the first other name in it, be it the
argparse.Namespace that timm leaves beside the weights. Here every such name stands for a blank (`torch.serialization.safe_globals`):
nothing is imported, the object comes out empty, and the weights beside it are read. A file that *calls* something that is no plain
value is refused all the same: that is how a pickle does harm, and one who made it wanted something else than weights.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from kdrun.errors import KdrunError

# What makes a plain value by a call: its result is a blank too. All else that a pickle calls is refused.
CALLS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|copyreg\._reconstructor|copy_reg\._reconstructor|functools\.partial"
    r"|numpy\.(_?core\.)?(multiarray|numeric)\.(scalar|_reconstruct|_frombuffer)|numpy\.(ndarray|dtype)|numpy\.dtypes\.\w+"
    r"|numpy\.random\.[\w.]+|logging\.getLogger|re\._compile"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|datetime\.\w+|decimal\.Decimal|fractions\.Fraction|uuid\.UUID"
    r"|collections\.(defaultdict|deque)|builtins\.(frozenset|slice|range|object|dict|list|tuple|int|float|str|bytes|bool)"
)
ALONE = "Save the state dict alone: torch.save(model.state_dict(), FILE)"
_NAME = "stands for"  # key under which a blank keeps the name of what it stands for


def read(path: Path) -> Any:
    """The content of a file of torch.save, on the CPU. A KdrunError in one line where it is no such file, or is refused."""
    try:
        try:
            return _load(path, _mapping)
        except (TypeError, ValueError, AttributeError, pickle.UnpicklingError):
            return _load(path, _object)  # an object whose state is no dict (slots), or a list of some kind
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except KdrunError as error:
        raise KdrunError(f"{path} is refused: {error}, and kdrun executes none. {ALONE}") from error
    except Exception as error:  # a broken file can break the reader anywhere
        raise _broken(path, error) from error


def stands_for(value: Any) -> str | None:
    """The class that a blank stands for; None for a plain value."""
    return getattr(value, "__dict__", {}).get(_NAME) or getattr(type(value), _NAME, None)


def _load(path: Path, blank: Any) -> Any:
    with (
        warnings.catch_warnings(),
        torch.serialization.safe_globals([(blank(name), key) for key, name in _names(path).items()]),
    ):
        warnings.simplefilter("ignore")  # of torch, on pickles that it is about to refuse
        return torch.load(path, map_location="cpu", weights_only=True)


class _Blank(type):
    """A class whose objects are blanks. `cls.__new__` is a pickle's way to an object of data; a call is another matter."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        name = getattr(cls, _NAME)
        if not CALLS.fullmatch(name) and not _is_class_of_a_user(name):
            raise KdrunError(f"it calls {name}, which is more than tensors and plain values")
        return cls.__new__(cls)  # type: ignore[call-overload]


def _is_class_of_a_user(name: str) -> bool:
    """A member of an enum is pickled as a call of its class; those of Python and torch make more than values."""
    top, last = name.partition(".")[0], name.rpartition(".")[2]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy") and last[:1].isupper()


def _mapping(name: str) -> type:
    """A blank that can be filled as a dict, for a state dict of another class is still a state dict."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        made: OrderedDict[Any, Any] = OrderedDict()  # of exactly this class: torch's reader fills no other
        made.__dict__[_NAME] = name
        return made

    return _object(name) if name.startswith("numpy.") else _Blank(name, (), {"__new__": new, _NAME: name})


def _object(name: str) -> type:
    """A blank that forgets what it is given."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return list.__new__(cls)

    forget: Any = lambda self, *_: None  # noqa: E731
    body = {"__new__": new, "__setstate__": forget, "append": forget, "extend": forget, _NAME: name}
    return _Blank(name, (list,), body)


def _names(path: Path) -> dict[str, str]:
    """Every class and function that the file names, as it writes it and as it is called today; read without unpickling."""
    names: dict[str, str] = {}
    try:
        for stream in _pickles(path):
            for code, value, _ in pickletools.genops(stream):
                if code.name == "GLOBAL":
                    module, _, name = str(value).partition(" ")
                    written = f"{module}.{name}"  # pickles of this kind use Python 2's names; torch knows some of them, and some not
                    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
                    today = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
                    names |= {written: today, today: today}
    except Exception:  # not a pickle, or half of one: torch's own reader says what it thinks of it
        return {}
    return {
        key: name
        for key, name in names.items()
        if not key.startswith(("torch._utils.", "torch._tensor.", "torch.storage."))
    }


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """The object of a file since PyTorch 1.6 (a zip); before, the fourth of the pickles at the beginning."""
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                inner = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
                with archive.open(inner) as stream:
                    yield stream
        else:
            file.seek(0)
            for _ in range(4):
                yield file


def _refused(path: Path, error: Exception) -> KdrunError:
    words = str(error)
    name = re.search(r"GLOBAL (\S+)", words)
    if name is not None:
        what = f"it names {name.group(1)}, which is more than tensors and plain values"
    elif "persistent_load" in words:
        what = "it holds a module with its class (a whole model, or a loss)"
    elif "Unsupported operand" in words:
        what = "it is no pickle as torch.save writes it (another pickle protocol?)"
    else:
        what = "it is a pickle of more than tensors"
    return KdrunError(f"{path} is refused: {what}, and kdrun executes none. {ALONE}")


def _broken(path: Path, error: Exception) -> KdrunError:
    words = str(error)
    if "TorchScript" in words:
        return KdrunError(f"{path} is refused: it is a TorchScript program, and kdrun executes none. {ALONE}")
    if "legacy .tar" in words:
        return KdrunError(
            f"{path} is refused: it is in the tar format from before PyTorch 0.1.10. Load it in a PyTorch that you trust it with. {ALONE}"
        )
    size = path.stat().st_size
    return KdrunError(
        f"{path} cannot be read ({size:,} bytes, no whole PyTorch file); it may be truncated: copy it again"
    )
