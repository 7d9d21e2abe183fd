"""The coefficients of any fit with affine experts, with standard errors where there are any."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from pyro_moe.fitted import Fit
from pyro_moe.fitting import em_of, information, scores
from pyro_moe.inference.context import learning
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import SiteError
from pyro_moe.inference.programs import isolated
from pyro_moe.models import ME, DeepMoE, GMMMoE, HierarchicalME, Predictor
from pyro_moe.rows import numbered

from .coefficients import at_limit, named_parameters
from .formulas import SIGMA
from .formulas.coding import INTERCEPT
from .formulas.names import quoted
from .result import MixtureFit, check_alpha
from .uncertainty import LEAST, derivative, intervals, is_positive

MOST_PARAMETERS = 400
STORIES = (ME, DeepMoE, HierarchicalME, GMMMoE)


@dataclass(frozen=True)
class Spec:
    """Names of the columns of one equation, as `formulaic.ModelSpec` has them."""

    column_names: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """What `Design` says of the coefficients, for columns without a formula."""

    columns: tuple[str, ...]
    predictors: list[Spec]
    gate: Spec
    target_names: tuple[str, ...]
    classes: tuple[Any, ...] | None
    shared: tuple[str, ...]


def coefficient_table(fit: Fit, alpha: float = 0.05) -> pd.DataFrame:
    r"""The coefficients of experts and gate in the units of the data, with standard errors.

    .. math:: \hat\theta \pm z_{1 - \alpha/2}\, se, \quad
              se^2 = \Big( J H^{-1} J^\top \Big)_{ii}, \quad J = \partial \theta / \partial \phi

    H is the observed information of the story's parameters φ, with the prior of the fit, and
    with c summed out. With sampling weights, H⁻¹ gives way to the sandwich H⁻¹ Σ_n s_n s_nᵀ H⁻¹ of
    the scores s_n of rows or groups. Coefficients of the gate are relative to component 0, and
    those of classes to the first class. For a fit by `mixture` they are those of its summary.

    Args:
        fit: A fit of a story with affine experts of x: `ME`, `DeepMoE`, `HierarchicalME`, `GMMMoE`.
        alpha: One minus the confidence of the intervals.

    Returns:
        Columns ``estimate``, ``standard_error``, ``z``, ``p``, ``lower`` and ``upper``, by
        component, equation and term. Errors are NaN where the rows do not determine a parameter,
        for more than 400 parameters, and for a restored fit without its training rows.

    Raises:
        SiteError: If the story has no affine experts of x.

    Example:
        >>> import pyro_moe
        >>> x = torch.linspace(-1.0, 1.0, 40).unsqueeze(-1)
        >>> y = 2.0 * x + torch.tensor([0.1, -0.1]).repeat(20).unsqueeze(-1)
        >>> story = pyro_moe.models.ME(x_dim=1, y_dim=1, num_components=1)
        >>> fit = pyro_moe.fit(story.model, story.guide, (x, y), prior="none", progress=False)
        >>> fit.coefficients().loc[(0, "y", "x"), ["estimate", "standard_error"]].round(3).tolist()
        [1.993, 0.027]
    """
    check_alpha(alpha)
    if isinstance(fit, MixtureFit):
        interval = fit.conf_int(alpha)
        found = {"estimate": fit.params, "standard_error": fit.bse, "z": fit.tvalues}
        others = {"lower": interval["lower"], "upper": interval["upper"]}
        return pd.DataFrame({**found, "p": fit.pvalues, **others})
    index, values, errors = estimated(fit)
    z = np.where(is_positive(index), np.nan, values / errors)
    columns = {"estimate": values, "standard_error": errors, "z": z, "p": 2 * norm.sf(np.abs(z))}
    ends = intervals(pd.Series(values, index), pd.Series(errors, index), alpha)
    return pd.DataFrame(columns, index).join(ends)


@learning()
def estimated(fit: Fit) -> tuple[pd.MultiIndex, np.ndarray, np.ndarray]:
    """Names, estimates and standard errors of the parameters of a fit, shape (P,).

    Raises:
        SiteError: If the story has no affine experts of x.
    """
    if not isinstance(fit.story, STORIES):
        kinds = ", ".join(kind.__name__ for kind in STORIES)
        got = type(fit.story).__name__
        raise SiteError(f"expected experts that are affine in x, of {kinds}; got {got}")
    model, guide = isolated(fit.programs.model, fit.programs.guide)
    story: Any = model.__self__.double()
    design: Any = columns_of(fit, story)
    try:
        index, values = named_parameters(story, design)
    except ValueError as error:  # experts are other modules
        raise SiteError(f"expected experts that are affine in x; got {error}") from error
    errors = torch.full_like(values, torch.nan)
    learned = [p for p in story.parameters() if p.requires_grad]
    if fit.restored is None and sum(p.numel() for p in learned) <= MOST_PARAMETERS:
        sandwich = fit.settings.get("weight_type") == "sampling"
        run = em_of(fit, model, guide)
        errors = standard_errors(run, values, at_limit(story, design), sandwich=sandwich)
    return index, values.detach().cpu().numpy(), errors.cpu().numpy()


def standard_errors(
    run: EM, values: torch.Tensor, fixed: torch.Tensor, *, sandwich: bool = False
) -> torch.Tensor:
    """Standard errors of functions of the parameters of a run, NaN where they are undetermined.

    Args:
        run: The run, at a maximum of its objective.
        values: θ with gradients, shape (P,).
        fixed: Which of θ are at a limit.
        sandwich: Whether they are those of the sandwich.
    """
    learned = list(run.parameters().values())
    jacobian = torch.stack([derivative(value, learned) for value in values])
    observed = information(run).double()
    scale = observed.diagonal().clamp_min(1e-300).sqrt()
    known = observed.diagonal() > 1e-12 * observed.diagonal().max()
    part = (observed / scale / scale.unsqueeze(-1))[known][:, known]
    curvature, directions = torch.linalg.eigh(0.5 * (part + part.mT))
    flat = curvature < 1e-9 * curvature.max()
    moved = (jacobian / scale)[:, known] @ directions
    variance = (moved[:, ~flat].square() / curvature[~flat]).sum(-1)
    wide = variance > jacobian.square().sum(-1) / LEAST
    if sandwich:
        each = (scores(run) / scale)[:, known] @ directions[:, ~flat]
        variance = (each / curvature[~flat] @ moved[:, ~flat].mT).square().sum(0)
    size = moved.square().sum(-1).clamp_min(1e-300)
    undetermined = moved[:, flat].square().sum(-1) > 1e-6 * size
    undetermined |= (jacobian[:, ~known] != 0).any(-1)
    lost = fixed.to(undetermined) | undetermined | wide | (variance <= 0)
    return variance.sqrt().masked_fill(lost, math.nan)


def columns_of(fit: Fit, story: Any) -> Columns:
    """The names of the columns of experts and gate of a story."""
    names = tuple(map(quoted, fit.columns or numbered("x", fit.x_dim)))
    options = getattr(story, "options", {})
    given = options.get("predictor", Predictor())
    of_classes = type(story.experts).__name__ == "CategoricalExperts"
    width = fit.example[1].shape[1:].numel()
    targets = tuple(map(quoted, fit.targets or numbered("y", width)))
    each: Sequence[Any] = [given] * width if isinstance(given, Predictor) else list(given)
    specs = [named_columns(names, p.columns, intercept=p.intercept) for p in each]
    gate = named_columns(
        names, options.get("gate_columns"), intercept=options.get("gate_intercept", True)
    )
    classes = tuple(range(story.experts.network.bias.shape[-1])) if of_classes else None
    shared = [names[i] for p in each for i in p.shared]
    shared += [INTERCEPT] * any(p.shared_intercept for p in each)
    shared += [SIGMA] * any(p.shared_scale for p in each)
    return Columns(names, specs, gate, targets, classes, tuple(shared))


def named_columns(names: tuple[str, ...], places: Sequence[int] | None, *, intercept: bool) -> Spec:
    """The names of chosen columns, or of all, after that of the intercept."""
    chosen = names if places is None else tuple(names[i] for i in places)
    return Spec((INTERCEPT, *chosen) if intercept else chosen)
