"""The generative stories: one a file, the equations beside the code."""

from .conditionals import (
    BernoulliLikelihood,
    CategoricalConditional,
    ContinuousBernoulliLikelihood,
    NormalConditional,
    NormalLikelihood,
)
from .dmvae import DMVAE
from .gmm import GMM
from .mixture import GaussianMixture
from .networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder, Standardise
from .vade import VaDE
from .vae import VAE

__all__ = [
    "DMVAE",
    "GMM",
    "MLP",
    "VAE",
    "BernoulliLikelihood",
    "CategoricalConditional",
    "ContinuousBernoulliLikelihood",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "GaussianMixture",
    "NormalConditional",
    "NormalLikelihood",
    "Standardise",
    "VaDE",
]
