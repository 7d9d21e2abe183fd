"""Fits and reports that are made again and again take no more memory.

``python test_memory.py`` prints the resident memory of 200 fits and 30 reports.
"""

import gc
import resource
import sys
import tempfile
from pathlib import Path

import torch

import pyro_moe
from pyro_moe import models

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
STORIES = {"em": models.GMMMoE(2, 1, 2), "marginal": models.VaDEMoE(2, 1, 2, z_dim=2, hidden=(4,))}


def fitted(loss):
    story = STORIES[loss]
    options = {"loss": loss, "epochs": 2, "prior": "weak", "progress": False}
    return pyro_moe.fit(story.model, story.guide, (X, X[:, :1]), **options)


def reported(fit):
    with tempfile.TemporaryDirectory() as folder:
        fit.report(Path(folder, "report.html"), num_replicates=4)


def growth(function, *arguments, number):
    """Objects that are alive after more calls, beyond those after the first ones."""
    for _ in range(2):
        function(*arguments)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(number):
        function(*arguments)
    gc.collect()
    return len(gc.get_objects()) - before


def test_fits_leave_nothing_behind():
    assert max(growth(fitted, loss, number=10) for loss in STORIES) < 10  # not one object each


def test_a_report_leaves_nothing_behind_not_even_for_the_collector():
    fit = fitted("em")
    reported(fit)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(2):
            reported(fit)
        cycles = len(gc.get_objects()) - before
    finally:
        gc.enable()
    # the figures of a report are about 30,000 objects
    assert cycles < 3_000


def megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def soak(fits=200, reports=30):
    torch.set_num_threads(1)
    for index in range(fits):
        fit = fitted("marginal" if index % 2 else "em")
        if index % 20 == 19:
            print(f"fit {index + 1}: {megabytes():.1f} MB", flush=True)
    for index in range(reports):
        reported(fit)
        if index % 5 == 4:
            print(f"report {index + 1}: {megabytes():.1f} MB", flush=True)


if __name__ == "__main__":
    sys.exit(soak())
