"""Display of training progress: a bar on terminals, a few lines elsewhere."""

import math
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tqdm import tqdm

SHOWN = ("elbo", "temperature")
LINES = 5


class Progress:
    """A progress bar on terminals and in Jupyter, and a few lines elsewhere.

    A bar overwrites itself, which a log file cannot show. There, each initial phase prints a line
    at its end, and training prints a line after each fifth of its epochs. With several starts,
    the five lines are shared among them.

    Args:
        shown: Whether to show progress.
        start: The number of the start, from 1; or None for all starts together.
        starts: Number of starts.
    """

    def __init__(self, shown: bool, start: int | None = None, starts: int = 1) -> None:
        which = f"{starts} starts" if start is None else f"start {start} of {starts}"
        self.label = which if starts > 1 else ""
        self.lines = shown and not _can_move()
        self.lines_of_training = LINES if start is None else max(1, LINES // starts)
        self.bar = tqdm(
            desc=self.label, unit="epoch", disable=self.lines or not shown, dynamic_ncols=True
        )
        self.line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.leave = self.bar.n > 0  # a bar of nothing disappears
        self.bar.close()
        self._say()

    def begin(self, phase: str, done: int, epochs: int) -> None:
        """Begin a phase of ``epochs`` epochs, of which ``done`` are completed."""
        self._say()
        self.phase, self.done, self.epochs = phase, done, epochs
        self.bar.reset(epochs)
        self.bar.update(done)

    def advance(self, record: Mapping[str, float]) -> None:
        """Show the record of another epoch."""
        self.done += 1
        numbers = {key: f"{record[key]:.4g}" for key in SHOWN if key in record}
        self.bar.set_postfix(phase=self.phase, refresh=False, **numbers)
        self.bar.update()
        start = f"{self.label}: " if self.label else ""
        self.line = f"{start}{self.phase} {self.done}/{self.epochs}, elbo {record['elbo']:.4g}"
        lines = self.lines_of_training if self.phase == "training" else 1
        if self.done % math.ceil(self.epochs / lines) == 0:
            self._say()

    def say(self, line: str) -> None:
        """Show a line of text."""
        if self.lines:
            print(line, file=sys.stderr, flush=True)
        elif not self.bar.disable:
            self.bar.write(line, file=sys.stderr)

    def _say(self) -> None:
        """Print the last line if it has not been printed."""
        if self.lines and self.line:
            print(self.line, file=sys.stderr, flush=True)
        self.line = ""


def _can_move() -> bool:
    """Whether output to stderr can be overwritten."""
    is_terminal = getattr(sys.stderr, "isatty", bool)()
    return is_terminal or "ipykernel" in sys.modules  # Jupyter overwrites without a terminal
