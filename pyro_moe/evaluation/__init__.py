"""Evaluation of a fitted story: gate, predictions, codes, reconstructions, samples, bounds.

All functions read the traces of the fitted model and guide by the names of their sites. They do not
depend on the class of the story. Pyro's handlers belong to the process, so that calls from several
threads, and the epochs of fits, wait for one another.
"""

from .baseline import linear_baseline, linear_model
from .bounds import elbo, importance_weighted_bound
from .conformal import conformal_interval
from .criteria import information_criteria
from .gating import gate
from .imputation import Imputation, impute
from .latent import encode, reconstruct, sample
from .novelty import Novelty, novelty
from .prediction import Prediction, posterior, predict
from .scores import classification_scores, clustering_scores, regression_scores, score

__all__ = [
    "Imputation",
    "Novelty",
    "Prediction",
    "classification_scores",
    "clustering_scores",
    "conformal_interval",
    "elbo",
    "encode",
    "gate",
    "importance_weighted_bound",
    "impute",
    "information_criteria",
    "linear_baseline",
    "linear_model",
    "novelty",
    "posterior",
    "predict",
    "reconstruct",
    "regression_scores",
    "sample",
    "score",
]
