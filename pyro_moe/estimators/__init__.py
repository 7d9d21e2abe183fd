"""Estimators for scikit-learn: doors to `pyro_moe.fit` and `pyro_moe.evaluation`.

They follow scikit-learn's conventions, so that pipelines, searches and cross-validation take them.
All that they compute is computed by `pyro_moe.fit` and by functions of a fit. The fit itself is the
attribute ``fit_``.
"""

from .classifier import MixtureOfExpertsClassifier
from .deep_mixture import DeepMixture
from .regressor import MixtureOfExpertsRegressor

__all__ = ["DeepMixture", "MixtureOfExpertsClassifier", "MixtureOfExpertsRegressor"]
