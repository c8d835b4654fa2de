"""What the user sees while a run trains: a progress bar on a terminal, else a line from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn


def clock(seconds: float) -> str:
    """A time as 1:05 (minutes and seconds) or 2:03:04 (with hours)."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def about(seconds: float) -> str:
    """An estimated time: as `clock`; two days and more are given in days."""
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else clock(seconds)


def again(arguments: Iterable[str]) -> str:
    """The command that resumes a run that stopped. The same command with rerun=true would start the run from the beginning."""
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key.strip() == "rerun" and value.strip().lower() not in ("false", "off", "no", "0"):
            return "the same command without rerun=true"
    return "the same command"


class Screen:
    """Prints lines on the terminal, and writes each of them into log.txt of the run as soon as that file is known.

    `brief` (in a sweep): one line per run instead of one per epoch.
    """

    def __init__(self, brief: bool = False):
        self.console = Console(highlight=False, soft_wrap=True)
        self.brief = brief
        self.bar: Progress | None = None
        self.log: Path | None = None
        self.lines: list[str] = []
        self.role = "student"
        self.loss: float | None = None
        self.test: str | None = None  # the last test score, as it is shown

    def say(self, line: str) -> None:
        """Print one line on the screen, and write it into the log."""
        self.console.print(line, markup=False)
        self.lines.append(line)
        self.note(line)

    def say_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.say(line)

    def note(self, line: str) -> None:
        """Write one line only into the log."""
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")

    def start_stage(self, label: str, epochs: int, steps: int, done: int) -> None:
        self.stop()
        self.label = label
        self.epochs, self.steps, self.ticks = epochs, steps, 0
        self.total, self.first = epochs * steps, done * steps
        self.began, self.shown, self.loss, self.test = time.perf_counter(), 0.0, None, None
        self.estimated = False
        if done:
            self.note(f"{self.label}: goes on after epoch {done}/{epochs}")
        if self.console.is_terminal:
            columns: list[Any] = [
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[words]}"),
            ]
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.first, words="")
            self.bar.start()

    def tick(self, epoch: int, loss: float | None) -> None:
        self.ticks += 1
        self.loss = loss if loss is not None else self.loss
        eta = (time.perf_counter() - self.began) / self.ticks * (self.total - self.first - self.ticks)
        if self.ticks == min(20, self.steps) and not self.estimated:
            self.estimated = True
            if not self.brief and self.bar is None:
                self.say(f"{self.label}: about {clock(eta)} to go, measured over the first {self.ticks} steps")
        if self.bar is not None:
            words = f"epoch {epoch + 1}/{self.epochs}"
            words += f"  loss {self.loss:.3f}" if self.loss is not None else ""
            words += f"  test {self.test}" if self.test is not None else ""
            self.bar.update(self.task, completed=self.first + self.ticks, words=f"{words}  eta {clock(eta)}")

    def end_epoch(self, epoch: Any, test: str | None, speed: str) -> None:
        """Report an epoch. Without a progress bar, a line is printed at most every ten seconds, and for the last epoch."""
        self.test = test
        parts = [f"{self.label}  epoch {epoch.epoch}/{epoch.epochs}", f"loss {epoch.loss['total']:.4f}"]
        parts += [f"test {test}"] if test is not None else []
        parts += [speed]
        left = (time.perf_counter() - self.began) / max(self.ticks, 1) * (self.total - self.first - self.ticks)
        parts += [f"eta {clock(left)}"] if epoch.epoch < epoch.epochs else []
        line = "  ".join(parts)
        now = time.perf_counter()
        if self.bar is None and not self.brief and (now - self.shown > 10 or epoch.epoch == epoch.epochs):
            self.shown = now
            self.say(line)
        else:
            self.note(line)
        if epoch.epoch == epoch.epochs:
            self.stop()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        sys.stdout.flush()
