"""Classical tables of mixture regression: our fits beside those that R's software publishes.

    python benchmarks/classical.py --data-dir DIR
    python benchmarks/classical.py --data-dir DIR --seeds 0 1 2 3 4 5 6 7 8 9

DIR has NPreg.csv, tone.csv, CO2.csv, NO.csv, patent.csv and betablocker.csv, of R's flexmix and
mixtools. Each row is one call of `pyro_moe.mixture`.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

import pyro_moe

NORMAL_AND_POISSON = {"family": ("normal", "poisson")}
COUNTS = {"family": "poisson", "num_components": 3}
CENTERS = {
    "family": "binomial",
    "trials": "Total",
    "groups": "Center",
    "shared": ["Treatment"],
    "num_components": 3,
}
# Table, formula, options, and the published log-likelihood, or None
ROWS = [
    ("NPreg", "yn ~ x + I(x**2)", {}, -642.545),
    ("NPreg", ["yn ~ x + I(x**2)", "yp ~ x"], NORMAL_AND_POISSON, -1044.77),
    ("NPreg", "yn ~ x + I(x**2)", {"groups": "id2"}, -561.565),
    ("NPreg", "yn ~ x + I(x**2) | x + I(x**2)", {}, -640.33),
    ("tone", "tuned ~ stretchratio", {}, 141.198),
    ("tone", "tuned ~ stretchratio | stretchratio", {}, 142.838),
    ("CO2", "CO2 ~ GNP", {}, -66.940),
    ("NO", "Equivalence ~ NO", {}, 122.025),
    ("NO", "Equivalence ~ NO | NO", {}, 123.608),
    ("patent", "Patents ~ lgRD | RDS", COUNTS, -197.675),
    ("patent", "Patents ~ lgRD | lgRD", COUNTS, -197.851),
    ("betablocker", "Deaths ~ Treatment", CENTERS, None),
]


def main() -> None:
    """Print a table of log-likelihoods and seconds, and the summaries if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--summaries", action="store_true", help="print the summary of each fit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    print("| table | formula | published | ours | reached in | parameters | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, formula, options, published in ROWS:
        rows = pd.read_csv(arguments.data_dir / f"{name}.csv")
        started = time.perf_counter()
        fits = [pyro_moe.mixture(formula, rows, seed=seed, **options) for seed in arguments.seeds]
        seconds = (time.perf_counter() - started) / len(fits)
        fit = max(fits, key=lambda each: each.llf)
        known = "" if published is None else f"{published:.3f}"
        least = (fit.llf if published is None else published) - 0.01
        reached = f"{sum(each.llf >= least for each in fits)} of {len(fits)}"
        shown = fit.design.formula.replace("|", r"\|")
        cells = [name, f"`{shown}`", known, f"{fit.llf:.3f}", reached, fit.df_model]
        print("|", *(f"{cell} |" for cell in cells), f"{seconds:.1f} |", flush=True)
        if arguments.summaries:
            print(f"\n{fit.summary()}\n")


if __name__ == "__main__":
    main()
