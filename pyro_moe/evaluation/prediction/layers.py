"""Assignments of which a target is given, and their joint posterior from all but the target."""

from itertools import product
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.distributions import Mixture, Stacked, in_double
from pyro_moe.fitted import Fit
from pyro_moe.inference.handlers import Enumerate, Given, log_probabilities
from pyro_moe.inference.traces import compute_log_prob, joint_posterior, layers, marginal

from ..marginals import MIXTURES
from ..traces import missing_site, node
from .draws import Columns, Draw, of_mixture


def log_assignment(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    """The log-probabilities (N, K) of c in the guide, or by Bayes' rule from all but y."""
    if [*layers(guide_trace)] == ["c"]:
        return log_probabilities(guide_trace.nodes["c"]["fn"])
    posterior, dims = joint_log_posterior(model_trace, guide_trace)
    if "c" not in dims:
        return posterior.new_zeros(posterior.shape[-1], 1)
    return marginal(posterior, dims["c"]).log_softmax(0).T


def joint_log_posterior(
    model_trace: Trace, guide_trace: Trace
) -> tuple[torch.Tensor, dict[str, int]]:
    """The joint log-probabilities of assignments given all but y, and their dimensions."""
    model_trace = model_trace.copy()
    model_trace.remove_node("y")
    pruned = [prune_subsample_sites(trace) for trace in (model_trace, guide_trace)]
    for trace in pruned:
        compute_log_prob(trace)
    return joint_posterior(*pruned), layers(*pruned)


def further_layers(p: Any, model_trace: Trace) -> dict[str, int]:
    """The assignments besides c on whose values a distribution depends, and their dimensions."""
    shape = p.batch_shape
    return {
        name: dim
        for name, dim in layers(model_trace).items()
        if name != "c" and len(shape) >= -dim and shape[dim] > 1
    }


def averaged(
    fit: Fit, batch: Columns, model_trace: Trace, guide_trace: Trace, further: dict[str, int]
) -> Draw:
    """The draw of a target that depends on further layers: each expert is a mixture over them."""
    posterior, dims = joint_log_posterior(model_trace, guide_trace)
    summed = [dim for name, dim in dims.items() if name not in ("c", *further)]
    whole = posterior.logsumexp(summed, keepdim=True) if summed else posterior
    last = whole.movedim([*further.values()], [*range(-len(further), 0)])
    each = last.reshape(*whole.shape[-2:], -1)  # (K, N, values of the further layers)
    values = [model_trace.nodes[name]["value"].flatten(0, -2) for name in further]
    parts = []
    for chosen in product(*values):
        rows = (value.unsqueeze(0) for value in chosen)
        with Given(dict(zip(further, rows, strict=True))), Enumerate():
            replayed = poutine.replay(fit.model, trace=guide_trace)
            parts.append(node(poutine.trace(replayed).get_trace(*batch), "y", "model")["fn"])
    log_weights, leading = each.logsumexp(-1).log_softmax(0).T, True
    if all(isinstance(p, Mixture) and p.is_choice for p in parts):
        parts, leading = [p.component_distribution for p in parts], False
        each = each.transpose(0, 1)
    return Draw(Mixture(each, Stacked(parts)), log_weights, leading, of_assignment="c" in dims)


def log_layer(fit: Fit, batch: Columns, y: torch.Tensor, site: str) -> torch.Tensor:
    """Log p(y, value of a layer | x) at one draw of the other latents, shape (G, N)."""
    x, _, *more = batch
    with Enumerate():
        guide_trace = poutine.trace(fit.guide).get_trace(*batch)
        replayed = poutine.replay(fit.model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(x, y, *more)
    target = node(model_trace, "y", "model")
    posterior, dims = joint_log_posterior(model_trace, guide_trace)
    if site not in dims:
        raise missing_site(site, "guide or the model", model_trace, guide_trace)
    p, value, known = in_double(target["fn"]), target["value"].double(), target["mask"]
    if isinstance(p, MIXTURES) and len(p.batch_shape) == 1 and "c" in dims:
        draw = of_mixture(p)  # whose gate takes the place of q(c|x)
        log_likelihood = draw.distribution.log_prob(value.unsqueeze(-1 - len(p.event_shape))).mT
        further = [dim for name, dim in dims.items() if name != "c"]
        posterior = posterior - posterior.logsumexp(further, keepdim=True) + draw.log_weights.mT
    else:
        log_likelihood = p.log_prob(value)
    if known is not None:
        log_likelihood = log_likelihood.where(torch.as_tensor(known), 0.0)
    return marginal(posterior + log_likelihood, dims[site])
