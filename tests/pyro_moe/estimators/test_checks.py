"""The estimators pass scikit-learn's own checks."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_moe.estimators import (
    DeepMixture,
    MixtureOfExpertsClassifier,
    MixtureOfExpertsRegressor,
)

SMALL = {"prior": "weak", "story_options": {"hidden": (8,)}}

# Data of the checks have few rows, and rows that are all equal. These are said, and no errors.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pyro_moe.DataWarning",
    "ignore::pyro_moe.EmptyComponentWarning",
    "ignore::pyro_moe.ConvergenceWarning",
)


@parametrize_with_checks(
    [
        MixtureOfExpertsRegressor(n_components=2, epochs=10, prior="weak"),
        MixtureOfExpertsClassifier(n_components=2, epochs=4, prior="weak"),
        DeepMixture("gmm", n_components=3, epochs=10, prior="weak"),
        DeepMixture("dmvae", n_components=3, epochs=5, **SMALL),
    ]
)
def test_an_estimator_follows_the_conventions(estimator, check):
    check(estimator)
