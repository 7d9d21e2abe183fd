"""Draws of parameters and data from a model, and the parameters of the model held fixed."""

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.evaluation.traces import is_shared, missing_site
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import SiteError
from pyro_moe.inference.handlers import Discretize
from pyro_moe.inference.programs import learned

Values = dict[str, torch.Tensor]
Columns = tuple[torch.Tensor, ...]


def prior_trace(given: Fit) -> Trace:
    """A trace of the model with nothing observed; x stays as given where it is not a site."""
    with Discretize():
        trace = poutine.trace(poutine.uncondition(given.model)).get_trace(*given.data)
    return prune_subsample_sites(trace)


def hold_parameters(given: Fit) -> None:
    """Hold the parameters of the model that have no prior at their values.

    Raises:
        ValueError: If one is a `pyro.param`, which each run of the model registers anew.
    """
    for parameter in _model_parameters(given).values():
        parameter.requires_grad_(False)
    names = sorted(_model_parameters(given))
    if names:
        raise ValueError(
            "expected a model whose parameters have a prior or belong to a module, where they can "
            f"be held fixed; got pyro.param {', '.join(map(repr, names))}"
        )


def _model_parameters(given: Fit) -> dict[str, torch.Tensor]:
    """The parameters that the model's density depends on, by name."""
    store = given.programs.store
    store.update({"params": {}, "constraints": {}})
    with reproducible(0):
        density = torch.as_tensor(prior_trace(given).log_prob_sum())
    parameters = learned(store, given.programs.model)
    if not (parameters and density.requires_grad):
        return {}
    gradients = torch.autograd.grad(density, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), gradients, strict=True)
    return {name: parameter for (name, parameter), gradient in pairs if gradient is not None}


def simulate(given: Fit, *seeds: int) -> tuple[Values, Columns]:
    """Draws of the latent variables outside the plate from their prior, and simulated data.

    Raises:
        SiteError: If the model has no such variable, or no observed site.
    """
    with torch.no_grad(), reproducible(*seeds, 0):
        trace = prior_trace(given)
    latent = {
        name: trace.nodes[name]["value"]
        for name in trace.stochastic_nodes
        if is_shared(trace.nodes[name]) and not was_observed(trace, name)
    }
    if not latent:
        names = sorted(trace.stochastic_nodes)
        raise SiteError(f"expected a latent site outside the plate 'data'; got sites {names}")
    columns = list(given.data)
    made = [name for name in ("x", "y") if name in trace.nodes and was_observed(trace, name)]
    if not made:
        raise missing_site("y", "model", trace)
    for name in made:
        column = columns["xy".index(name)]
        columns["xy".index(name)] = trace.nodes[name]["value"].reshape(column.shape).to(column)
    return latent, tuple(columns)


def was_observed(trace: Trace, name: str) -> bool:
    """Whether a site holds data that `prior_trace` replaced by draws."""
    return trace.nodes[name]["infer"].get("was_observed", False)
