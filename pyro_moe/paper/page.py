"""One page with the table and the figures of the paper, ours beside theirs."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pyro_moe import files
from pyro_moe.criticism.report.page import page, paragraph, picture, section, table

from .clustering import Clustered, of_images, of_spirals
from .table1 import Y_DIMS, measured

Say = Callable[[str], None]


def write(
    path: str | Path,
    *,
    with_table: bool = True,
    quick: bool = False,
    data_dir: str | None = None,
    say: Say = print,
) -> Path:
    """Fit what the paper reports, and write the page.

    Args:
        path: The file to write, such as ``paper.html``.
        with_table: Whether Table 1 is on the page, which on MNIST takes most of the time.
        quick: Whether to train for fewer epochs, and on 10,000 images.
        data_dir: Folder with MNIST's four files. If None, Table 1 is that of spirals, and the
            figures of images have scikit-learn's digits.
        say: A function that is told in a line what is fitted.

    Raises:
        DataError: If there is no MNIST in the folder, or the page cannot be written.
    """
    images = "digits of scikit-learn" if data_dir is None else "MNIST"
    length = "with few epochs" if quick else "in full"
    sections = [paragraph(f"seed 0, {length}; images are {images}. Other seeds: see benchmarks")]
    if with_table:
        say("Table 1")
        sections.append(_table1(quick, data_dir))
    say(f"figures 4 to 7: {images}")
    sections.append(_figures("Figures 4 to 7: images", of_images(quick=quick, data_dir=data_dir)))
    say("figures 8 to 11: spirals")
    sections.append(_figures("Figures 8 to 11: spirals", of_spirals(quick=quick)))
    return files.write(Path(path), page("The paper, reproduced", sections).encode())


def _table1(quick: bool, data_dir: str | None) -> str:
    rows = [
        {"data": data, "method": name, **dict(zip(map("M={}".format, Y_DIMS), errors, strict=True))}
        for label, errors in measured(quick=quick, data_dir=data_dir)
        for data, name in [label.split(": ")]
    ]
    about = "Squared errors of test rows. The lines of the paper are its own numbers."
    return section("Table 1: regression", paragraph(about), table(pd.DataFrame(rows)))


def _figures(title: str, stories: list[Clustered]) -> str:
    about = (
        "The paper says that DMVAE converges in 200 to 300 epochs of 3.5 seconds, VaDE in 500 to "
        "700 epochs of 13 seconds, and that DMVAE depends less on its start"
    )
    numbers = pd.DataFrame([story.numbers for story in stories])
    pictures = [picture(figure, name) for story in stories for name, figure in story.figures()]
    return section(title, paragraph(about), table(numbers), *pictures)
