"""The objective of EM at the parameters of a fit."""

from pyro_moe.fitted import Fit
from pyro_moe.inference.em import EM
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.programs import Program
from pyro_moe.rows import as_double


def em_of(fit: Fit, model: Program, guide: Program) -> EM:
    """A run of EM with the rows of a fit in double precision, its annotations and its prior.

    Args:
        fit: The fit, with its training rows.
        model: The model of the run, that of the fit or a copy in double precision.
        guide: Its guide.

    Raises:
        DataError: If the fit was restored without its training rows.
    """
    data, about = tuple(map(as_double, fit.training_rows)), fit.annotations.each(as_double)
    prior = Prior(**fit.settings["prior"])
    return EM(model, guide, data, 0, fit.settings["seed"], prior, annotations=about)
