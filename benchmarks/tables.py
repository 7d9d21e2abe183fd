"""Tables of 30 to 800 rows: held-out log-density of every story's defaults, and of other methods.

    python benchmarks/tables.py --tables diabetes iris --methods linear me dvmoe
    python benchmarks/tables.py --data-dir DIR           # more tables, see CLASSICAL

Five folds, the same for all methods. K = 3 for the stories; ``select`` chooses K of an ME. The
regressors have scikit-learn's default settings. Their predictive distribution is normal, with the
variance of out-of-bag or cross-validated residuals, and the posterior variance for the Gaussian
process. The tables come with scikit-learn and statsmodels, or are read from a folder.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import record
import sklearn.datasets
import torch
from scipy import stats
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyro_moe
from pyro_moe import evaluation, models

Table = tuple[np.ndarray, np.ndarray, str]

CLASSICAL = {
    "NO": ("Equivalence", ["NO"], "normal"),
    "tone": ("tuned", ["stretchratio"], "normal"),
    "patent": ("Patents", ["lgRD"], "poisson"),
}
STORIES: dict[str, Any] = {
    "me": models.ME,
    "gmmmoe": models.GMMMoE,
    "deepmoe": models.DeepMoE,
    "dvmoe": models.DVMoE,
    "vademoe": models.VaDEMoE,
}
OTHERS = ("linear", "boosting", "forest", "process", "joint")


def main() -> None:
    """Score the requested methods on the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+")
    parser.add_argument("--methods", nargs="+", default=[*OTHERS, *STORIES, "select"])
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, table in tables(options.data_dir).items():
        if options.tables and name not in options.tables:
            continue
        for method in options.methods:
            started = time.perf_counter()
            scores = cross_validated(method, *table, options.seed)
            measured = {
                "log_density": float(np.mean(scores)),
                "folds": scores,
                "rows": len(table[0]),
                "columns": table[0].shape[1],
                "family": table[2],
                "seconds": time.perf_counter() - started,
            }
            print(name, method, f"{np.mean(scores):.3f}", np.round(scores, 3), flush=True)
            record.write(
                "tables", {"table": name, "method": method, "seed": options.seed}, measured
            )


def tables(folder: str | None) -> dict[str, Table]:
    """x, y and the family of the target, by name."""
    found: dict[str, Table] = {}
    data = sklearn.datasets.load_diabetes()
    found["diabetes"] = (data.data, data.target, "normal")
    for name in ("wine", "breast_cancer", "iris"):
        data = getattr(sklearn.datasets, f"load_{name}")()
        found[name] = (data.data, data.target, "categorical")
    found |= of_statsmodels()
    for name, (target, columns, family) in CLASSICAL.items() if folder else ():
        frame = pd.read_csv(Path(folder, f"{name}.csv"))
        found[name] = (frame[columns].to_numpy(float), frame[target].to_numpy(float), family)
    return found


def of_statsmodels() -> dict[str, Table]:
    """The tables of statsmodels, which is not required."""
    try:
        from statsmodels import datasets
    except ImportError:
        return {}
    engel, cards = (getattr(datasets, name).load_pandas().data for name in ("engel", "ccard"))
    scotland = datasets.scotland.load_pandas()
    return {
        "engel": (engel[["income"]].to_numpy(float), engel.foodexp.to_numpy(float), "normal"),
        "ccard": (
            cards.drop(columns="AVGEXP").to_numpy(float),
            cards.AVGEXP.to_numpy(float),
            "normal",
        ),
        "scotland": (
            np.asarray(scotland.exog, float),
            np.asarray(scotland.endog, float),
            "normal",
        ),
    }


def cross_validated(
    method: str, x: np.ndarray, y: np.ndarray, family: str, seed: int
) -> list[float]:
    """The mean log-density of the rows of each of five folds."""
    folds = KFold(5, shuffle=True, random_state=seed).split(x)
    score = OTHER.get(method, story_score(method, seed))
    return [float(np.mean(score(x[a], y[a], family, x[b], y[b]))) for a, b in folds]


def story_score(method: str, seed: int) -> Callable[..., np.ndarray]:
    """Scores of a story with all defaults but K."""

    def score(x: Any, y: Any, family: str, new_x: Any, new_y: Any) -> np.ndarray:
        width, y_dim = (
            x.shape[1],
            int(max(y.max(), new_y.max())) + 1 if family == "categorical" else 1,
        )

        def story(number: int) -> Any:
            made = STORIES["me" if method == "select" else method]
            sizes = {"z_dim": min(2, width)} if method in ("dvmoe", "vademoe") else {}
            return made(width, y_dim, number, experts=family, **sizes)

        if method == "select":
            options = {"num_components": range(1, 5), "folds": 5, "progress": False}
            fit = pyro_moe.select(story, (x, y), seed=seed, **options).fit
        else:
            made = story(3)
            fit = pyro_moe.fit(made.model, made.guide, (x, y), seed=seed, progress=False)
        return evaluation.predict(fit, new_x).log_prob(new_y).numpy()

    return score


