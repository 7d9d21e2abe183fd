"""A mixture of experts for regression."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin

from pyro_moe.rows import check_index, target_names

from .base import as_array, seed_of
from .experts import ExpertsEstimator
from .rows import features, targets, weights_of


class MixtureOfExpertsRegressor(RegressorMixin, ExpertsEstimator):
    r"""A mixture of experts for regression, over any story.

    .. math:: p(y \mid x) = \sum_k g_k(x)\, p_k(y \mid x)

    ``fit`` is `pyro_moe.fit`, in the floating-point type of X. The rows are put in a canonical
    order before, so that the result does not depend on their order.

    Args:
        story: The name of a shipped story with a target, such as ``"me"``, ``"deepmoe"``,
            ``"gmmmoe"``, ``"vademoe"`` or ``"dvmoe"``; the class of a story; or a module with
            model and guide.
        n_components: K; for ``"hierarchicalme"`` the branches at each level.
        experts: A family, ``"normal"``, ``"student-t"``, ``"poisson"``, ``"bernoulli"`` or
            others, or modules, see `pyro_moe.models.MixtureOfExperts`.
        story_options: Further arguments of the story, such as ``{"z_dim": 2}``.
        fit_options: Further arguments of `pyro_moe.fit`, such as ``{"restarts": 3}``.
        epochs: As in `pyro_moe.fit`.
        prior: As in `pyro_moe.fit`.
        random_state: The seed of `pyro_moe.fit`, a generator of seeds, or None for any seed.
        verbose: Whether to show the progress.

    Attributes:
        fit_: The `pyro_moe.Fit`, which all functions of the package take. Its rows are in the
            canonical order.
        n_outputs_: M, the number of targets.
        n_features_in_: D.
        feature_names_in_: Names of the columns of X, if they have names.

    Example:
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> estimator = MixtureOfExpertsRegressor(n_components=2).fit(x, np.abs(x[:, 0]))
        >>> estimator.predict([[-0.5], [0.5]]).round(2)
        array([0.5, 0.5])
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MixtureOfExpertsRegressor":
        """Fit the story.

        Args:
            X: Rows, shape (N, D).
            y: Targets, shape (N,) or (N, M). They may be NaN if ``fit_options`` has
                ``"missing_targets"``.
            sample_weight: Weights of the rows, shape (N,), or None. A weight of two has the effect
                of a second copy of the row.

        Returns:
            The estimator.
        """
        return self._fit(X, y, sample_weight, partial=False)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MixtureOfExpertsRegressor":
        """Train for one epoch by gradients, beginning at the last fit if there is one.

        Units are those of the first rows. An epoch of few rows has few steps: for more, call it
        again, or give a smaller ``fit_options={"batch_size": …}``.

        Args:
            X: Rows, shape (N, D).
            y: Targets, shape (N,) or (N, M).
            sample_weight: Weights of the rows, shape (N,), or None.

        Returns:
            The estimator.
        """
        return self._fit(X, y, sample_weight, partial=True)

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, partial: bool) -> Any:
        missing = (self.fit_options or {}).get("missing_targets", False)
        reset = not (partial and hasattr(self, "fit_"))
        x = features(self, X, reset=reset)
        target = targets(self, y, len(x), missing=missing)
        check_index((X, y))
        self._one_column = target.ndim == 1
        self.n_outputs_ = 1 if self._one_column else target.shape[1]
        self._fit_rows(
            x,
            target,
            weights_of(sample_weight, len(x)),
            partial=partial,
            targets=target_names((x, y)),
            y_dim=self.n_outputs_,
            experts=self.experts,
        )
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The mean of the target, and its standard deviation.

        Args:
            X: Rows, shape (N, D).
            return_std: Whether to return the standard deviation, too.

        Returns:
            The mean, shape (N,) or (N, M) as y was; with ``return_std`` also the standard
            deviation, of the same shape.
        """
        p = self.predict_distribution(X)
        mean = self._shaped(as_array(p.mean))
        return (mean, self._shaped(as_array(p.variance.sqrt()))) if return_std else mean

    def predict_quantiles(
        self, X: Any, quantiles: float | Sequence[float] = (0.05, 0.5, 0.95)
    ) -> Any:
        """Quantiles of each target.

        Args:
            X: Rows, shape (N, D).
            quantiles: Numbers between 0 and 1, Q of them; or one.

        Returns:
            Shape (N, Q), or (N, M, Q) if y had columns. Of one number without the last dimension.
        """
        p = self.predict_distribution(X)
        each = [self._shaped(as_array(p.quantile(q))) for q in np.ravel(quantiles).tolist()]
        return each[0] if np.ndim(quantiles) == 0 else np.stack(each, -1)

    def sample(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draw targets of each row from its predictive distribution.

        Args:
            X: Rows, shape (N, D).
            n_samples: S, the number of draws.
            random_state: Seed of the draws, a generator of seeds, or None.

        Returns:
            Shape (N, S), or (N, M, S) if y had columns.
        """
        sampled = self.predict_distribution(X).sample(n_samples, seed=seed_of(random_state))
        draws = np.moveaxis(as_array(sampled), 0, -1)
        return draws.reshape(len(draws), -1) if self._one_column else draws

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0] if self._one_column else values

    def _more_tags(self) -> dict[str, bool]:  # of scikit-learn before 1.6
        return {"multioutput": True}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
