"""The `kdrun` command: verbs, runs through Hydra, one-line errors and exit codes. Imports nothing heavy until it must."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from kdrun import __version__, process
from kdrun.config.project import with_project
from kdrun.config.weights import quoted
from kdrun.errors import KdrunError

VALUE_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p", "--cfg", "-c")
REPORTS = {
    "report": "report.command",
    "status": "sweep.status",
    "verify": "report.verify",
    "diff": "report.diff",
    "check": "sweep.check",
}
HELP = ("--help", "-h")
SWEEPERS = ("kdrun", "search")  # those of hydra_plugins/kdrun_sweeper.py
ONLY_PLAN = "hydra.sweeper.only_plan=true"  # of kdrun's sweepers: print the plan, train nothing
VERBS = ("methods", "models", "datasets", "check", "plan", "report", "status", "verify", "diff")


class Terminated(KeyboardInterrupt):
    """SIGTERM: stop as Ctrl-C does, with its own exit code."""


def run(arguments: Sequence[str] | None = None) -> int:
    """The whole command as a function of its arguments; returns the exit status, one of those that `kdrun --help` lists."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = any(a.replace(" ", "").lower() in ("engine.debug=true", "engine.debug=1") for a in arguments)
    signal.signal(signal.SIGTERM, _terminate)
    process.prepare()
    if os.getcwd() not in sys.path:  # console scripts lack it; users' models and methods lie there
        sys.path.insert(0, os.getcwd())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold bytes that are no text
    try:
        return _dispatch(quoted(_expand_home(argument) for argument in arguments))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt as error:
        from kdrun.screen import again

        what, status = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        print(f"kdrun: {what}; {again(arguments)} goes on after the last finished epoch", file=sys.stderr)
        return status
    except BrokenPipeError:
        return 1
    except Exception as error:
        from kdrun.config.explain import report

        return report(error, arguments, debug)


def _dispatch(arguments: list[str]) -> int:
    if "--version" in arguments:
        print(f"kdrun {__version__}")
        return 0
    if arguments and "=" not in arguments[0] and not arguments[0].startswith(("-", "+", "~")):
        return _verb(arguments[0], arguments[1:])
    if not [argument for argument in arguments if argument not in ("-m", "--multirun")]:
        arguments = ["--help"]  # a bare command would train for hours
    _check_twice(arguments)
    if not set(HELP) & set(arguments):
        arguments = with_project(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what happened instead of printing it
    arguments = _flags_first(arguments)
    user_folder = _check_usage(arguments)
    from kdrun.config.nodes import check_user_folder, register_nodes
    from kdrun.config.registry import import_plugins_of
    from kdrun.config.schema import conf_folder

    import_plugins_of(arguments)
    register_nodes()
    if user_folder is not None:
        check_user_folder(user_folder)
    import hydra

    from kdrun.sweep.job import job

    sys.argv = [sys.argv[0], *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_folder().resolve()), config_name="config")(job)()
    return 0


def _verb(verb: str, rest: list[str]) -> int:
    if verb in REPORTS:
        import importlib

        run_verb = getattr(importlib.import_module(f"kdrun.{REPORTS[verb]}"), verb)
        return int(run_verb(rest))
    if verb == "plan":
        return _plan(rest)
    strange = [argument for argument in rest if argument not in HELP and not argument.startswith("plugins=")]
    if verb not in VERBS or strange:
        from kdrun.errors import choices

        what = (
            f"no verb '{verb}'" if verb not in VERBS else f"'{verb}' takes plugins=[MODULE] alone, got '{strange[0]}'"
        )
        if len(rest) > 1 and rest[0] == "=":
            what = f"'{verb} = {rest[1]}' is written without spaces, as {verb}={rest[1]}"
        known = f" {choices(verb, VERBS)}." if verb not in VERBS else ""
        print(f"kdrun: {what}.{known} A run is started with key=value, as in kdrun method=kd", file=sys.stderr)
        return 2
    from kdrun.config.listing import show
    from kdrun.config.registry import import_plugins_of

    if not set(HELP) & set(rest):
        import_plugins_of(with_project(rest))
    show(verb, usage=bool(set(HELP) & set(rest)))
    return 0


def _plan(rest: list[str]) -> int:
    """`kdrun plan`: a sweep whose sweeper prints what is missing, and trains nothing."""
    sweeper = next((argument for argument in rest if argument.startswith("hydra/sweeper=")), "hydra/sweeper=kdrun")
    if sweeper.partition("=")[2] not in SWEEPERS:
        raise KdrunError(f"kdrun plan needs kdrun's own sweeper; leave out {sweeper}")
    return _dispatch(["-m", ONLY_PLAN, *rest] if set(rest) - {"-m", "--multirun"} else ["--help"])


def _check_usage(arguments: Sequence[str]) -> str | None:
    """Refuse in one line what argparse would refuse in ten (exit code 2); returns the folder of --config-dir."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> None:
        error = KdrunError(
            f"{message.partition(' (choose')[0]}. Options come as key=value; flags: -m, --cfg job, --help"
        )
        error.status = 2
        raise error

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[assignment, method-assign]
    return parser.parse_args(arguments).config_dir


def _check_twice(arguments: Sequence[str]) -> None:
    """Refuse a key that stands twice: Hydra would take the last value and not mention the other."""
    earlier: dict[str, str] = {}
    for argument in arguments:
        key = argument.lstrip("+").partition("=")[0].strip()
        if "=" not in argument and argument not in VALUE_FLAGS:
            continue
        if key in earlier:
            error = KdrunError(
                f"{key} stands twice: {earlier[key]} and {argument}. Say it once; several values are {key}=A,B with -m"
            )
            error.status = 2
            raise error
        earlier[key] = argument


def _expand_home(argument: str) -> str:
    """`~/x` with the home folder in place of `~`, also as the value of a key, where a shell leaves it as it is."""
    key, equals, value = argument.rpartition("=") if re.match(r"[\w.@/+]+=", argument) else ("", "", argument)
    quote = value[:1] if value[:1] in ("'", '"') else ""
    path = value.removeprefix(quote)
    if not path.startswith("~/") and path.rstrip(quote or " ") != "~":
        return argument
    return f"{key}{equals}{quote}{os.path.expanduser(path)}"


def _flags_first(arguments: list[str]) -> list[str]:
    """Hydra wants flags before overrides; `kdrun method=kd -m seed=0,1` is natural."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-") or argument == "-":
            overrides.append(argument)
            continue
        flags.append(argument)
        if argument in VALUE_FLAGS:
            flags.extend([value] if (value := next(rest, None)) is not None else [])
    return flags + overrides


def _terminate(*_: Any) -> None:
    raise Terminated


if __name__ == "__main__":
    sys.exit(run())
