"""Diagnostics of a gate: component shares, entropy, agreement of guide and model."""

import math
from dataclasses import dataclass

import torch
from pyro.poutine import Trace

from pyro_moe import evaluation
from pyro_moe.evaluation.traces import batches, observed_sites
from pyro_moe.fitted import Fit, strange_rows_expected, weighted_mean
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.handlers import annotated
from pyro_moe.inference.objectives import (
    LOSSES,
    MarginalELBO,
    has_temperatures,
    objective,
)
from pyro_moe.inference.traces import enumerated_traces, layers, log_assignment, marginal
from pyro_moe.rows import Data, has_target
from pyro_moe.validation import empty, starving


@dataclass(frozen=True)
class Health:
    r"""How the components of a fitted story share the rows.

    Attributes:
        shares: :math:`\bar g_k`, the mean gate over rows, shape (K,).
        num_rows: N, the number of rows, or the sum of their weights.
        x_dim: D.
        entropy: Mean entropy of the gate over rows, in nats. It is 0 if every assignment is
            certain, and log K if every assignment is uniform.
        disagreement: Mean over rows of KL(q(c|x) ‖ p(c|z)), in nats: the divergence of the
            guide's assignment from the model's given the same z. None if the model lacks ``c`` or
            ``z``, or the guide lacks ``c``.
        objective_gap: The training objective at its last temperature minus the marginal ELBO, in
            nats per row. It is positive if the objective overstates the bound. None for
            objectives given as objects, and without training.
        overlap: Mean entropy of p(c|x, y) over rows, in nats, that of the gate where y is not
            known; None for rows without targets. With y known it, not the gate, tells components
            apart.
    """

    shares: torch.Tensor
    num_rows: float
    x_dim: int
    entropy: float
    disagreement: float | None
    objective_gap: float | None
    overlap: float | None = None

    @property
    def effective_components(self) -> float:
        r"""The exponential of the shares' entropy, :math:`e^{-\sum_k \bar g_k \log \bar g_k}`."""
        return float(torch.special.entr(self.shares).sum().exp())

    @property
    def dead(self) -> list[int]:
        """Components with an expected count of less than half a row."""
        return empty(self.shares * self.num_rows)

    @property
    def starving(self) -> list[int]:
        """Components with less than a tenth of an equal share and fewer than D + 1 rows."""
        return starving(self.shares * self.num_rows, self.x_dim)

    def warnings(self) -> list[str]:
        """Problems of the gate, one sentence each."""
        size = len(self.shares)
        found = []
        if self.dead:
            found.append(f"components without rows: {', '.join(map(str, self.dead))}")
        if self.starving:
            shares = ", ".join(f"{k} ({self.shares[k]:.2%})" for k in self.starving)
            found.append(f"components with few rows: {shares}")
        what, entropy = "the gate is uncertain: its mean entropy", self.entropy
        if self.overlap is not None:
            what, entropy = "components are hardly told apart: the mean entropy", self.overlap
            what += " of p(component | x, y)"
        if size > 1 and entropy > 0.5 * math.log(size):
            found.append(
                f"{what} is {entropy:.2f} nats per row; the maximum is {math.log(size):.2f}"
            )
        if self.disagreement is not None and self.disagreement > 0.5:
            found.append(
                f"guide and model disagree on components: the mean of KL(q(c|x) ‖ p(c|z)) is "
                f"{self.disagreement:.2f} nats per row"
            )
        return found


@strange_rows_expected()
def health(fit: Fit, data: Data | None = None, *, num_samples: int = 8, seed: int = 0) -> Health:
    """Compute diagnostics of the gate: component shares, entropy, agreement with the model.

    Rows count as many times as their weights say, see `Fit.weights_of`.

    Args:
        fit: A fitted story with a site ``c``.
        data: Rows of the kind that was fitted; the training rows if None.
        num_samples: Draws of z, a multiple of 8.
        seed: Seed of the draws.

    Raises:
        DataError: If the data does not match what was fitted, or is None for a fit that was
            restored without its training rows.
        SiteError: If neither guide nor model has a site ``c``.

    Example:
        >>> import pyro_moe
        >>> from pyro_moe import models
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> x[:, 0] += 8 * (torch.arange(300) % 3 == 0)
        >>> story = models.GMM(x_dim=2, num_components=2)
        >>> fit = pyro_moe.fit(story.model, story.guide, x, loss="em", epochs=30, progress=False)
        >>> sorted(round(share, 2) for share in health(fit).shares.tolist())
        [0.33, 0.67]
    """
    columns = fit.training_rows if data is None else fit.as_tensors(data)
    g = evaluation.gate(fit, columns[0], num_samples=num_samples, seed=seed)
    weights = fit.weights_of(data)
    w = None if weights is None else weights.to(g)
    q = posterior_of(fit, data, g, seed=seed)
    return Health(
        shares=weighted_mean(g, weights).to(g),
        num_rows=len(g) if weights is None else float(weights.sum()),
        x_dim=fit.x_dim,
        entropy=_entropy(g, weights),
        disagreement=_disagreement(fit, columns, w, num_samples, seed),
        objective_gap=_objective_gap(fit, columns, w, num_samples, seed),
        overlap=None if q is None else _entropy(q, weights),
    )


