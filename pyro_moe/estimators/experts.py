"""What the estimators of a target have in common: predictions."""

from typing import Any

import numpy as np

from pyro_moe.evaluation import Prediction, predict
from pyro_moe.inference.errors import SiteError

from .base import StoryEstimator, as_array


class ExpertsEstimator(StoryEstimator):
    """An estimator of a target by experts."""

    def __init__(
        self,
        story: Any = "me",
        n_components: Any = 3,
        *,
        experts: Any = "normal",
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

    def predict_distribution(self, X: Any) -> Prediction:
        """The predictive distribution of each row, see `pyro_moe.evaluation.predict`.

        Args:
            X: Rows, shape (N, D).
        """
        x = self._features(X)
        return predict(self.fit_, x, seed=self.fit_.settings["seed"])

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """The log-density of each row, in nats.

        Args:
            X: Rows, shape (N, D).
            y: Targets, or None.

        Returns:
            log p(y|x), shape (N,). Without y it is log p(x) by the story, or the bound on it; and
            zero for a story given x, which says nothing of x.
        """
        if y is not None:
            return as_array(self.predict_distribution(X).log_prob(self._coded(y)))
        x = self._features(X)
        try:
            return self._log_density(x)
        except SiteError:
            return np.zeros(len(x))

    def _coded(self, y: Any) -> Any:
        """Targets as the fit knows them."""
        return y
