"""Probabilistic mixtures of experts with deep generative gates, in Pyro."""

from pkgutil import extend_path

# In a checkout, models/ and inference/ stand beside this folder: find them where they are
# installed also when Python was started in the checkout and imports this folder first.
__path__ = extend_path(__path__, __name__)

from . import criticism, datasets, evaluation, images, models, plots, runs
from .fitted import Fit
from .fitting import fit, laplace, resume
from .inference.errors import (
    ConvergenceWarning,
    DataError,
    DataWarning,
    EmptyComponentWarning,
    NonFiniteWarning,
    SiteError,
)
from .inference.prior import Prior
from .rows import Rows
from .selection import Selection, select

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "DataWarning",
    "EmptyComponentWarning",
    "Fit",
    "NonFiniteWarning",
    "Prior",
    "Rows",
    "Selection",
    "SiteError",
    "criticism",
    "datasets",
    "evaluation",
    "fit",
    "images",
    "laplace",
    "models",
    "plots",
    "resume",
    "runs",
    "select",
]

# Methods that need what imports `Fit`: here, where both are known, no import is circular.
Fit.report = criticism.report
Fit.resume = resume
