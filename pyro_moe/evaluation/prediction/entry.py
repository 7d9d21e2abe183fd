"""The functions `predict` and `posterior`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine

from pyro_moe.distributions import Mixture, Stacked
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.handlers import Enumerate, Given, Undrawn
from pyro_moe.inference.handlers.evaluated_once import evaluated_once
from pyro_moe.inference.programs import beside, owner
from pyro_moe.rows import Data

from ..gating import gate_estimates, log_mean_exp
from ..imputation import completions
from ..marginals import MIXTURES, mean_of, variance_of
from ..traces import node, shared_latents
from .distribution import Prediction
from .draws import Columns, Draw, agree, blocks_of, of_mixture, whole_of
from .layers import averaged, further_layers, log_assignment, log_layer

FEW = 64
IMPUTATIONS = 32


def predict(fit: Fit, x: Data, *, num_samples: int = 64, seed: int = 0) -> Prediction:
    r"""Compute the predictive distribution of the target of each row.

    .. math:: p(y \mid x) = \sum_k g_k(x)\, p_k(y \mid x)

    It is read from the model's site ``y``. The site is either a mixture, or the distribution of one
    expert that depends on ``c``; the weights are then those of `gate`. If y depends on further
    latent variables, such as experts' parameters or a sampled z, the prediction is averaged over
    draws from the guide. In a
    story of several layers, p_k is the average over those besides ``c``.

    Args:
        fit: A fitted story with a site ``y``, whose model and guide take None for y.
        x: Rows, shape (N, D).
        num_samples: Draws of latent variables, a multiple of 8. A single one is used if y depends
            on none.
        seed: Seed of the draws.

    Returns:
        The prediction, in the units of the training targets.

    Raises:
        SiteError: If the model has no site ``y``.
    """
    completed = completions(fit, x, IMPUTATIONS, seed)
    if completed is not None:
        options = {"num_samples": num_samples, "seed": seed}
        return _in_equal_parts([predict(fit, rows, **options) for rows in completed])
    features = fit.features(x)
    with torch.no_grad(), reproducible(seed):
        few = _few(features)
        one, other = (_draw_of_batch(fit, few) for _ in range(2))
        same = all(
            torch.equal(read(one.distribution), read(other.distribution))
            for read in (mean_of, variance_of)
        )
        exact = same and torch.equal(one.log_weights, other.log_weights)
        forward = _forward(fit, few, one) if exact else None
        if forward is not None:
            with running(fit.programs.store):
                blocks = [of_mixture(forward(x)) for x, *_ in blocks_of(features)]
                draws = [whole_of(blocks) or of_mixture(forward(features[0]))]
        elif same and one.of_assignment:
            log_weights = log_mean_exp(gate_estimates(fit, features, num_samples, seed), 0)
            draws = [replace(_draw(fit, features, one.target), log_weights=log_weights)]
        elif exact:
            draws = [_draw(fit, features, one.target)]
        else:
            draws = [_draw(fit, features) for _ in range(num_samples)]
    return Prediction(
        torch.stack([draw.log_weights for draw in draws]),
        tuple(draw.distribution for draw in draws),
        draws[0].leading,
        fit.targets,
    )


def _in_equal_parts(predictions: Sequence[Prediction]) -> Prediction:
    """The mixture of predictions of the same rows in equal parts."""
    log_weights = torch.cat([each.log_weights for each in predictions])
    distributions = tuple(p for each in predictions for p in each.distributions)
    return replace(predictions[0], log_weights=log_weights, distributions=distributions)


def posterior(
    fit: Fit,
    data: Data,
    *,
    groups: Any = None,
    num_samples: int = 64,
    seed: int = 0,
    site: str = "c",
) -> torch.Tensor:
    r"""Compute the probability of each component given x and y.

    .. math:: p(c = k \mid x, y) \propto g_k(x)\, p_k(y \mid x)

    `gate` is p(c|x), before y is known. Where the data have groups, as those of a fit by groups
    have, it is that of the group of each row, given the targets of the whole group.

    Args:
        fit: A fitted story with a site ``y``.
        data: Rows (x, y).
        groups: Numbers of the groups of the rows, shape (N,). If None, those of the fit for its
            training rows, and the column of groups for a data frame of a formula.
        num_samples: As in `predict`.
        seed: Seed of the draws.
        site: The assignment: ``"c"``, or a further layer such as ``"c1"``. A further layer takes
            no groups.

    Returns:
        Shape (N, K), with rows that sum to one.

    Raises:
        DataError: If there are no targets, or one is outside of the support.
        SiteError: If the model has no site ``y``, or neither guide nor model has the assignment.
    """
    x, y = fit.as_tensors(data)[:2]
    if site != "c":
        return _posterior_of_layer(fit, x, y, site, num_samples, seed)
    prediction = predict(fit, x, num_samples=num_samples, seed=seed)
    groups = fit.groups_of(data) if groups is None else torch.as_tensor(groups)
    return prediction.posterior(y.cpu(), groups)


def _few(features: Columns) -> Columns:
    """Some rows from everywhere, which show on what the prediction depends."""
    x = features[0]
    rows = torch.linspace(0, len(x) - 1, min(FEW, len(x))).long()
    return tuple(None if column is None else column[rows.to(x.device)] for column in features)


def _draw(fit: Fit, features: Columns, target: torch.Tensor | None = None) -> Draw:
    """One draw, minibatch by minibatch: what rows share is the same in all of them.

    Args:
        fit: The fit.
        features: The arguments of model and guide.
        target: A target of one row, if nothing depends on the unknown targets, so that these need
            not be drawn.
    """
    undrawn = nullcontext() if target is None else Undrawn("y", target)
    with Given(shared_latents(fit)), undrawn:
        return whole_of([_draw_of_batch(fit, batch) for batch in blocks_of(features)]) or (
            _draw_of_batch(fit, features)
        )


def _draw_of_batch(fit: Fit, batch: Columns) -> Draw:
    with Enumerate(), evaluated_once(fit.programs.model, fit.programs.guide):
        guide_trace = poutine.trace(fit.guide).get_trace(*batch)
        replayed = poutine.replay(fit.model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*batch)
    site = node(model_trace, "y", "model")
    p, target = site["fn"], site["value"].reshape(-1, *site["fn"].event_shape)[0]
    further = further_layers(p, model_trace)
    if further:
        return replace(averaged(fit, batch, model_trace, guide_trace, further), target=target)
    if len(p.batch_shape) == 1:
        if isinstance(p, MIXTURES):
            return replace(of_mixture(p), target=target)
        return Draw(Stacked([p]), mean_of(p).new_zeros(*p.batch_shape, 1), target=target)
    log_weights = log_assignment(model_trace, guide_trace)
    if isinstance(p, Mixture) and p.is_choice:
        experts, leading = p.component_distribution, False
    else:
        experts, leading = p, True
    return Draw(experts, log_weights, leading, of_assignment=True, target=target)


def _forward(fit: Fit, few: Columns, draw: Draw) -> Callable[[torch.Tensor], Any] | None:
    """The story's ``forward``, if it is the distribution of y that the model has.

    It must be written where the model is, and agree with it on a few rows, see `Predictive`.
    """
    if beside(fit.programs.model, "forward") is None:
        return None
    story = owner(fit.programs.model)
    p = story(few[0])
    return story if isinstance(p, MIXTURES) and agree(draw, of_mixture(p)) else None


def _posterior_of_layer(
    fit: Fit, x: torch.Tensor, y: torch.Tensor, site: str, num_samples: int, seed: int
) -> torch.Tensor:
    """The probability of each value of a further layer given x and y, shape (N, G)."""
    features = fit.features(x)
    blocks = []
    with torch.no_grad(), reproducible(seed):
        for batch, (_, targets) in zip(blocks_of(features), blocks_of((x, y)), strict=True):
            draws = [log_layer(fit, batch, targets, site) for _ in range(num_samples)]
            blocks.append(torch.stack(draws).logsumexp(0).softmax(0).T)
    return torch.cat(blocks)
