"""Comparison of fits by their log density of held-out rows."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from pyro import poutine

from pyro_moe import evaluation
from pyro_moe.evaluation.novelty import feature_log_density
from pyro_moe.evaluation.traces import observed_sites, shared_latents
from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.inference.handlers import Discretize
from pyro_moe.rows import Data, has_target
from pyro_moe.selection import compare_log_densities
from pyro_moe.validation import check_rounding

from .inference_data import import_arviz, to_arviz


@strange_rows_expected()
def compare(
    fits: Mapping[str, Fit],
    data: Data | Mapping[str, Data],
    *,
    num_samples: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Compare fits by their log density of held-out rows, the best one first.

    .. math:: \hat l_i = \frac{1}{N} \sum_n \log p_i(y_n \mid x_n), \quad
              \mathrm{se}(\hat l_i - \hat l_1) = \mathrm{sd}_n[\log p_i(y_n \mid x_n) -
              \log p_1(y_n \mid x_n)] / \sqrt{N}

    The density is that of y given x if all fits have a target, and that of x otherwise. The
    density of x is estimated by the importance-weighted bound with ``num_samples`` draws, which is
    slightly too low. The rows must be held out. Then no correction for overfitting is needed,
    whether parameters are point estimates or have a posterior. Rows count as many times as their
    weights say, see `Fit.weights_of`, by those of the first fit that has a weight for them.

    Leave-one-out cross-validation (LOO) of the training rows, by ArviZ's Pareto-smoothed
    importance sampling, is added where it is valid: where every parameter of the model has a
    posterior, and the fit has its training rows and no weights. LOO assumes that the guide is the
    posterior.

    Args:
        fits: Fits by name.
        data: Rows that were not used for fitting any of them; or the same rows for each fit by its
            name, in the columns that it reads.
        num_samples: Draws of latent variables, a multiple of 8.
        seed: Seed of the draws.

    Returns:
        A row for each fit: ``log_density`` (nats per row) and its ``standard_error``;
        ``difference`` from the best fit and its ``difference_standard_error``, paired by row;
        ``loo`` and ``loo_standard_error`` (nats per training row), NaN where LOO is not valid.

    Warns:
        DataWarning: If the targets are rounded so much that densities mislead.

    Raises:
        DataError: If the data do not match what was fitted, or there are fewer than two rows.
        SiteError: If neither a site ``y`` nor a site ``x`` is common to all fits.
        ValueError: If there are no fits.

    Source:
        Vehtari, Gelman and Gabry, "Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC", Statistics and Computing 2017.

    Example:
        >>> import pyro_moe
        >>> from pyro_moe import models
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> x[:, 0] += 6 * (torch.arange(300) % 2)
        >>> fits = {}
        >>> for k in (1, 2):
        ...     story = models.GMM(x_dim=2, num_components=k)
        ...     fits[f"K={k}"] = pyro_moe.fit(
        ...         story.model, story.guide, x[:200], loss="em", epochs=30, progress=False
        ...     )
        >>> compare(fits, x[200:]).index.tolist()
        ['K=2', 'K=1']
    """
    if not fits:
        raise ValueError("expected fits to compare; got none")
    site = _common_site(fits)
    rows = {name: data[name] if isinstance(data, Mapping) else data for name in fits}
    if site == "y":
        _check_rounded(fits, rows)
    densities = {
        name: _log_density(fit, rows[name], site, num_samples, seed) for name, fit in fits.items()
    }
    table = pd.DataFrame(densities).astype(float)
    if len(table) < 2:
        raise DataError(f"expected at least 2 rows to compare fits on; got {len(table)}")
    weights, sampling = _weights(fits, rows, site)
    scores = compare_log_densities(table, weights, sampling=sampling)
    scores = scores.sort_values("log_density", ascending=False, kind="stable")
    loo = {name: _leave_one_out(fits[name], seed) for name in scores.index}
    columns = ["loo", "loo_standard_error"]
    return scores.join(pd.DataFrame.from_dict(loo, orient="index", columns=columns))


def _check_rounded(fits: Mapping[str, Fit], rows: Mapping[str, Data]) -> None:
    """Warn if densities of rounded targets are compared."""
    name, first = next(iter(fits.items()))
    x, y = first.as_tensors(rows[name])[:2]
    discrete = evaluation.predict(first, x[:1], num_samples=8).discrete
    if not discrete.all():
        check_rounding(y, discrete.nonzero().flatten().tolist())


def _weights(
    fits: Mapping[str, Fit], rows: Mapping[str, Data], site: str
) -> tuple[torch.Tensor | None, bool]:
    """The weights of the rows that are compared, and whether they are those of a sample."""
    for name, fit in fits.items():
        weights = fit.weights_of(rows[name])
        if weights is not None:
            known = has_target(fit.as_tensors(rows[name])[1]).cpu() if site == "y" else slice(None)
            return weights[known], fit.weight_type == "sampling"
    return None, False


def _common_site(fits: Mapping[str, Fit]) -> str:
    sites = {name: observed_sites(fit) for name, fit in fits.items()}
    for site in ("y", "x"):
        if all(site in observed for observed in sites.values()):
            return site
    raise SiteError(f"expected fits that all have a site 'y', or all a site 'x'; got {sites}")


def _log_density(fit: Fit, data: Data, site: str, num_samples: int, seed: int) -> np.ndarray:
    with torch.no_grad():
        if site == "x":
            features = fit.features(data)
            with reproducible(seed):
                return feature_log_density(fit, features, num_samples).cpu().numpy()
        x, y = fit.as_tensors(data)[:2]
        known = has_target(y)
        prediction = evaluation.predict(fit, x[known], num_samples=num_samples, seed=seed)
        return prediction.log_prob(y[known]).cpu().numpy()


def _leave_one_out(fit: Fit, seed: int) -> tuple[float, float]:
    """The LOO estimate per training row and its standard error, NaN where it cannot be had."""
    if fit.restored is not None or fit.annotations.weights is not None or not _is_bayesian(fit):
        return (np.nan, np.nan)
    loo = import_arviz().loo(to_arviz(fit, num_draws=400, seed=seed))
    number = loo.n_data_points  # rows with a target
    elpd = getattr(loo, "elpd_loo", None)
    return (float(loo.elpd if elpd is None else elpd) / number, float(loo.se) / number)


def _is_bayesian(fit: Fit) -> bool:
    """Whether all parameters of the model have a posterior; none is a point estimate."""
    with torch.no_grad(), reproducible(0), Discretize():
        trace = poutine.trace(fit.model, param_only=False).get_trace(*fit.example)
        learned = [name for name, site in trace.nodes.items() if site["type"] == "param"]
        return not learned and bool(shared_latents(fit))
