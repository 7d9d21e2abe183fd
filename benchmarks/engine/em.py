"""CPU seconds of EM beside scikit-learn's and flexmix's, one thread each.

    OMP_NUM_THREADS=1 python benchmarks/engine/em.py --tables FOLDER

FOLDER has tone.csv, NO.csv, NPreg.csv and patent.csv of R's flexmix and mixtools. Without R, or
without its package flexmix, the rows of mixtures of experts have our seconds alone.
"""

import argparse
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from timing import cpu_seconds, report

import pyro_moe
from pyro_moe.inference import EM
from pyro_moe.models import GMM, ME

STARTS = 12
FLEXMIX = """
suppressMessages(library(flexmix)); d <- read.csv("{file}"); set.seed(1)
t <- system.time(for (i in 1:{starts}) try(flexmix({formula}, data=d, k={k},
  model=FLXMRglm(family="{family}"), concomitant=FLXPmultinom(~{gate})), silent=TRUE))
cat((t[1] + t[2]) / {starts})
"""


def of_a_mixture(rows: int = 10**6, dim: int = 4, number: int = 5) -> None:
    """Seconds an iteration of EM of a Gaussian mixture, beside scikit-learn's."""
    generator = torch.Generator().manual_seed(0)
    means = 3.0 * torch.randn(number, dim, generator=generator).double()
    c = torch.randint(number, (rows,), generator=generator)
    x = means[c] + torch.randn(rows, dim, generator=generator)
    story = GMM(dim, number).double()
    story.adapt(x)
    run = EM(story.model, story.guide, (x,), 5, 0, tolerance=-1.0)
    ours = cpu_seconds(lambda: list(run)) / 5
    reference = GaussianMixture(number, tol=0.0, init_params="random_from_data", random_state=0)
    warnings.simplefilter("ignore", ConvergenceWarning)
    one, six = (
        cpu_seconds(lambda n=n: reference.set_params(max_iter=n).fit(x.numpy())) for n in (1, 6)
    )
    report(f"EM of a GMM, {rows:,} rows, an iteration", ours, (six - one) / 5, "scikit-learn")


def tables(folder: Path) -> Iterator[tuple[ME, tuple[np.ndarray, np.ndarray], dict[str, Any]]]:
    """Stories, their data, and the same in the words of flexmix."""
    for name, x, y, k, family, formula, gate in [
        ("tone", ["stretchratio"], "tuned", 2, "gaussian", "tuned ~ stretchratio", "stretchratio"),
        ("NO", ["NO"], "Equivalence", 2, "gaussian", "Equivalence ~ NO", "NO"),
        ("NPreg", ["x", "x2"], "yn", 2, "gaussian", "yn ~ x + I(x^2)", "x + I(x^2)"),
        ("patent", ["lgRD"], "Patents", 3, "poisson", "Patents ~ lgRD", "lgRD"),
    ]:
        file = folder / f"{name}.csv"
        table = pd.read_csv(file)
        if "x" in table:
            table["x2"] = table["x"] ** 2
        story = ME(len(x), 1, k, experts={"gaussian": "normal"}.get(family, family))
        words = {"file": file, "formula": formula, "gate": gate, "k": k, "family": family}
        yield story, (table[x].to_numpy(float), table[[y]].to_numpy(float)), words


def flexmix(words: dict[str, Any], starts: int) -> float | None:
    """Seconds of a start of flexmix, or None without it."""
    if shutil.which("Rscript") is None:
        return None
    program = FLEXMIX.format(starts=starts, **words)
    done = subprocess.run(["Rscript", "-e", program], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return float(done.stdout) if done.returncode == 0 else None


def of_experts(folder: Path) -> None:
    """Seconds a start of EM of an ME, and of a whole default fit, on each table."""
    for story, data, words in tables(folder):
        name = words["file"].stem

        def fit(story: ME = story, data: Any = data, **choices: Any) -> None:
            pyro_moe.fit(story.model, story.guide, data, progress=False, **choices)

        fit()  # imports
        seconds = cpu_seconds(lambda fit=fit: fit(prior="none")) / STARTS
        report(f"EM of an ME, {name}, a start", seconds, flexmix(words, STARTS), "flexmix")
        report(f"default fit of an ME, {name}", cpu_seconds(fit))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path)
    folder = parser.parse_args().tables
    of_a_mixture()
    if folder:
        of_experts(folder)