def linear(x: Any, y: Any, family: str, new_x: Any, new_y: Any) -> np.ndarray:
    """Least squares with σ² by degrees of freedom, logistic or Poisson regression."""
    if family == "categorical":
        return of_classes(LogisticRegression(max_iter=5000))(x, y, family, new_x, new_y)
    if family == "poisson":
        line = make_pipeline(StandardScaler(), PoissonRegressor(alpha=1e-6, max_iter=2000))
        return stats.poisson.logpmf(new_y, line.fit(x, y).predict(new_x))
    line = LinearRegression().fit(x, y)
    squares = np.square(y - line.predict(x)).sum() / max(len(y) - x.shape[1] - 1, 1)
    return stats.norm.logpdf(new_y, line.predict(new_x), np.sqrt(squares))


def of_classes(classifier: Any) -> Callable[..., np.ndarray]:
    """Scores of a classifier of standardized columns."""

    def score(x: Any, y: Any, family: str, new_x: Any, new_y: Any) -> np.ndarray:
        fitted = make_pipeline(StandardScaler(), classifier).fit(x, y)
        shares = pd.DataFrame(fitted.predict_proba(new_x), columns=fitted.classes_)
        shares = shares.reindex(columns=range(int(max(y.max(), new_y.max())) + 1), fill_value=0.0)
        return np.log(np.clip(shares.to_numpy()[np.arange(len(new_y)), new_y], 1e-6, 1.0))

    return score


def by_residuals(regressor: Any, classifier: Any) -> Callable[..., np.ndarray]:
    """Scores of a regressor with the variance of cross-validated residuals, or of a classifier."""

    def score(x: Any, y: Any, family: str, new_x: Any, new_y: Any) -> np.ndarray:
        if family == "categorical":
            return of_classes(classifier)(x, y, family, new_x, new_y)
        variance = np.square(y - cross_val_predict(regressor, x, y, cv=5)).mean()
        mean = regressor.fit(x, y).predict(new_x)
        if family == "poisson":
            return stats.poisson.logpmf(new_y, np.clip(mean, 1e-3, None))
        return stats.norm.logpdf(new_y, mean, np.sqrt(variance))

    return score


def process(x: Any, y: Any, family: str, new_x: Any, new_y: Any) -> np.ndarray:
    """A Gaussian process with noise."""
    if family == "categorical":
        return of_classes(GaussianProcessClassifier(ConstantKernel() * RBF()))(
            x, y, family, new_x, new_y
        )
    kernel = ConstantKernel() * RBF(np.ones(x.shape[1])) + WhiteKernel()
    fitted = make_pipeline(
        StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2)
    ).fit(x, y)
    mean, deviation = fitted.predict(new_x, return_std=True)
    return stats.norm.logpdf(new_y, mean, deviation)


def joint(x: Any, y: Any, family: str, new_x: Any, new_y: Any) -> np.ndarray:
    """Regression by a Gaussian mixture of x and y with one to four components, by BIC.

    Classes have a mixture of x for each class.
    """
    from sklearn.mixture import GaussianMixture

    def mixture(points: np.ndarray) -> GaussianMixture:
        numbers = [k for k in range(1, 5) if k == 1 or len(points) > 10 * k]
        made = [GaussianMixture(k, reg_covar=1e-3, n_init=3, random_state=0) for k in numbers]
        return min((each.fit(points) for each in made), key=lambda each: each.bic(points))

    scaler = StandardScaler().fit(x)
    u, new_u = scaler.transform(x), scaler.transform(new_x)
    if family == "categorical":
        classes = range(int(max(y.max(), new_y.max())) + 1)
        logs = np.stack(
            [
                mixture(u[y == c]).score_samples(new_u) + np.log((y == c).mean())
                if (y == c).sum() > 1
                else np.full(len(new_u), -50.0)
                for c in classes
            ],
            1,
        )
        logs -= np.logaddexp.reduce(logs, 1, keepdims=True)
        return np.clip(logs[np.arange(len(new_y)), new_y], np.log(1e-6), 0.0)
    center, unit = y.mean(), y.std()
    found = mixture(np.c_[u, (y - center) / unit])
    both = found.score_samples(np.c_[new_u, (new_y - center) / unit])
    width = u.shape[1]
    alone = np.stack(
        [
            stats.multivariate_normal(m[:width], c[:width, :width]).logpdf(new_u) + np.log(w)
            for m, c, w in zip(found.means_, found.covariances_, found.weights_, strict=True)
        ]
    )
    return both - np.logaddexp.reduce(alone.reshape(len(found.weights_), -1), 0) - np.log(unit)


OTHER: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear,
    "boosting": by_residuals(HistGradientBoostingRegressor(), HistGradientBoostingClassifier()),
    "forest": by_residuals(RandomForestRegressor(300), RandomForestClassifier(300)),
    "process": process,
    "joint": joint,
}


if __name__ == "__main__":
    main()
