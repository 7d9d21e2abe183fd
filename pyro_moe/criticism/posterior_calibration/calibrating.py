"""Simulation-based calibration: fits to data simulated from the model."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from tqdm import tqdm

from pyro_moe.evaluation.traces import node
from pyro_moe.fitted import Fit
from pyro_moe.fitting import fit
from pyro_moe.inference.context import reproducible, stream, without_warnings
from pyro_moe.inference.errors import DataError, DataWarning
from pyro_moe.inference.handlers import Discretize
from pyro_moe.rows import Data

from .prior import Values, hold_parameters, simulate
from .quantities import Quantity, default_quantities
from .result import SimulationBasedCalibration


def simulation_based_calibration(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    quantities: Mapping[str, Quantity] | None = None,
    num_simulations: int = 100,
    num_draws: int = 99,
    seed: int = 0,
    progress: bool = True,
    **fit_options: Any,
) -> SimulationBasedCalibration:
    r"""Test whether a fitted guide is the posterior of the model.

    .. math:: \theta_s \sim p(\theta), \quad y_s \sim p(y \mid \theta_s), \quad
              \theta_{s1}, \ldots, \theta_{sL} \sim q(\theta \mid y_s), \quad
              r_s = \#\{l : f(\theta_{sl}, y_s) < f(\theta_s, y_s)\}

    for each simulation s, with q the guide fitted to y_s. If q is the posterior, the ranks of any
    quantity f are uniform on 0, …, L (Talts et al. 2018). Ties are broken at random.

    θ are the latent sites outside the plate ``"data"``. The sites ``x`` and ``y`` are simulated
    for as many rows as the data has. x stays as given where it is not a site. Parameters of the
    model without a prior are held at their current values. The guide starts from its current
    parameters, as with ``initialize="keep"``. For a story that takes its units from data, call
    ``story.adapt(x, y)`` first.

    Ranks of θ alone do not detect every error: a guide that ignores the data and returns the
    prior passes. Quantities that depend on θ and the data detect it, above all the log-likelihood
    (Modrák et al. 2023). Label switching can make a correct fit look wrong. For sites with an
    entry for each component, use quantities that are invariant to the order of components.

    Args:
        model: The generative model, with priors on sites outside the plate.
        guide: Its approximate posterior.
        data: Data as for `fit`. Simulated data has the same number of rows, columns and types.
        quantities: Test quantities by name. Each is a function of the values of θ by site and of
            the columns of data, and returns a number. If None, the first 20 entries of θ, and
            ``"log_likelihood"`` if ``c`` is the only latent site in the plate.
        num_simulations: S.
        num_draws: L.
        seed: Seed of every random draw.
        progress: Whether to show a progress bar, with one step for each simulation.
        **fit_options: Further arguments of `fit`, such as ``epochs`` and ``learning_rate``. The
            guide must converge. With ``epochs=0`` the guide is used without fitting.

    Returns:
        The ranks, with a test of uniformity, the coverage of intervals, and a plot.

    Raises:
        DataError: If the data cannot be fitted, or a quantity is not finite.
        SiteError: If the model has no latent site outside the plate or no observed site, or if
            the guide lacks a latent site of the model.
        ValueError: If an argument is invalid, or if the model has a `pyro.param` without a prior,
            which cannot be held fixed.
        KeyboardInterrupt: After Ctrl-C.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman (2018), "Validating Bayesian inference
        algorithms with simulation-based calibration"; Modrák et al. (2023), "Simulation-based
        calibration checking for Bayesian computation: the choice of test quantities shapes
        sensitivity".

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0).expand([1]).to_event(1), obs=x)
        >>> def guide(x):  # the posterior, with nothing to learn
        ...     pyro.sample("loc", dist.Normal(x.sum() / (1 + len(x)), (1 + len(x)) ** -0.5))
        >>> calibration = simulation_based_calibration(
        ...     model, guide, torch.zeros(5, 1), num_draws=9, epochs=0, progress=False)
        >>> calibration.p_value > 0.05
        True
    """
    _check_arguments(num_simulations, num_draws, fit_options)
    options = {**fit_options, "initialize": "keep", "progress": False}
    bar = tqdm(range(num_simulations), disable=not progress)
    with (
        without_warnings(DataWarning),  # of simulated data
        without_warnings(UserWarning, ".*not registered in the param store"),
    ):
        given = fit(model, guide, data, **{**options, "epochs": 0, "restarts": 1})
        hold_parameters(given)
        quantities = quantities or default_quantities(given)
        ranks = [_simulation(given, quantities, num_draws, seed, i, options) for i in bar]
    return SimulationBasedCalibration(pd.DataFrame(ranks, columns=list(quantities)), num_draws)


def _simulation(
    given: Fit,
    quantities: Mapping[str, Quantity],
    num_draws: int,
    seed: int,
    simulation: int,
    options: dict[str, Any],
) -> np.ndarray:
    """The rank of each quantity in one simulation."""
    seeds = (seed, simulation)
    truth, columns = simulate(given, *seeds)
    fitted = fit(
        given.programs.model, given.programs.guide, columns, seed=stream(*seeds), **options
    )
    if "callback" not in options:
        fitted.uninterrupted()
    draws = _draws(fitted, list(truth), num_draws, *seeds)
    with torch.no_grad(), reproducible(*seeds, 2):
        values = np.array(
            [[float(f(each, columns)) for f in quantities.values()] for each in (truth, *draws)]
        )
    for name, column in zip(quantities, values.T, strict=True):
        if not np.isfinite(column).all():
            got = column[~np.isfinite(column)][0]
            raise DataError(f"expected finite {name!r}; got {got} in simulation {simulation}")
    return _ranks(values, *seeds)


def _check_arguments(num_simulations: int, num_draws: int, fit_options: dict[str, Any]) -> None:
    for name, value in (("num_simulations", num_simulations), ("num_draws", num_draws)):
        if value < 1:
            raise ValueError(f"expected {name} of at least 1; got {value}")
    start = fit_options.get("initialize", "keep")
    if not (isinstance(start, str) and start == "keep"):
        got = repr(start) if isinstance(start, str) else "responsibilities"
        raise ValueError(f"expected initialize='keep', which leaves the model as it is; got {got}")


def _draws(fitted: Fit, sites: list[str], num_draws: int, *seeds: int) -> list[Values]:
    draws = []
    with torch.no_grad(), reproducible(*seeds, 1), Discretize():
        for _ in range(num_draws):
            trace = poutine.trace(fitted.guide).get_trace(*fitted.data)
            draws.append({name: node(trace, name, "guide")["value"] for name in sites})
    return draws


def _ranks(values: np.ndarray, *seeds: int) -> np.ndarray:
    """The rank of the first row of values among the others, shape (quantities,)."""
    truth, draws = values[0], values[1:]
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    return below + np.random.default_rng(stream(*seeds, 3)).integers(ties + 1)
