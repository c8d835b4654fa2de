"""Read a PyTorch file without executing code from it: torch reads the tensors, and a blank takes the place of every other object.

`torch.load(weights_only=True)` makes tensors and plain values. It refuses a file with any other class, for instance with the
argparse.Namespace that timm saves beside the weights. Here a blank stands for every such class (`torch.serialization.safe_globals`):
nothing is imported, the object is empty, and the weights beside it are read. A file that *calls* a function that makes no plain value
is still refused: such calls are how a pickle does harm.
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

# Functions and classes whose call makes a plain value; the result is a blank. Every other call in a pickle is refused.
CALLS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|copyreg\._reconstructor|copy_reg\._reconstructor|functools\.partial"
    r"|numpy\.(_?core\.)?(multiarray|numeric)\.(scalar|_reconstruct|_frombuffer)|numpy\.(ndarray|dtype)|numpy\.dtypes\.\w+"
    r"|numpy\.random\.[\w.]+|logging\.getLogger|re\._compile"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|datetime\.\w+|decimal\.Decimal|fractions\.Fraction|uuid\.UUID"
    r"|collections\.(defaultdict|deque)|builtins\.(frozenset|slice|range|object|dict|list|tuple|int|float|str|bytes|bool)"
)
ALONE = "Save only the state dict: torch.save(model.state_dict(), FILE)"
_NAME = "stands for"  # the key under which a blank keeps the name of its class


def read(path: Path) -> Any:
    """The content of a file that torch.save wrote, on the CPU. KdrunError if it is another file, or is refused."""
    try:
        try:
            return _load(path, _mapping)
        except (TypeError, ValueError, AttributeError, pickle.UnpicklingError):
            return _load(path, _object)  # an object whose state is not a dict (slots), or a subclass of list
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except KdrunError as error:
        raise KdrunError(f"{path} is refused: {error}, and kdrun executes no code from a file. {ALONE}") from error
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
        warnings.simplefilter("ignore")  # torch warns of pickles that it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)


class _Blank(type):
    """A class whose objects are blanks. A pickle makes data with `cls.__new__`; a call of the class could do anything."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        name = getattr(cls, _NAME)
        if not CALLS.fullmatch(name) and not _is_class_of_a_user(name):
            raise KdrunError(f"it calls {name}, which is more than tensors and plain values")
        return cls.__new__(cls)  # type: ignore[call-overload]


def _is_class_of_a_user(name: str) -> bool:
    """Whether a class may be called: a member of a user's enum is pickled as a call. Classes of Python and torch do more than that."""
    top, last = name.partition(".")[0], name.rpartition(".")[2]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy") and last[:1].isupper()


def _mapping(name: str) -> type:
    """A blank that can be filled like a dict: a state dict of another class is still a state dict."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        made: OrderedDict[Any, Any] = OrderedDict()  # of exactly this class: torch's reader fills only this one
        made.__dict__[_NAME] = name
        return made

    return _object(name) if name.startswith("numpy.") else _Blank(name, (), {"__new__": new, _NAME: name})


def _object(name: str) -> type:
    """A blank that ignores its content."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return list.__new__(cls)

    forget: Any = lambda self, *_: None  # noqa: E731
    body = {"__new__": new, "__setstate__": forget, "append": forget, "extend": forget, _NAME: name}
    return _Blank(name, (list,), body)


def _names(path: Path) -> dict[str, str]:
    """Every class and function that the file names: {name in the file: name today}. Nothing is unpickled."""
    names: dict[str, str] = {}
    try:
        for stream in _pickles(path):
            for code, value, _ in pickletools.genops(stream):
                if code.name == "GLOBAL":
                    module, _, name = str(value).partition(" ")
                    written = f"{module}.{name}"  # such pickles use names of Python 2; torch knows only some of them
                    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
                    today = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
                    names |= {written: today, today: today}
    except Exception:  # not a pickle, or half of one: torch's own reader gives the error
        return {}
    return {
        key: name
        for key, name in names.items()
        if not key.startswith(("torch._utils.", "torch._tensor.", "torch.storage."))
    }


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """The pickles to read: the one in a zip (since PyTorch 1.6), or the first four of an older file."""
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
        what = "torch.save did not write this pickle (another pickle protocol?)"
    else:
        what = "it is a pickle of more than tensors"
    return KdrunError(f"{path} is refused: {what}, and kdrun executes no code from a file. {ALONE}")


def _broken(path: Path, error: Exception) -> KdrunError:
    words = str(error)
    if "TorchScript" in words:
        return KdrunError(
            f"{path} is refused: it is a TorchScript program, and kdrun executes no code from a file. {ALONE}"
        )
    if "legacy .tar" in words:
        return KdrunError(
            f"{path} is refused: it is in the tar format from before PyTorch 0.1.10. If you trust it, load it with PyTorch. {ALONE}"
        )
    size = path.stat().st_size
    return KdrunError(
        f"{path} cannot be read ({size:,} bytes, not a complete PyTorch file); it may be truncated: copy it again"
    )
