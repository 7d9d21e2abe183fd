"""What ``fit`` does with a fit: saving, scores, pictures; and its folder."""

import argparse
import io
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

from matplotlib.figure import Figure

from pyro_moe import files, plots
from pyro_moe.datasets.reading import is_table
from pyro_moe.fitted import Fit
from pyro_moe.rows import Rows
from pyro_moe.text import in_one_line

from . import scoring

CHECKPOINT = "checkpoint"


def finish(
    fitted: Fit,
    test: Rows,
    seconds: float,
    folder: Path,
    checkpoint: Path,
    save: Callable[..., Path],
    *,
    are_test: bool = True,
) -> dict[str, float]:
    """Save a fit, print its scores, and draw it. It is saved first, in case of an interruption.

    Args:
        fitted: The fit.
        test: Test rows.
        seconds: Seconds of training.
        folder: The run folder.
        checkpoint: Its folder of checkpoints, which are removed unless training can go on.
        save: Saves the fit, with ``scores=``.
        are_test: Whether the test rows are not the fitted ones.

    Returns:
        The scores.
    """
    save()
    if fitted.stopped:
        print(f"{fitted.stopped}: the parameters are saved")
    if not fitted.interrupted:
        shutil.rmtree(checkpoint, ignore_errors=True)
    found = scoring.scores(fitted, test)
    if not are_test:
        found = {name.removeprefix("test_"): value for name, value in found.items()}
    scores = {**found, "seconds": seconds}
    save(scores=scores)
    for key, value in scores.items():
        name = scoring.NAMES.get(key, key)
        name = name if are_test else name.removeprefix("test ")
        print(f"  {name:<36}{value:>10.4g}")
    print(in_one_line(f"run folder: {folder}", longest=None))
    for picture, figure in plots.pictures(fitted, scoring.known(test)).items():
        path = drawn(figure, folder / f"{picture}.png")
        print(in_one_line(f"  {path}", longest=None))
    return scores


def expect_whole(fitted: Fit, folder: Path) -> None:
    """Check that a fit was not interrupted.

    Raises:
        KeyboardInterrupt: If it was.
    """
    if fitted.interrupted:
        raise KeyboardInterrupt(
            f"{fitted.stopped}; the same command with --resume {folder} goes on"
        )


def drawn(figure: Figure, path: Path) -> Path:
    """Write a picture."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return files.write(path, content.getvalue())


def new_folder(options: argparse.Namespace) -> Path:
    """The first of runs/STORY-DATA, runs/STORY-DATA-2, … that does not exist."""
    data = Path(options.data).stem
    data = Path(data).stem if is_table(data) else data  # table.csv.gz has two suffixes
    first = Path("runs", f"{Path(options.story).stem}-{data}")
    later = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return first if not first.exists() else next(path for path in later if not path.exists())
