"""Whether a guide finds the posterior: fits to data whose latent variables are known."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from tqdm import tqdm

from pyro_moe.evaluation.traces import is_shared, missing_site, node
from pyro_moe.fitted import Fit
from pyro_moe.fitting import fit
from pyro_moe.inference.context import reproducible, stream
from pyro_moe.inference.errors import DataError, DataWarning, SiteError
from pyro_moe.inference.handlers import Discretize
from pyro_moe.inference.programs import learned
from pyro_moe.inference.traces import enumerated_traces, row_log_weights
from pyro_moe.plots.style import GRAY, PALETTE
from pyro_moe.rows import Data

from . import uniformity

Values = dict[str, torch.Tensor]
Columns = tuple[torch.Tensor, ...]
Quantity = Callable[[Values, Columns], Any]
MOST = 20


@dataclass(frozen=True)
class SimulationBasedCalibration:
    """Ranks of true values among draws from guides that were fitted to data made with them.

    Attributes:
        ranks: How many draws were below the true value: a row a simulation, a column a quantity.
        num_draws: L, so that ranks are from 0 to L, and uniform if all is right.
    """

    ranks: pd.DataFrame
    num_draws: int

    @property
    def p_values(self) -> pd.Series:
        """For each quantity, how probable ranks are that stray so far; see `uniformity.p_value`."""
        return self.ranks.apply(partial(uniformity.p_value, num_draws=self.num_draws))

    @property
    def p_value(self) -> float:
        """The smallest of all, times how many there are (Bonferroni)."""
        return float(min(1.0, self.p_values.min() * self.ranks.shape[1]))

    def coverage(self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> pd.DataFrame:
        """The share of simulations whose draws' central interval holds the true value.

        The interval leaves out as many of the L draws at either end. Only some levels can be had
        exactly, 1 - 2 a / (L + 1) for whole a; each that is asked for stands for the nearest.

        Args:
            levels: Probabilities of central intervals.

        Returns:
            A row for each quantity and level, with the ``coverage``, and the ``standard_error`` of
            a share that equals the level.

        Raises:
            ValueError: If a level is not between 0 and 1.
        """
        for level in levels:
            if not 0 < level < 1:
                raise ValueError(f"expected levels between 0 and 1; got {level}")
        size = self.num_draws + 1
        records = []
        for name, ranks in self.ranks.items():
            for outside in dict.fromkeys(max(1, round((1 - x) / 2 * size)) for x in levels):
                level = 1 - 2 * outside / size
                covered = ranks.between(outside, self.num_draws - outside)
                error = math.sqrt(level * (1 - level) / len(ranks))
                records.append((name, level, covered.mean(), error))
        names = ["quantity", "level", "coverage", "standard_error"]
        return pd.DataFrame(records, columns=names).set_index(["quantity", "level"])

    def plot(self, *, level: float = 0.95) -> Figure:
        """How far each quantity's ranks are from uniform, in the band that uniform ones keep to.

        A line that is above the band first and below it later is of draws that spread too little,
        the reverse of draws that spread too widely; one all above it of draws that are too large.

        Args:
            level: Probability of the band for each quantity, simultaneous for all ranks.
        """
        points = np.arange(1, self.num_draws + 1) / (self.num_draws + 1)
        bounds = uniformity.band(len(self.ranks), self.num_draws, level)
        low, high = (bound / len(self.ranks) - points for bound in bounds)
        num_columns = min(4, self.ranks.shape[1])
        num_rows = -(-self.ranks.shape[1] // num_columns)
        figure = Figure(figsize=(1 + 3 * num_columns, 0.6 + 2.4 * num_rows), layout="constrained")
        grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
        for axes, (name, ranks) in zip(grid.flat, self.ranks.items(), strict=False):
            shares = uniformity.counts_below(ranks, self.num_draws) / len(ranks)
            axes.fill_between(points, low, high, color=PALETTE[4], alpha=0.4, linewidth=0)
            axes.axhline(0.0, color=GRAY, linewidth=0.8)
            axes.plot(points, shares - points, color=PALETTE[1])
            axes.set_title(f"{name} (p = {self.p_values[name]:.2g})", fontsize="medium")
        for axes in grid.flat[self.ranks.shape[1] :]:
            axes.remove()
        figure.supxlabel("rank of the true value, as a share of the draws")
        figure.supylabel("ECDF of ranks - uniform")
        return figure


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
    r"""See whether what a guide makes of data is the posterior of the model that made them.

    .. math:: \theta_s \sim p(\theta), \quad y_s \sim p(y \mid \theta_s), \quad
              \theta_{s1}, \ldots, \theta_{sL} \sim q(\theta \mid y_s), \quad
              r_s = \#\{l : f(\theta_{sl}, y_s) < f(\theta_s, y_s)\}

    for each simulation s, with q the guide as fitted to y_s. If q is the posterior, ranks are
    uniform on 0, …, L whatever the quantity f (Talts et al. 2018), with ties broken at random.

    θ are the latent sites outside the plate ``"data"``, and what is simulated are the sites ``x``
    and ``y`` of as many rows as the data has; x stays as given where it is no site. Parameters
    of the model that have no prior are part of the model: they keep the values that they have,
    and the guide starts from those that it has, as with ``initialize="keep"``. A story whose
    units come from data wants ``story.adapt(x, y)`` first.

    Ranks of θ alone do not see all: a guide that ignores the data and gives the prior passes. That
    is what quantities of θ and data are for, above all the log likelihood (Modrák et al. 2023).
    Labels of components may switch, and make a fit that is right look wrong: for sites with an
    entry for each component, give quantities that do not depend on their order.

    Args:
        model: The generative story, with priors on sites outside the plate.
        guide: Its posterior.
        data: As `fit` takes it: what is simulated has its rows, its columns, and their types.
        quantities: By name, functions of the values of θ by site, and of the columns of data, to
            a number. If None, the entries of θ, the first 20 if there are more, and
            ``"log_likelihood"`` where no latent site but ``c`` is in the plate.
        num_simulations: S.
        num_draws: L.
        seed: Seed of every random draw.
        progress: Whether to show a progress bar, a step a simulation.
        **fit_options: What else `fit` takes, such as ``epochs`` and ``learning_rate``: enough for
            the guide to converge. With ``epochs=0`` the guide is taken as it is.

    Returns:
        The ranks, with the test of their uniformity, the coverage of intervals, and the picture.

    Raises:
        DataError: If the data cannot be fitted, or a quantity is not finite.
        SiteError: If the model has no latent site outside the plate, nothing that is observed, or
            the guide lacks one of its sites.
        ValueError: If an argument is none of its choices, or a parameter of the model without a
            prior is a `pyro.param` and would be learned.
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # no data of anyone's are meant
        warnings.filterwarnings("ignore", ".*not registered in the param store", UserWarning)
        given = fit(model, guide, data, **{**options, "epochs": 0, "restarts": 1})
        _hold_parameters(given)
        quantities = quantities or _default_quantities(given)
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
    truth, columns = _simulate(given, *seeds)
    fitted = fit(
        given.programs.model, given.programs.guide, columns, seed=stream(*seeds), **options
    )
    if fitted.stopped == "interrupted" and "callback" not in options:
        raise KeyboardInterrupt
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


