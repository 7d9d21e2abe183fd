"""Probabilistic mixtures of experts with deep generative gates, in Pyro.

Modules are imported when one of their names is first used, and so are Pyro and torch.
"""

from pkgutil import extend_path
from typing import TYPE_CHECKING

# In a checkout, models/ and inference/ stand beside this folder: find them where they are
# installed also when Python was started in the checkout and imports this folder first.
__path__ = extend_path(__path__, __name__)

from . import lazy

if TYPE_CHECKING:
    from . import criticism, datasets, evaluation, images, models, plots, runs
    from .fitted import Fit
    from .fitting import fit, resume
    from .fitting.posterior import hmc, laplace
    from .inference.errors import (
        ConvergenceWarning,
        DataError,
        DataWarning,
        EmptyComponentWarning,
        NonFiniteWarning,
        SiteError,
    )
    from .inference.prior import Prior
    from .mixtures import MixtureFit, mixture, select_mixture
    from .rows import Rows
    from .selection import Selection, select

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "DataWarning",
    "EmptyComponentWarning",
    "Fit",
    "MixtureFit",
    "NonFiniteWarning",
    "Prior",
    "Rows",
    "Selection",
    "SiteError",
    "criticism",
    "datasets",
    "evaluation",
    "fit",
    "hmc",
    "images",
    "laplace",
    "mixture",
    "models",
    "plots",
    "resume",
    "runs",
    "select",
    "select_mixture",
]

__getattr__, __dir__ = lazy.names(
    __name__,
    {
        "fitted": ["Fit"],
        "fitting": ["fit", "resume"],
        "fitting.posterior": ["hmc", "laplace"],
        "inference.errors": [
            "ConvergenceWarning",
            "DataError",
            "DataWarning",
            "EmptyComponentWarning",
            "NonFiniteWarning",
            "SiteError",
        ],
        "inference.prior": ["Prior"],
        "mixtures": ["MixtureFit", "mixture", "select_mixture"],
        "rows": ["Rows"],
        "selection": ["Selection", "select"],
    },
)
