"""Codes, reconstructions and samples of a fitted story."""

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.poutine import Trace

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.handlers import AtTheMean, Discretize, is_assignment
from pyro_moe.rows import Data

from .traces import batches, missing_site, node, shared_latents


def encode(fit: Fit, x: Data) -> torch.Tensor:
    r"""The latent means :math:`E_q[z \mid x]`.

    Args:
        fit: A fitted story with a site ``z``.
        x: Rows, shape (N, D).

    Returns:
        Codes, shape (N, L).

    Raises:
        SiteError: If the guide has no site ``z``.
    """
    return _at_the_mean(fit, x, lambda guide, model: node(guide, "z", "guide")["value"])


def reconstruct(fit: Fit, x: Data) -> torch.Tensor:
    r"""Reconstruct each row from its code, :math:`E[x \mid z = E_q[z \mid x]]`.

    Args:
        fit: A fitted story with sites ``z`` and ``x``.
        x: Rows, shape (N, D).

    Returns:
        Reconstructions, shape (N, D).

    Raises:
        SiteError: If the guide has no site ``z``, or the model no site ``x``.
    """

    def mean_of_x(guide: Trace, model: Trace) -> torch.Tensor:
        node(guide, "z", "guide")
        return node(model, "x", "model")["fn"].mean

    return _at_the_mean(fit, x, mean_of_x)


def _at_the_mean(fit: Fit, x: Data, read: Callable[[Trace, Trace], torch.Tensor]) -> torch.Tensor:
    results = []
    with torch.no_grad(), reproducible(0), Discretize():
        for batch in batches(fit.features(x)):
            with AtTheMean():
                guide_trace = poutine.trace(fit.guide).get_trace(*batch)
            replayed = poutine.replay(fit.model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*batch)
            results.append(read(guide_trace, model_trace))
    return torch.cat(results)


def sample(
    fit: Fit,
    num_samples: int,
    *,
    component: int | None = None,
    site: str = "c",
    noise: bool = True,
    seed: int = 0,
) -> torch.Tensor:
    r"""Draw rows from the model, from all components or from one: :math:`x \sim p(x \mid c = k)`.

    Latent variables of a row are drawn from the model. Latent variables that rows share are drawn
    from the guide. The draws are from the posterior predictive distribution of new rows.

    Args:
        fit: A fitted story with a site ``x``.
        num_samples: N, the number of rows.
        component: k, or None for c ~ p(c).
        site: The assignment whose value k is, ``"c"`` or a further layer.
        noise: Whether to draw x given z. If False, its mean is returned.
        seed: Seed of the draws.

    Returns:
        Rows, shape (N, D).

    Raises:
        SiteError: If the model has no site ``x``, or ``component`` is given and it has no site of
            that assignment.
        ValueError: If there is no such component.
    """
    template = tuple(row.expand(num_samples, *row.shape[1:]) for row in fit.example)
    with torch.no_grad(), reproducible(seed), Discretize():
        model = poutine.condition(poutine.uncondition(fit.model), shared_latents(fit))
        trace = poutine.trace(model).get_trace(*template)
        if component is not None:
            if site not in trace.nodes or not is_assignment(trace.nodes[site]):
                raise missing_site(site, "model", trace)
            num_components = trace.nodes[site]["value"].shape[-1]
            if not 0 <= component < num_components:
                raise ValueError(
                    f"expected component from 0 to {num_components - 1}; got {component}"
                )
            value = torch.zeros_like(trace.nodes[site]["value"])
            value[..., component] = 1.0
            trace = poutine.trace(poutine.condition(model, {site: value})).get_trace(*template)
        x = node(trace, "x", "model")
        return x["value"] if noise else x["fn"].mean