def _prior_trace(given: Fit) -> Trace:
    """What the model makes of nothing but the number of rows, and x where that is no site."""
    with Discretize():
        trace = poutine.trace(poutine.uncondition(given.model)).get_trace(*given.data)
    return prune_subsample_sites(trace)


def _hold_parameters(given: Fit) -> None:
    """Keep what the model depends on, and what has no prior, from being learned.

    Raises:
        ValueError: If a parameter is made anew by each run of the model, and cannot be held.
    """
    for parameter in _model_parameters(given).values():
        parameter.requires_grad_(False)
    names = sorted(_model_parameters(given))
    if names:
        raise ValueError(
            "expected a model whose parameters are those of modules, which can be held, or have "
            f"a prior; got pyro.param {', '.join(map(repr, names))}"
        )


def _model_parameters(given: Fit) -> dict[str, torch.Tensor]:
    """The parameters that the model's density depends on, by name."""
    store = given.programs.store
    store.update({"params": {}, "constraints": {}})
    with reproducible(0):
        density = torch.as_tensor(_prior_trace(given).log_prob_sum())
    parameters = learned(store, given.programs.model)
    if not (parameters and density.requires_grad):
        return {}
    gradients = torch.autograd.grad(density, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), gradients, strict=True)
    return {name: parameter for (name, parameter), gradient in pairs if gradient is not None}


