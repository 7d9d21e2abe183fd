"""The posterior of the parameters of a fit: `laplace` and `hmc`."""

from .hmc import Sampled, hmc
from .laplace import Laplace, information, laplace, scores
from .story import ParameterPosterior

__all__ = ["Laplace", "ParameterPosterior", "Sampled", "hmc", "information", "laplace", "scores"]
