"""Inference for any Pyro model and guide over the sites c, z, x and y."""

from .em import EM
from .errors import DataError, DataWarning, EmptyComponentWarning, NonFiniteWarning, SiteError
from .handlers import CategoricalKL, Discretize, Enumerate, Relax
from .objectives import AssignedELBO, MarginalELBO, Reconstruction
from .svi import SVI

__all__ = [
    "EM",
    "SVI",
    "AssignedELBO",
    "CategoricalKL",
    "DataError",
    "DataWarning",
    "Discretize",
    "EmptyComponentWarning",
    "Enumerate",
    "MarginalELBO",
    "NonFiniteWarning",
    "Reconstruction",
    "Relax",
    "SiteError",
]