def _simulate(given: Fit, *seeds: int) -> tuple[Values, Columns]:
    """Latent variables outside the plate from their prior, and data made with them.

    Raises:
        SiteError: If there are none, or no data.
    """
    with torch.no_grad(), reproducible(*seeds, 0):
        trace = _prior_trace(given)
    latent = {
        name: trace.nodes[name]["value"]
        for name in trace.stochastic_nodes
        if is_shared(trace.nodes[name]) and not _was_observed(trace, name)
    }
    if not latent:
        names = sorted(trace.stochastic_nodes)
        raise SiteError(f"expected a latent site outside the plate 'data'; got sites {names}")
    columns = list(given.data)
    made = [name for name in ("x", "y") if name in trace.nodes and _was_observed(trace, name)]
    if not made:
        raise missing_site("y", "model", trace)
    for name in made:
        column = columns["xy".index(name)]
        columns["xy".index(name)] = trace.nodes[name]["value"].reshape(column.shape).to(column)
    return latent, tuple(columns)


def _was_observed(trace: Trace, name: str) -> bool:
    return trace.nodes[name]["infer"].get("was_observed", False)


def _draws(fitted: Fit, sites: list[str], num_draws: int, *seeds: int) -> list[Values]:
    draws = []
    with torch.no_grad(), reproducible(*seeds, 1), Discretize():
        for _ in range(num_draws):
            trace = poutine.trace(fitted.guide).get_trace(*fitted.data)
            draws.append({name: node(trace, name, "guide")["value"] for name in sites})
    return draws


def _default_quantities(given: Fit) -> dict[str, Quantity]:
    """The first entries of what is latent outside the plate, and the log likelihood."""
    latent, _ = _simulate(given, 0)
    entries = [(name, index) for name, v in latent.items() for index in np.ndindex(*v.shape)]
    quantities: dict[str, Quantity] = {}
    for name, index in entries[:MOST]:
        label = f"{name}[{', '.join(map(str, index))}]" if index else name
        quantities[label] = partial(_entry, name, index)
    with torch.no_grad(), reproducible(0):
        trace = _prior_trace(given)
    of_rows = {n for n in trace.stochastic_nodes if not is_shared(trace.nodes[n])}
    if not {n for n in of_rows if not _was_observed(trace, n)} - {"c"}:
        quantities["log_likelihood"] = partial(_log_likelihood, given)
    return quantities


def _entry(site: str, index: tuple[int, ...], values: Values, columns: Columns) -> torch.Tensor:
    return values[site][index]


def _log_likelihood(given: Fit, values: Values, columns: Columns) -> torch.Tensor:
    """Log p(x, y | θ) of all rows together, with ``c`` summed out."""
    conditioned = poutine.condition(given.model, values)
    traces = enumerated_traces(conditioned, lambda *columns: None, *columns)
    return row_log_weights(*traces).logsumexp(0).sum()


def _ranks(values: np.ndarray, *seeds: int) -> np.ndarray:
    """The rank of the first row of values among the others, shape (quantities,)."""
    truth, draws = values[0], values[1:]
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    return below + np.random.default_rng(stream(*seeds, 3)).integers(ties + 1)
