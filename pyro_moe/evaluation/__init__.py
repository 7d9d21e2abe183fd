"""What a fitted story says of rows: gate, predictions, codes, reconstructions, samples, bounds.

Everything is read off the traces of whatever model and guide were fitted, by the names of their
sites; no story is asked for its class.
"""

from .bounds import elbo, importance_weighted_bound
from .gating import gate
from .imputation import Imputation, impute
from .latent import encode, reconstruct, sample
from .novelty import Novelty, novelty
from .prediction import Prediction, predict
from .scores import classification_scores, clustering_scores, regression_scores

__all__ = [
    "Imputation",
    "Novelty",
    "Prediction",
    "classification_scores",
    "clustering_scores",
    "elbo",
    "encode",
    "gate",
    "importance_weighted_bound",
    "impute",
    "novelty",
    "predict",
    "reconstruct",
    "regression_scores",
    "sample",
]
