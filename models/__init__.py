"""Generative stories, that is, pairs of a Pyro model and its guide, one in each file."""

from pyro_moe.distributions import Mixture, RelaxedOneHotCategorical, Stacked, choose

from .bayesian import BayesianExperts, default_prior
from .dmvae import DMVAE
from .dvmoe import DVMoE
from .gmm import GMM
from .gmm_moe import GMMMoE
from .hierarchical import HierarchicalDMVAE, HierarchicalDVMoE
from .moe import ME, DeepMoE, HierarchicalME, MixtureOfExperts
from .parts.conditionals import (
    BernoulliLikelihood,
    CategoricalConditional,
    ContinuousBernoulliLikelihood,
    HeteroscedasticNormalLikelihood,
    NormalConditional,
    NormalLikelihood,
)
from .parts.convolutional import (
    ConvolutionalClassifier,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    RandomAffine,
)
from .parts.experts import (
    BernoulliExperts,
    BinomialExperts,
    CategoricalExperts,
    JointExperts,
    NormalExperts,
    PoissonExperts,
    Predictor,
    StackedExperts,
    StudentTExperts,
)
from .parts.gates import SoftmaxGate
from .parts.groups import GroupedMixture
from .parts.mixture import GaussianMixture
from .parts.networks import MLP, AffineMaps, Standardize
from .parts.targets import log_likelihoods, observe_target, posterior_logits
from .vade import VaDE
from .vade_moe import VaDEMoE
from .vae import VAE

__all__ = [
    "DMVAE",
    "GMM",
    "ME",
    "MLP",
    "VAE",
    "AffineMaps",
    "BayesianExperts",
    "BernoulliExperts",
    "BernoulliLikelihood",
    "BinomialExperts",
    "CategoricalConditional",
    "CategoricalExperts",
    "ContinuousBernoulliLikelihood",
    "ConvolutionalClassifier",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "DVMoE",
    "DeepMoE",
    "GMMMoE",
    "GaussianMixture",
    "GroupedMixture",
    "HeteroscedasticNormalLikelihood",
    "HierarchicalDMVAE",
    "HierarchicalDVMoE",
    "HierarchicalME",
    "JointExperts",
    "Mixture",
    "MixtureOfExperts",
    "NormalConditional",
    "NormalExperts",
    "NormalLikelihood",
    "PoissonExperts",
    "Predictor",
    "RandomAffine",
    "RelaxedOneHotCategorical",
    "SoftmaxGate",
    "Stacked",
    "StackedExperts",
    "Standardize",
    "StudentTExperts",
    "VaDE",
    "VaDEMoE",
    "choose",
    "default_prior",
    "log_likelihoods",
    "observe_target",
    "posterior_logits",
]
