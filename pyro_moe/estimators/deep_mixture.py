"""Clustering by a mixture, shallow or in the latent space of an autoencoder."""

from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pyro_moe.evaluation import encode, sample
from pyro_moe.inference.errors import SiteError

from .base import StoryEstimator, as_array, seed_of
from .rows import features, weights_of


class DeepMixture(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, StoryEstimator):
    r"""Clusters and codes by a mixture in the latent space of an autoencoder, over any story of x.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z))

    ``fit`` is `pyro_moe.fit`, as in `MixtureOfExpertsRegressor`.

    Args:
        story: ``"dmvae"``, ``"vade"``, ``"gmm"`` (codes are then the rows themselves), the class
            of a story of x, or a module with model and guide.
        n_components: K, the number of clusters.
        story_options: Further arguments of the story, such as ``{"z_dim": 2}``.
        fit_options: Further arguments of `pyro_moe.fit`, such as ``{"restarts": 3}``.
        epochs: As in `pyro_moe.fit`.
        prior: As in `pyro_moe.fit`.
        random_state: The seed of `pyro_moe.fit`, a generator of seeds, or None for any seed.
        verbose: Whether to show the progress.

    Attributes:
        fit_: The `pyro_moe.Fit`. Its rows are in the canonical order.
        labels_: The cluster of each row of `fit`, shape (N,).
        n_features_in_: D.
        feature_names_in_: Names of the columns of X, if they have names.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(30, 2))
        >>> estimator = DeepMixture("gmm", n_components=2).fit(np.r_[z, z + 9.0])
        >>> len(set(estimator.labels_[:30])), len(set(estimator.labels_[30:]))
        (1, 1)
    """

    def __init__(
        self,
        story: Any = "dmvae",
        n_components: int = 3,
        *,
        story_options: dict[str, Any] | None = None,
        fit_options: dict[str, Any] | None = None,
        epochs: int | None = None,
        prior: Any = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.story = story
        self.n_components = n_components
        self.story_options = story_options
        self.fit_options = fit_options
        self.epochs = epochs
        self.prior = prior
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "DeepMixture":
        """Fit the story.

        Args:
            X: Rows, shape (N, D).
            y: Not used.
            sample_weight: Weights of the rows, shape (N,), or None. A weight of two has the effect
                of a second copy of the row.

        Returns:
            The estimator.
        """
        return self._fit(X, sample_weight, partial=False)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "DeepMixture":
        """Train for one epoch by gradients, beginning at the last fit if there is one.

        Units are those of the first rows. An epoch of few rows has few steps: for more, call it
        again, or give a smaller ``fit_options={"batch_size": …}``.

        Args:
            X: Rows, shape (N, D).
            y: Not used.
            sample_weight: Weights of the rows, shape (N,), or None.

        Returns:
            The estimator.
        """
        return self._fit(X, sample_weight, partial=True)

    def _fit(self, X: Any, sample_weight: Any, *, partial: bool) -> Any:
        x = features(self, X, reset=not (partial and hasattr(self, "fit_")))
        self._fit_rows(x, None, weights_of(sample_weight, len(x)), partial=partial)
        self._n_features_out = self._codes(x[:1]).shape[1]
        self.labels_ = self._gate(x).argmax(-1)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable cluster of each row, shape (N,).

        Args:
            X: Rows, shape (N, D).
        """
        return self.gate(X).argmax(-1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each cluster, shape (N, K).

        Args:
            X: Rows, shape (N, D).
        """
        return self.gate(X)

    def transform(self, X: Any) -> np.ndarray:
        """The codes E[z|x], see `pyro_moe.evaluation.encode`; x itself for a story without z.

        Args:
            X: Rows, shape (N, D).

        Returns:
            Shape (N, L).
        """
        return self._codes(self._features(X))

    def score_samples(self, X: Any) -> np.ndarray:
        """Log p(x) of each row, or the importance-weighted bound on it, in nats, shape (N,).

        Args:
            X: Rows, shape (N, D).
        """
        return self._log_density(self._features(X))

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`.

        Args:
            X: Rows, shape (N, D).
            y: Not used.
        """
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draw rows from the model, see `pyro_moe.evaluation.sample`.

        Args:
            n_samples: N, the number of rows.
            random_state: Seed of the draws, a generator of seeds, or None.

        Returns:
            Shape (N, D).
        """
        check_is_fitted(self, "fit_")
        return as_array(sample(self.fit_, n_samples, seed=seed_of(random_state)))

    def _codes(self, x: np.ndarray) -> np.ndarray:
        try:
            return as_array(encode(self.fit_, x))
        except SiteError:  # a story without z
            return x

    def _more_tags(self) -> dict[str, Any]:  # of scikit-learn before 1.6
        return {"preserves_dtype": [np.float64, np.float32]}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
