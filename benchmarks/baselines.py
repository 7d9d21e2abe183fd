"""Baselines of Table 1: regression without components, and least squares with known classes.

    python benchmarks/baselines.py spiral --seeds 0 1 2 3 4 5 6 7 8 9
    python benchmarks/baselines.py mnist --seeds 0 --data-dir DIR
    python benchmarks/baselines.py spiral --seeds 0 1 2 3 4 5 6 7 8 9 --methods SMT  # requires smt

The scikit-learn methods have their default settings, except for the MLP, which has the size of the
gates and early stopping. On MNIST all 60,000 rows are used, except for boosting, which uses 20,000.
Only "class known" uses the classes. SMT's mixture has as many linear experts as there are classes.
It supports a single target, so that each target has its own mixture.
"""

import argparse
import contextlib
import time
import warnings

import numpy as np
import record
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_moe import Rows
from pyro_moe.paper import table1

SCIKIT_LEARN = ("least squares", "gradient boosting", "MLP", "class known")
METHODS = (*SCIKIT_LEARN, "SMT")


def main() -> None:
    """Fit and score the requested methods."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["spiral", "mnist"])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=SCIKIT_LEARN)
    parser.add_argument("--data-dir", metavar="DIR")
    options = parser.parse_args()
    for seed in options.seeds:
        for y_dim in table1.Y_DIMS:
            train, test = table1.rows(
                options.data, y_dim=y_dim, seed=seed, data_dir=options.data_dir
            )
            for method in options.methods:
                started = time.perf_counter()
                made = predicted(method, train, test, seed)
                error = float(np.square(made - test.y.numpy()).sum(1).mean())
                measured = {"error": error, "seconds": time.perf_counter() - started}
                print(options.data, seed, y_dim, method, measured, flush=True)
                key = {"data": options.data, "method": method, "y_dim": y_dim, "seed": seed}
                record.write("baselines", key, measured)


def predicted(method: str, train: Rows, test: Rows, seed: int) -> np.ndarray:
    """Predictions for the test rows, shape (N, M)."""
    x, y, test_x = train.x.numpy(), train.y.numpy(), test.x.numpy()
    if method == "class known":
        made = np.empty_like(test.y.numpy())
        for label in np.unique(train.labels):
            of_train, of_test = train.labels.numpy() == label, test.labels.numpy() == label
            made[of_test] = (
                LinearRegression().fit(x[of_train], y[of_train]).predict(test_x[of_test])
            )
        return made
    if method == "SMT":
        num_components = len(np.unique(train.labels))
        columns = [of_smt(x, target, test_x, num_components, seed) for target in y.T]
        return np.column_stack(columns)
    if method == "gradient boosting":
        rows = np.random.default_rng(seed).permutation(len(x))[:20_000]
        boosting = HistGradientBoostingRegressor(random_state=seed)
        return MultiOutputRegressor(boosting).fit(x[rows], y[rows]).predict(test_x)
    if method == "MLP":
        network = MLPRegressor(
            hidden_layer_sizes=(128, 128), early_stopping=True, random_state=seed
        )
        regressor = make_pipeline(
            StandardScaler(), TransformedTargetRegressor(network, transformer=StandardScaler())
        )
    else:
        regressor = LinearRegression()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        made = regressor.fit(x, y if y.shape[1] > 1 else y.ravel()).predict(test_x)
    return made.reshape(len(test_x), -1)


def of_smt(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Predictions of SMT's mixture of ``num`` linear experts for one target, shape (N,)."""
    from smt.applications import MOE

    np.random.seed(seed)  # noqa: NPY002 - SMT's Gaussian mixture uses the global generator
    mixture = MOE(n_clusters=num, allow=["LS"])
    mixture.set_training_values(x.astype(float), y[:, None].astype(float))
    with contextlib.redirect_stdout(None):
        mixture.train()
    return mixture.predict_values(test_x.astype(float))[:, 0]


if __name__ == "__main__":
    main()