def posterior_of(
    fit: Fit, data: Data | None, gate: torch.Tensor, *, seed: int = 0
) -> torch.Tensor | None:
    """The probability of each component given x and y, shape (N, K), or None without targets.

    It is that of the group, if rows have groups, and the gate where y is not known.

    Args:
        fit: A fitted story with a site ``c``.
        data: Rows; the training rows if None.
        gate: The gate of the rows, shape (N, K).
        seed: Seed of the draws of `evaluation.predict`.
    """
    given = fit.training_rows if data is None else data
    x, *others = fit.as_tensors(given)
    if not others or "y" not in observed_sites(fit):
        return None
    known = has_target(others[0])
    if bool(known.all()):
        return evaluation.posterior(fit, given, seed=seed)
    groups = fit.groups_of(given)
    found = gate.double().clone()
    if bool(known.any()):
        prediction = evaluation.predict(fit, x[known], seed=seed)
        own = None if groups is None else groups[known.cpu()]
        found[known] = prediction.posterior(others[0][known].cpu(), own).to(found)
    return found


def _entropy(shares: torch.Tensor, weights: torch.Tensor | None) -> float:
    """The mean entropy over rows."""
    return float(weighted_mean(torch.special.entr(shares).sum(-1), weights))


def _disagreement(
    fit: Fit,
    columns: tuple[torch.Tensor, ...],
    weights: torch.Tensor | None,
    num_samples: int,
    seed: int,
) -> float | None:
    w = torch.ones_like(columns[0][:, 0]) if weights is None else weights
    total, rows = 0.0, 0.0
    with torch.no_grad(), reproducible(seed):
        for *batch, w_batch in batches((*columns, w)):
            for _ in range(num_samples):
                model_trace, guide_trace = enumerated_traces(
                    fit.model, fit.guide, batch[0], *(None for _ in batch[1:])
                )
                log_q, log_p = log_assignment(guide_trace), _assignment_given_code(model_trace)
                if log_q is None or log_p is None:
                    return None
                terms = (log_q - log_p).masked_fill(log_q.isneginf(), 0.0)  # 0 log 0 = 0
                total += float((w_batch * (log_q.exp() * terms).sum(0)).sum())
                rows += float(w_batch.sum())
    return total / rows


def _assignment_given_code(model_trace: Trace) -> torch.Tensor | None:
    """Log p(c = k|z), shape (K, N), or None for a model without ``c`` and ``z``."""
    nodes, dims = model_trace.nodes, layers(model_trace)
    if "c" not in dims or "z" not in nodes:
        return None
    joint = nodes["z"]["log_prob"] + sum(nodes[name]["log_prob"] for name in dims)
    return marginal(joint, dims["c"]).log_softmax(0)


def _objective_gap(
    fit: Fit,
    columns: tuple[torch.Tensor, ...],
    weights: torch.Tensor | None,
    num_samples: int,
    seed: int,
) -> float | None:
    loss = fit.settings["loss"]
    if loss in ("marginal", "em"):
        return 0.0
    if loss not in LOSSES or not fit.history:
        return None
    elbo, treatment = objective(loss)
    programs = fit.programs
    both = programs.model, programs.guide
    given = fit.settings.get("temperature", "a function")  # which a run folder does not hold
    as_written = given is None and not has_temperatures(*both)
    treated = treatment(*both, fit.history[-1]["temperature"], as_written)
    marginal = MarginalELBO()
    names = () if weights is None else ("weights",)
    annotated_both, annotated_treated = (
        [annotated(program, names) for program in pair] for pair in (both, treated)
    )
    columns = columns if weights is None else (*columns, weights)
    total = 0.0
    with torch.no_grad(), reproducible(seed), running(programs.store):
        for batch in batches(columns):
            for _ in range(num_samples):
                total += marginal.loss(*annotated_both, *batch)
                total -= elbo.loss(*annotated_treated, *batch)
    number = len(columns[0]) if weights is None else float(weights.sum())
    return total / num_samples / number
