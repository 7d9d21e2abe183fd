"""The pictures of the README: regimes, which expert answers where, and a check that fails.

python docs/pictures/make.py
"""

import importlib.util
from pathlib import Path

import regimes
import torch

import pyro_moe
from pyro_moe import criticism, datasets, models, plots

FOLDER = Path(__file__).parent
EXAMPLE = FOLDER.parents[1] / "examples" / "student_t.py"


def main() -> None:
    """Draw three regimes, the gate of the README's spirals, and a check of normal experts."""
    torch.set_num_threads(1)
    regimes.draw().savefig(FOLDER / "regimes.png", dpi=200)
    train, test = datasets.piecewise_affine(*datasets.spiral(seed=0), y_dim=1, seed=0)
    story = models.DVMoE(x_dim=2, y_dim=1, z_dim=2, num_components=5)
    fit = pyro_moe.fit(
        story.model, story.guide, (train.x, train.y), epochs=10, seed=0, progress=False
    )
    plots.gate_map(fit, test).savefig(FOLDER / "gate_map.png", dpi=64)
    example = importlib.util.spec_from_file_location("student_t", EXAMPLE)
    student_t = importlib.util.module_from_spec(example)
    example.loader.exec_module(student_t)
    fits = student_t.fitted(student_t.readings(600, seed=1))
    check = criticism.check(fits["normal"], student_t.readings(400, seed=2))
    criticism.pit_histogram(check).savefig(FOLDER / "pit_histogram.png", dpi=76)


if __name__ == "__main__":
    main()
