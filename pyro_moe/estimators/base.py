"""What the estimators have in common: the fit of a story to checked rows."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pyro_moe.evaluation import gate
from pyro_moe.evaluation.novelty import NUM_SAMPLES, feature_log_density
from pyro_moe.evaluation.traces import batches
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.handlers import SameNoise
from pyro_moe.rows import Rows

from .rows import canonical, features
from .story import fitted, story_of

OF_THE_ESTIMATOR = ("epochs", "prior", "seed", "progress", "weights", "resume", "checkpoint")


class StoryEstimator(BaseEstimator):
    """An estimator whose ``fit`` is `pyro_moe.fit` of a story. The result is ``fit_``."""

    story: Any
    n_components: Any
    story_options: dict[str, Any] | None
    fit_options: dict[str, Any] | None
    epochs: int | None
    prior: Any
    random_state: Any
    verbose: bool
    fit_: Fit

    def gate(self, X: Any) -> np.ndarray:
        """The probability of each component given x, see `pyro_moe.evaluation.gate`.

        Args:
            X: Rows, shape (N, D).

        Returns:
            Shape (N, K).
        """
        return self._gate(self._features(X))

    def _fit_rows(
        self,
        x: np.ndarray,
        y: np.ndarray | None,
        weights: np.ndarray | None,
        *,
        targets: tuple[str, ...] | None = None,
        partial: bool = False,
        **dimensions: Any,
    ) -> None:
        """Fit the story to checked rows, in a canonical order.

        Args:
            x: Rows, shape (N, D).
            y: Targets, shape (N,) or (N, M), or None.
            weights: Weights, shape (N,), or None.
            targets: Names of the columns of y, or None.
            partial: Whether to go on from the last fit, for one epoch by gradients.
            **dimensions: Arguments of the story.
        """
        order, weights = canonical(x, y, weights)
        options = self._options(order, partial=partial)
        if partial and hasattr(self, "fit_"):
            story = self.fit_.story
            options["initialize"] = "keep"
        else:
            dimensions |= {"x_dim": x.shape[1], "num_components": self.n_components}
            dtype = torch.float32 if x.dtype == np.float32 else torch.float64
            story = story_of(self.story, self.story_options, dtype=dtype, **dimensions)
        names = getattr(self, "feature_names_in_", None)
        rows = Rows(
            torch.from_numpy(x[order]),
            None if y is None else torch.from_numpy(y[order]),
            columns=None if names is None else tuple(map(str, names)),
            targets=targets,
        )
        self.fit_ = fitted(story, rows, weights, options)

    def _options(self, order: np.ndarray, *, partial: bool) -> dict[str, Any]:
        """The arguments of `fit` for rows in an order."""
        options = dict(self.fit_options or {})
        for name in OF_THE_ESTIMATOR:
            if name in options:
                raise ValueError(f"expected fit_options without {name!r}; got {options[name]!r}")
        start = options.get("initialize")
        if start is not None and not isinstance(start, str):
            options["initialize"] = np.asarray(start)[order]
        own = {"epochs": self.epochs, "prior": self.prior, "progress": self.verbose}
        options |= own | {"seed": seed_of(self.random_state)}
        if partial:
            options = {"loss": "marginal"} | options | {"epochs": 1}
            options["prior"] = "weak" if self.prior == "auto" else self.prior
        return options

    def _features(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "fit_")
        return features(self, X, reset=False)

    def _gate(self, x: np.ndarray) -> np.ndarray:
        return as_array(gate(self.fit_, x))

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        """Log p(x) of each row, or its importance-weighted bound, shape (N,).

        The samples of z have the same noise in all rows, so that rows do not depend on each other.
        """
        seed, blocks = self.fit_.settings["seed"], []
        with torch.no_grad(), reproducible(seed):
            for (rows,) in batches((self.fit_.features(x)[0],)):
                features = (rows, *(None for _ in self.fit_.example[1:]))
                guide = SameNoise(seed)(self.fit_.guide)
                blocks.append(feature_log_density(self.fit_, features, NUM_SAMPLES, guide=guide))
        return as_array(torch.cat(blocks))


def seed_of(random_state: Any) -> int:
    """The seed that stands for a ``random_state`` of scikit-learn, which may be None.

    Example:
        >>> seed_of(3)
        3
    """
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array."""
    return tensor.detach().cpu().numpy()
