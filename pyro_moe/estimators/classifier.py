"""A mixture of experts for classification."""

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length

from pyro_moe.inference.errors import DataError
from pyro_moe.rows import check_index

from .base import as_array, seed_of
from .experts import ExpertsEstimator
from .rows import expect_targets, features, weights_of


class MixtureOfExpertsClassifier(ClassifierMixin, ExpertsEstimator):
    r"""A mixture of experts for classification, over any story.

    .. math:: p(y = l \mid x) = \sum_k g_k(x)\, p_k(y = l \mid x)

    Classes may be numbers, texts or categories. ``fit`` is `pyro_moe.fit`, as in
    `MixtureOfExpertsRegressor`.

    Args:
        story: As in `MixtureOfExpertsRegressor`.
        n_components: K, the number of experts, not of classes.
        experts: ``"categorical"``, or modules.
        story_options: Further arguments of the story, such as ``{"z_dim": 2}``.
        fit_options: Further arguments of `pyro_moe.fit`, such as ``{"restarts": 3}``.
        epochs: As in `pyro_moe.fit`.
        prior: As in `pyro_moe.fit`.
        random_state: The seed of `pyro_moe.fit`, a generator of seeds, or None for any seed.
        verbose: Whether to show the progress.

    Attributes:
        fit_: The `pyro_moe.Fit`. Its classes are the numbers of ``classes_``.
        classes_: The classes in their order.
        n_features_in_: D.
        feature_names_in_: Names of the columns of X, if they have names.

    Example:
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> y = np.where(np.abs(x[:, 0]) > 0.5, "far", "near")
        >>> estimator = MixtureOfExpertsClassifier(n_components=2).fit(x, y)
        >>> estimator.predict([[-0.9], [0.1]])
        array(['far', 'near'], dtype='<U4')
    """

    def __init__(
        self,
        story: Any = "me",
        n_components: Any = 3,
        *,
        experts: Any = "categorical",
        story_options: dict[str, Any] | None = None,
        fit_options: dict[str, Any] | None = None,
        epochs: int | None = None,
        prior: Any = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.story = story
        self.n_components = n_components
        self.experts = experts
        self.story_options = story_options
        self.fit_options = fit_options
        self.epochs = epochs
        self.prior = prior
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MixtureOfExpertsClassifier":
        """Fit the story.

        Args:
            X: Rows, shape (N, D).
            y: Classes, shape (N,).
            sample_weight: Weights of the rows, shape (N,), or None. A weight of two has the effect
                of a second copy of the row.

        Returns:
            The estimator.
        """
        return self._fit(X, y, None, sample_weight, partial=False)

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
    ) -> "MixtureOfExpertsClassifier":
        """Train for one epoch by gradients, beginning at the last fit if there is one.

        Units are those of the first rows. An epoch of few rows has few steps: for more, call it
        again, or give a smaller ``fit_options={"batch_size": …}``.

        Args:
            X: Rows, shape (N, D).
            y: Classes, shape (N,).
            classes: All classes, needed in the first call unless y has them all.
            sample_weight: Weights of the rows, shape (N,), or None.

        Returns:
            The estimator.
        """
        return self._fit(X, y, classes, sample_weight, partial=True)

    def _fit(self, X: Any, y: Any, classes: Any, sample_weight: Any, *, partial: bool) -> Any:
        first = not (partial and hasattr(self, "fit_"))
        x = features(self, X, reset=first)
        expect_targets(self, y)
        check_index((X, y))
        name = getattr(y, "name", None)
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        check_consistent_length(x, y)
        weights = weights_of(sample_weight, len(x))
        if first:
            counted = y if weights is None else y[weights > 0]
            self.classes_ = np.unique(counted if classes is None else classes)
        if len(self.classes_) < 2:
            raise ValueError(
                f"expected at least 2 classes in y; got 1 class, {self.classes_.tolist()}"
            )
        if weights is not None:
            x, y, weights = (each[weights > 0] for each in (x, y, weights))
        self._fit_rows(
            x,
            self._coded(y),
            weights,
            partial=partial,
            targets=None if name is None else (str(name),),
            y_dim=len(self.classes_),
            num_classes=len(self.classes_),
            experts=self.experts,
        )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape (N,).

        Args:
            X: Rows, shape (N, D).
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(-1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, in the order of ``classes_``, shape (N, L).

        Args:
            X: Rows, shape (N, D).
        """
        return as_array(self.predict_distribution(X).mean)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithm of the probability of each class, shape (N, L).

        Args:
            X: Rows, shape (N, D).
        """
        p = self.predict_distribution(X)
        each = (torch.full((len(p),), number) for number in range(len(self.classes_)))
        return np.stack([as_array(p.log_prob(number)) for number in each], -1)

    def sample(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draw classes of each row from its predictive distribution.

        Args:
            X: Rows, shape (N, D).
            n_samples: S, the number of draws.
            random_state: Seed of the draws, a generator of seeds, or None.

        Returns:
            Shape (N, S).
        """
        draws = self.predict_distribution(X).sample(n_samples, seed=seed_of(random_state))
        return self.classes_[as_array(draws).T.astype(int)]

    def _coded(self, y: Any) -> np.ndarray:
        """The numbers of classes."""
        y = column_or_1d(y)
        known = np.isin(y, self.classes_)
        if not known.all():
            got = y[~known][:1].tolist()[0]
            raise DataError(f"expected classes in {self.classes_.tolist()}; got {got!r}")
        return np.searchsorted(self.classes_, y)
