"""Traces of model and guide at all values of the assignments, and sums of log-probabilities.

The assignments are the site ``c`` and any further layers, see `handlers.is_assignment`. Sums have a
dimension for each, see `handlers.Enumerate`, and that of ``c`` is the one before the rows.
"""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.distributions import in_double, is_precise

from .context import reproducible, running
from .errors import SiteError
from .handlers import Enumerate, is_assignment
from .handlers.assignment import is_in_plate
from .programs import Program
from .rows.groups import shares_of_groups, sums_of_groups


def enumerated_traces(
    model: Program, guide: Program, *args: Any, **kwargs: Any
) -> tuple[Trace, Trace]:
    """Traces of model and guide at all values of the assignments, with log-probabilities.

    Sites that depend on ``c`` have batch shape (K, N), and those that depend on a further layer of
    G values (G, K, N) or (G, 1, N). The others have batch shape (N,), or () outside the plate
    ``"data"``.

    Raises:
        ValueError: If a latent site of the guide besides assignments is not reparameterized.
    """
    with Enumerate():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
            *args, **kwargs
        )
    model_trace, guide_trace = map(prune_subsample_sites, (model_trace, guide_trace))
    for name in other_latents(guide_trace):
        if not guide_trace.nodes[name]["fn"].has_rsample:
            raise ValueError(
                "expected reparameterized latent sites besides 'c'; "
                f"got {type(guide_trace.nodes[name]['fn']).__name__} at site {name!r}"
            )
    for trace in (guide_trace, model_trace):
        compute_log_prob(trace)
    return model_trace, guide_trace


def create_parameters(
    model: Program, guide: Program, store: dict[str, Any], *example: torch.Tensor
) -> None:
    """Create the parameters of `pyro.param` in a store, as a first step of the programs would.

    Args:
        model: A Pyro model.
        guide: Its guide.
        store: The state of Pyro's parameter store for these programs.
        *example: A row of each column.
    """
    with torch.no_grad(), reproducible(0), running(store):
        enumerated_traces(model, guide, *example)


def compute_log_prob(trace: Trace) -> None:
    """Add the log-probabilities of all sites to a trace, in double precision where possible."""
    given = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_precise(site["fn"]):
            given[name] = site["fn"], site["value"]
            site["fn"], site["value"] = in_double(site["fn"]), site["value"].double()
    trace.compute_log_prob()
    for name, (p, value) in given.items():
        trace.nodes[name]["fn"], trace.nodes[name]["value"] = p, value


def layers(*traces: Trace) -> dict[str, int]:
    """The dimension of each assignment in log-probabilities, by its name.

    Args:
        traces: Traces at all values of the assignments.
    """
    return {
        name: site["infer"]["dim"]
        for trace in traces
        for name, site in trace.nodes.items()
        if is_assignment(site)
    }


def other_latents(*traces: Trace) -> list[str]:
    """The names of latent sites besides assignments."""
    return [
        name
        for trace in traces
        for name in trace.stochastic_nodes
        if not is_assignment(trace.nodes[name])
    ]


