"""The same story with fewer components, fitted to the same rows."""

from typing import Any

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.errors import ConvergenceWarning, EmptyComponentWarning
from pyro_moe.inference.prior import Prior

from .entry import fit as fit_story

RESTARTS = 4


def with_fewer(fit: Fit, num_components: int | None = None) -> Fit | None:
    """The story of a fit by EM with fewer components, fitted to the same rows.

    The prior is that of the fit. There are at most four starts.

    Args:
        fit: A fit, with its training rows.
        num_components: K; one less than the fit has if None.

    Returns:
        The fit, or None if the story has one component, no other size, was not fitted by EM, or has
        known components, of which there are more.
    """
    story: Any = fit.story
    if not hasattr(story, "resized") or fit.settings["loss"] != "em" or fit.restored is not None:
        return None
    number = story.num_components - 1 if num_components is None else num_components
    if number < 1 or fit.annotations.labels is not None:
        return None
    about = fit.annotations
    smaller = story.resized(number).to(fit.data[0].dtype)
    with without_warnings(EmptyComponentWarning), without_warnings(ConvergenceWarning):
        return fit_story(
            smaller.model,
            smaller.guide,
            fit.training_rows,
            weights=about.weights,
            groups=about.groups,
            loss="em",
            restarts=min(RESTARTS, fit.settings["restarts"]) if number > 1 else 1,
            tolerance=fit.settings["tolerance"],
            prior=Prior(**fit.settings["prior"]),
            missing_targets=fit.settings["missing_targets"],
            missing_features=bool(fit.training_rows[0].isnan().any()),
            seed=fit.settings["seed"],
            progress=False,
        )
