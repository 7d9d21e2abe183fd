"""Conversion of a fit and its data to ArviZ: groups of draws with named dimensions."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine

from pyro_moe import evaluation
from pyro_moe.evaluation.marginals import of_column
from pyro_moe.evaluation.novelty import feature_log_density
from pyro_moe.evaluation.traces import as_tensors, observed_sites, shared_latents
from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.inference.context import reproducible, stream, without_warnings
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.inference.handlers import Discretize, Given, WithDistribution
from pyro_moe.inference.traces import (
    enumerated_traces,
    joint_posterior,
    layers,
    other_latents,
)
from pyro_moe.rows import Data, column_names, has_target, target_names

from .replicates import feature_blocks

if TYPE_CHECKING:
    import xarray

CHAINS = 4  # ArviZ's diagnostics compare chains; draws here are independent, in any grouping
MOST_NUMBERS = 250_000_000
RESOLUTION = 1e-6
DIMENSIONS = {
    "c": ("row",),
    "z": ("row", "latent"),
    "x": ("row", "feature"),
    "y": ("row", "target"),
}
Names = dict[str, tuple[str, ...]]  # of the entries of a dimension


@strange_rows_expected()
def to_arviz(
    fit: Fit,
    data: Data | None = None,
    *,
    column: int | str | None = None,
    num_draws: int = 400,
    seed: int = 0,
) -> Any:
    r"""Convert a fit to ArviZ's InferenceData, or to a DataTree from ArviZ 1.0 on.

    .. math:: \theta_s \sim q(\theta), \quad z_{ns}, c_{ns} \sim q(z, c \mid x_n, y_n), \quad
              y^{rep}_{ns} \sim p(y \mid x_n, \theta_s), \quad x^{rep}_{ns} \sim p(x \mid \theta_s)

    Groups: ``posterior`` (every latent site, ``c`` as the number of a component),
    ``posterior_predictive``, ``prior_predictive`` (shared latent variables from their priors,
    learned parameters at their values), ``log_likelihood``, ``observed_data`` and
    ``constant_data`` (x, if y is observed). All draws are from the model with discrete ``c``. The
    dimensions are ``chain``, ``draw``, ``row``, ``feature``, ``target`` and ``latent``. Names of
    columns become coordinates. A target of one column has no dimension ``target``.

    The log-likelihood has one variable. If there is a target, it is y given x, with the assignment
    summed out. Otherwise it is x, with z integrated out by importance sampling:

    .. math:: \log p(y_n \mid x_n, \theta_s) = \log \sum_k g_k(x_n, \theta_s)\, p_k(y_n \mid
              x_n, \theta_s), \quad
              \log p(x_n) \approx \log \frac{1}{R} \sum_r \frac{p(x_n, z_r)}{q(z_r \mid x_n)}

    Learned parameters without a posterior are point estimates. If the log-likelihood depends on
    such parameters alone, it is the same in every draw. Noise of a millionth of a nat is then
    added, because ArviZ cannot fit the tail of a constant. In this case ``az.loo`` is the log
    density of these rows. It is unbiased for held-out rows and optimistic for training rows.

    A row of weight w stands w times, see `Fit.repeats_of`.

    Args:
        fit: A fitted story with a site ``y`` or ``x``.
        data: Rows of the kind that was fitted, preferably held out; the training rows if None.
        column: Number or name of one column of a target, or of x, with several columns. The
            observed data, the replicates and the log-likelihood are then those of this column
            alone. ``az.plot_loo_pit`` requires one number for each row.
        num_draws: Number of draws, a multiple of eight. They are arranged as four chains.
        seed: Seed of the draws.

    Raises:
        DataError: If the draws would take more than a gigabyte, or if data is None for a fit that
            was restored without its training rows.
        SiteError: If the model has no site ``y`` and no site ``x``.
        ValueError: If ``num_draws`` is not a multiple of eight, or there is no such column.
    """
    arviz = import_arviz()
    if num_draws < 8 or num_draws % 8:
        raise ValueError(f"expected num_draws to be a multiple of 8; got {num_draws}")
    columns = fit.training_rows if data is None else as_tensors(fit, data)
    places = fit.repeats_of(data)
    if places is not None:
        columns = tuple(each[places.to(each.device)] for each in columns)
    numbers = 2 * num_draws * sum(column.numel() for column in columns)
    if numbers > MOST_NUMBERS:
        raise DataError(
            f"expected rows and draws of at most {MOST_NUMBERS:,} numbers in all; "
            f"got {numbers:,}: use fewer rows or draws"
        )
    features = fit.columns or column_names(data)
    names = {"feature": features, "target": fit.targets or target_names(data)}
    with torch.no_grad():
        groups = _groups(fit, columns, num_draws, seed, column=column, names=names)
    return _assemble(arviz, groups, {dim: name for dim, name in names.items() if name})


def import_arviz() -> Any:
    """Import ArviZ without its warnings on import, and late, since that takes seconds."""
    with without_warnings(FutureWarning):
        import arviz
    return arviz


def _groups(
    fit: Fit,
    columns: tuple[torch.Tensor, ...],
    num_draws: int,
    seed: int,
    *,
    column: int | str | None,
    names: dict[str, tuple[str, ...] | None],
) -> dict[str, dict[str, np.ndarray]]:
    """The variables of each group; those that are drawn have a leading dimension of draws."""
    x, *others = columns
    for y in others:
        known = has_target(y)
        columns = tuple(column[known] for column in columns)
        x = x[known]
    sites = observed_sites(fit)
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": _posterior(fit, columns, num_draws, seed)
    }
    if "y" in sites and others:
        name, observed = "y", columns[1]
        chosen = _number(column, names["target"], observed[0].numel())
        of_site = _of_targets(fit, x, observed, num_draws, seed, chosen)
        groups["constant_data"] = {"x": x.cpu().numpy()}
    elif "x" in sites:
        name, observed = "x", x
        chosen = _number(column, names["feature"], x.shape[1])
        of_site = _of_features(fit, x, num_draws, seed, chosen)
    else:
        raise SiteError(f"expected an observed site 'y' or 'x' in the model; got {sites}")
    of_site["prior_predictive"] = _prior_predictive(fit, columns, name, num_draws, seed)
    of_site["observed_data"] = _without_single_column(observed.unsqueeze(0))[0].cpu().numpy()
    if chosen is not None:
        of_site |= {
            group: values[..., chosen]
            for group, values in of_site.items()
            if group != "log_likelihood"
        }
    return groups | {group: {name: values} for group, values in of_site.items()}


def _number(column: int | str | None, names: tuple[str, ...] | None, size: int) -> int | None:
    """The number of a column given by number or name; None for all columns, or the only one."""
    if column is None:
        return None
    known = [*range(size), *(names or ())]
    if column not in known:
        raise ValueError(f"expected a column in {known}; got {column!r}")
    number = column if isinstance(column, int) else (names or ()).index(column)
    return number if size > 1 else None


def _posterior(
    fit: Fit, columns: tuple[torch.Tensor, ...], num_draws: int, seed: int
) -> dict[str, np.ndarray]:
    with reproducible(stream(seed, 0)):
        traces = (enumerated_traces(fit.model, fit.guide, *columns) for _ in range(num_draws))
        draws = [_latents(*pair) for pair in traces]
    return {name: torch.stack([draw[name] for draw in draws]).cpu().numpy() for name in draws[0]}


def _latents(model_trace: Any, guide_trace: Any) -> dict[str, torch.Tensor]:
    """One value of each latent site; for assignments its number, shape (N,)."""
    latents = _assignments(model_trace, guide_trace)
    dims = layers(model_trace, guide_trace)
    for name in other_latents(guide_trace):
        p, value = guide_trace.nodes[name]["fn"], guide_trace.nodes[name]["value"]
        rows = len(p.batch_shape) - 1
        if rows > 0:  # it depends on assignments
            places = [torch.zeros_like(latents[next(iter(dims))])] * rows
            for site, dim in dims.items():
                if -dim <= rows + 1 and p.batch_shape[dim] > 1:
                    places[dim + 1] = latents[site]
            value = value[(*places, torch.arange(len(places[0])))]
        latents[name] = value
    return latents


def _assignments(model_trace: Any, guide_trace: Any) -> dict[str, torch.Tensor]:
    """One value of each assignment, drawn together given the row."""
    dims = layers(model_trace, guide_trace)
    if not dims:
        return {}
    posterior = joint_posterior(model_trace, guide_trace)
    chosen = torch.multinomial(posterior.flatten(0, -2).softmax(0).T, 1).squeeze(-1)
    numbers = torch.unravel_index(chosen, posterior.shape[:-1])
    return {name: numbers[dim + 1] for name, dim in dims.items()}


def _of_targets(
    fit: Fit, x: torch.Tensor, y: torch.Tensor, num_draws: int, seed: int, chosen: int | None
) -> dict[str, np.ndarray]:
    prediction = evaluation.predict(fit, x, num_samples=num_draws, seed=seed)
    replicated = prediction.sample(num_draws, seed=stream(seed, 1))
    parts = zip(prediction.log_weights, prediction.distributions, strict=True)
    log_likelihood = [
        replace(
            prediction,
            log_weights=log_weights.unsqueeze(0),
            distributions=(p if chosen is None else of_column(p, chosen),),
        ).log_prob(y)
        for log_weights, p in parts
    ]
    return {
        "posterior_predictive": _without_single_column(replicated).cpu().numpy(),
        "log_likelihood": _resolved(torch.stack(log_likelihood), num_draws, seed),
    }


def _without_single_column(y: torch.Tensor) -> torch.Tensor:
    return y.squeeze(-1) if y.dim() == 3 and y.shape[-1] == 1 else y


def _of_features(
    fit: Fit, x: torch.Tensor, num_draws: int, seed: int, chosen: int | None
) -> dict[str, np.ndarray]:
    replicated = [*feature_blocks(fit, len(x), num_draws, seed=stream(seed, 1))]
    with reproducible(stream(seed, 2)):
        varies = bool(shared_latents(fit))
    log_likelihood = [
        _log_density(fit, x, stream(seed, 2, i), particles=16 if varies else 256, column=chosen)
        for i in range(num_draws if varies else 1)
    ]
    return {
        "posterior_predictive": torch.cat(replicated).cpu().numpy(),
        "log_likelihood": _resolved(torch.stack(log_likelihood), num_draws, seed),
    }


def _log_density(
    fit: Fit, x: torch.Tensor, seed: int, *, particles: int, column: int | None
) -> torch.Tensor:
    """Log p(x) of each row by importance weights, at one draw of the shared latent variables.

    For one column, z is drawn from the model: the guide's z depends on the other columns.
    """
    guide, only = (
        (fit.guide, nullcontext())
        if column is None
        else (lambda *columns: None, WithDistribution("x", lambda p: of_column(p, column)))
    )
    with reproducible(seed), Given(shared_latents(fit)), only:
        return feature_log_density(fit, fit.features(x), particles, guide=guide)


def _resolved(log_likelihood: torch.Tensor, num_draws: int, seed: int) -> np.ndarray:
    """The log-likelihood of each draw, shape (num_draws, N), with noise if it is constant."""
    values = log_likelihood.double().cpu().numpy()
    if len(values) == 1:
        steps = np.linspace(-RESOLUTION, RESOLUTION, num_draws)[:, None]
        noise = np.random.default_rng(seed).permuted(
            np.repeat(steps, values.shape[1], axis=1), axis=0
        )
        values = values + noise
    return values


def _prior_predictive(
    fit: Fit, columns: tuple[torch.Tensor, ...], name: str, num_draws: int, seed: int
) -> np.ndarray:
    model = poutine.uncondition(fit.model)
    with reproducible(stream(seed, 3)), Discretize():
        traces = (poutine.trace(model).get_trace(*columns) for _ in range(num_draws))
        values = torch.stack([trace.nodes[name]["value"] for trace in traces])
    return (_without_single_column(values) if name == "y" else values).cpu().numpy()


def _assemble(arviz: Any, groups: dict[str, dict[str, np.ndarray]], names: Names) -> Any:
    """Groups of arrays in the container of the installed version of ArviZ."""
    import xarray  # a dependency of ArviZ

    datasets = {group: _dataset(group, variables, names) for group, variables in groups.items()}
    if arviz.__version__.startswith("0."):
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict({f"/{group}": dataset for group, dataset in datasets.items()})


def _dataset(group: str, variables: dict[str, np.ndarray], names: Names) -> xarray.Dataset:
    """One group, its draws split into chains."""
    import xarray

    drawn = group not in ("observed_data", "constant_data")
    arrays = {}
    for name, values in variables.items():
        sizes = values.shape[1:] if drawn else values.shape
        dims = (*DIMENSIONS.get(name, ())[: len(sizes)],)
        dims += tuple(f"{name}_dim_{i}" for i in range(len(dims), len(sizes)))
        coords = {
            dim: np.asarray(names.get(dim, range(size)))
            for dim, size in zip(dims, sizes, strict=True)
        }
        if drawn:
            values = values.reshape(CHAINS, -1, *sizes)
            dims = ("chain", "draw", *dims)
            coords |= {"chain": np.arange(CHAINS), "draw": np.arange(values.shape[1])}
        arrays[name] = xarray.DataArray(values, coords=coords, dims=dims)
    return xarray.Dataset(arrays, attrs={"inference_library": "pyro_moe"})