def row_bounds(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    r"""The ELBO of each row at one sample of z, shape (N,).

    .. math:: \sum_k q(c = k) [\log p(x, z, c = k) - \log q(z, c = k)]

    The sum is over all values of all assignments of the guide. Those that only the model has are
    summed out of p: without assignments in the guide, the bound is
    :math:`\log \sum_k p(x, z, c = k) - \log q(z)`. In rows whose component is known, q(c) is the
    given probability of each, see `assigned_bounds`. In rows of groups it is the row's share of the
    bound of its group, with the optimal q(c):

    .. math:: \log \sum_k p(c = k) \prod_{n} \frac{p(x_n, z_n \mid c = k)}{q(z_n)}
    """
    groups, labels = groups_of(model_trace), labels_of(model_trace)
    if groups is not None:
        whole, share = group_log_weights(model_trace, guide_trace, groups)
        return share * _known_or(whole.logsumexp(0), whole, labels)
    free = _free_bounds(model_trace, guide_trace)
    if labels is None:
        return free
    weights = model_trace.nodes["c"]["scale"]
    return _known_or(free, component_bounds(model_trace, guide_trace), labels, weights)


def _known_or(
    free: torch.Tensor,
    log_weights: torch.Tensor,
    labels: torch.Tensor | None,
    weights: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    if labels is None:
        return free
    return torch.where(is_labeled(labels), assigned_bounds(log_weights, labels, weights), free)


def _free_bounds(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    log_weights = joint_log_weights(model_trace, guide_trace)
    only_in_model = _only_in(model_trace, guide_trace).values()
    log_weights = _log_sum(log_weights, [*only_in_model], _scale(model_trace))
    log_q, scaled = (
        _log_assignments(guide_trace, key) for key in ("unscaled_log_prob", "log_prob")
    )
    terms = (log_weights - scaled).masked_fill(log_q.isneginf(), 0.0)  # 0 log 0 = 0
    return (log_q.exp() * terms).flatten(0, -2).sum(0)


def component_bounds(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    r"""The bound B_k on log p(x, z, c=k) − log q(z) of each row, shape (K, N).

    .. math:: B_k = \sum_g q(c_1 = g \mid c = k)
              [\log p(x, z, c_1 = g, c = k) - \log q(z, c_1 = g \mid c = k)]

    for further layers c_1 of the guide. Without them it is log p(x, z, c=k) − log q(z) itself, as
    `row_log_weights` is. If the guide has ``c``, the bound of a row is
    :math:`\sum_k q(c = k) [B_k - \log q(c = k)]`.
    """
    only_in_model = _only_in(model_trace, guide_trace)
    dims = [dim for name, dim in only_in_model.items() if name != "c"]
    log_weights = joint_log_weights(model_trace, guide_trace)
    log_weights = _log_sum(log_weights, dims, _scale(model_trace))
    further = [dim for name, dim in layers(guide_trace).items() if name != "c"]
    if not further:
        return _first(log_weights)
    log_q = _log_assignments(guide_trace, "unscaled_log_prob")
    log_q = log_q.clamp_min(torch.finfo(log_q.dtype).min / 4)  # a conditional, where q(c) is zero
    log_q = log_q - log_q.logsumexp(further, keepdim=True)
    q = log_q.exp()
    terms = (log_weights - _scale(guide_trace) * log_q).masked_fill(q == 0, 0.0)
    return _first((q * terms).sum(further, keepdim=True))


def row_log_weights(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    r"""Log p(x, z, c=k) − log q(z) of each row, shape (K, N), or (1, N) without a site ``c``.

    Further layers are summed out.
    """
    further = [dim for name, dim in layers(model_trace).items() if name != "c"]
    log_weights = joint_log_weights(model_trace, guide_trace)
    return _first(_log_sum(log_weights, further, _scale(model_trace)))


def joint_log_weights(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    """Log p(x, z, c=k, ...) − log q(z) of each row, with a dimension for each assignment."""
    model_terms = _model_log_probs(model_trace, guide_trace, in_plate=True)
    guide_terms = _log_probs(guide_trace, in_plate=True)
    assignments = layers(guide_trace)
    total = sum(model_terms.values()) - sum(
        term for name, term in guide_terms.items() if name not in assignments
    )
    return torch.atleast_2d(torch.as_tensor(total).double())


def joint_posterior(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    """The log-probabilities of all assignments together, with a dimension for each.

    Those of the guide have q, and those that only the model has the posterior given z and those of
    the guide. What does not depend on the latter cancels, and is left out.
    """
    log_q = _log_assignments(guide_trace, "unscaled_log_prob")
    free = _only_in(model_trace, guide_trace)
    if not free:
        return log_q if log_q.dim() else 0.0 * joint_log_weights(model_trace, guide_trace)
    of_model = _model_log_probs(model_trace, guide_trace, in_plate=True)
    of_guide = _log_probs(guide_trace, in_plate=True)
    dims = [*free.values()]

    def depends(term: torch.Tensor) -> bool:
        return any(term.dim() >= -dim and term.shape[dim] > 1 for dim in dims)

    joint: Any = sum(term for name, term in of_model.items() if name in free or depends(term))
    joint = joint - sum(
        term for name, term in of_guide.items() if depends(term) and name not in layers(guide_trace)
    )
    return log_q + joint - joint.logsumexp(dims, keepdim=True)


def marginal(log_probabilities: torch.Tensor, dim: int) -> torch.Tensor:
    """Those of the assignment of one dimension, shape (K, N), with all others summed out.

    Args:
        log_probabilities: Of all assignments together, shape (..., N).
        dim: The dimension, see `layers`.
    """
    by_value = log_probabilities.movedim(dim, -2)
    return by_value.flatten(0, -3).logsumexp(0) if by_value.dim() > 2 else by_value


def _only_in(model_trace: Trace, guide_trace: Trace) -> dict[str, int]:
    """The assignments that only the model has."""
    of_guide = layers(guide_trace)
    return {name: dim for name, dim in layers(model_trace).items() if name not in of_guide}


def _log_assignments(guide_trace: Trace, key: str) -> torch.Tensor:
    """The sum of log-probabilities of the guide's assignments, zero if it has none."""
    terms = [guide_trace.nodes[name][key] for name in layers(guide_trace)]
    return torch.as_tensor(sum(terms[1:], terms[0]) if terms else 0.0)


def _log_sum(
    log_weights: torch.Tensor, dims: list[int], scale: torch.Tensor | float
) -> torch.Tensor:
    """The logarithm of a sum of weights that are raised to the power of a scale."""
    if not dims:
        return log_weights
    return scale * (log_weights / scale).logsumexp(dims, keepdim=True)


def _scale(trace: Trace) -> torch.Tensor | float:
    """The weights of the rows."""
    return next((trace.nodes[name]["scale"] for name in layers(trace)), 1.0)


def _first(values: torch.Tensor) -> torch.Tensor:
    """Values (1, ..., 1, K, N) as (K, N)."""
    return values.reshape(values.shape[-2:])


def group_log_weights(
    model_trace: Trace, guide_trace: Trace, groups: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p(x, z, c=k) − log q(z) of each row's group, (K, N), and the row's share of it, (N,).

    The log-probability of c is the mean of those of the group's rows.

    Raises:
        SiteError: If there are further layers of assignments.
    """
    names = list(layers(model_trace))
    if names != ["c"]:
        raise SiteError(f"expected the site 'c' alone for groups; got {', '.join(names)}")
    site = model_trace.nodes["c"]
    weights = site["scale"] if isinstance(site["scale"], torch.Tensor) else None
    share = shares_of_groups(groups, weights)
    of_rows = row_log_weights(model_trace, guide_trace)
    terms = of_rows - site["log_prob"] + share * site["unscaled_log_prob"]
    return sums_of_groups(terms, groups), share


def groups_of(model_trace: Trace) -> torch.Tensor | None:
    """The groups of rows, shape (N,), see `Annotations`, or None."""
    site = model_trace.nodes.get("c")
    return None if site is None else site["infer"].get("groups")


def labels_of(model_trace: Trace) -> torch.Tensor | None:
    """The given probabilities of the components, shape (N, K), see `Annotations`, or None."""
    site = model_trace.nodes.get("c")
    return None if site is None else site["infer"].get("labels")


def is_labeled(labels: torch.Tensor) -> torch.Tensor:
    """In which rows the component is known, shape (N,)."""
    return ~labels[:, 0].isnan()


def assigned_bounds(
    log_weights: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | float = 1.0
) -> torch.Tensor:
    r"""The bound of each row at given probabilities r of its component, shape (N,).

    .. math:: \sum_k r_k [\log p(d, c = k) - \log r_k]

    It is log p(d, c = k) if the component k is certain.

    Args:
        log_weights: Log p(d, c=k), shape (K, N).
        labels: r, shape (N, K). Rows with NaN have the bound zero.
        weights: The weights by which the log-probabilities are scaled.
    """
    r = labels.nan_to_num(0.0).T
    terms = (log_weights - weights * r.log()).masked_fill(r == 0, 0.0)
    return (r * terms).sum(0)


def log_assignment(guide_trace: Trace) -> torch.Tensor | None:
    """Log q(c=k), shape (K, N), with further layers summed out; None for a guide without ``c``."""
    assignments = layers(guide_trace)
    if "c" not in assignments:
        return None
    if len(assignments) == 1:
        return guide_trace.nodes["c"]["log_prob"]
    joint = _log_assignments(guide_trace, "unscaled_log_prob")
    return _scale(guide_trace) * marginal(joint, assignments["c"])


def global_log_weight(model_trace: Trace, guide_trace: Trace) -> torch.Tensor | float:
    """Log p − log q of the latent variables outside the plate ``"data"``."""
    model_terms = _model_log_probs(model_trace, guide_trace, in_plate=False)
    guide_terms = _log_probs(guide_trace, in_plate=False)
    return sum(term.sum() for term in model_terms.values()) - sum(
        term.sum() for term in guide_terms.values()
    )


def _model_log_probs(
    model_trace: Trace, guide_trace: Trace, in_plate: bool
) -> dict[str, torch.Tensor]:
    """Log-probabilities without latent sites that only the model has, such as an unknown y.

    The model's distribution serves as the guide of such a site, so that its terms cancel.
    """
    drawn = {*other_latents(model_trace)} - {*guide_trace.nodes}
    terms = _log_probs(model_trace, in_plate)
    return {name: term for name, term in terms.items() if name not in drawn}


def _log_probs(trace: Trace, in_plate: bool) -> dict[str, torch.Tensor]:
    return {
        name: site["log_prob"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and is_in_plate(site) is in_plate
    }
