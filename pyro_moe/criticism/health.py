"""The health of a gate: who has rows, how sure it is, and whether guide and model agree."""

import math
from dataclasses import dataclass

import torch
from pyro.poutine import Trace

from pyro_moe import evaluation
from pyro_moe.evaluation.traces import batches
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.objectives import LOSSES, MarginalELBO, objective
from pyro_moe.inference.traces import enumerated_traces, log_assignment
from pyro_moe.rows import Data
from pyro_moe.validation import empty, starving


@dataclass(frozen=True)
class Health:
    r"""How the components of a fitted story share the rows.

    Attributes:
        shares: :math:`\bar g_k`, the mean gate over rows, shape (K,).
        num_rows: N.
        x_dim: D.
        entropy: Mean over rows of the gate's entropy, nats: 0 if it is certain everywhere, log K
            if it knows nothing.
        disagreement: Mean over rows of KL(q(c|x) ‖ p(c|z)), nats: how far the guide's
            assignment is from that of the model given the same z. None without both.
        objective_gap: The objective that was trained on, at its last temperature, less the
            marginal ELBO, nats per row: what the objective promises beyond the bound, or costs
            below it. None for objectives given as objects, and without training.
    """

    shares: torch.Tensor
    num_rows: int
    x_dim: int
    entropy: float
    disagreement: float | None
    objective_gap: float | None

    @property
    def effective_components(self) -> float:
        r"""The exponential of the shares' entropy, :math:`e^{-\sum_k \bar g_k \log \bar g_k}`."""
        return float(torch.special.entr(self.shares).sum().exp())

    @property
    def dead(self) -> list[int]:
        """Components with less than half a row."""
        return empty(self.shares * self.num_rows)

    @property
    def starving(self) -> list[int]:
        """Components with less than a tenth of an equal share, and fewer than D + 1 rows."""
        return starving(self.shares * self.num_rows, self.x_dim)

    def warnings(self) -> list[str]:
        """What deserves a look, in words."""
        size = len(self.shares)
        found = []
        if self.dead:
            found.append(f"no rows for component {_listed(self.dead)}")
        if self.starving:
            shares = ", ".join(f"{self.shares[k]:.2%}" for k in self.starving)
            found.append(f"few rows for component {_listed(self.starving)}: {shares}")
        if size > 1 and self.entropy > 0.5 * math.log(size):
            found.append(
                f"the gate is unsure: its entropy is {self.entropy:.2f} nats per row on average, "
                f"of at most {math.log(size):.2f}"
            )
        if self.disagreement is not None and self.disagreement > 0.5:
            found.append(
                f"guide and model disagree on the component: KL(q(c|x) ‖ p(c|z)) is "
                f"{self.disagreement:.2f} nats per row on average"
            )
        return found


def health(fit: Fit, data: Data | None = None, *, num_samples: int = 8, seed: int = 0) -> Health:
    """How the components of a fitted story share rows, and how sure the gate is of it.

    Args:
        fit: A fitted story with a site ``c``.
        data: Rows of the kind that was fitted; the training rows if None.
        num_samples: Draws of z, a multiple of 8.
        seed: Seed of the draws.

    Raises:
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
    columns = fit.data if data is None else fit.as_tensors(data)
    g = evaluation.gate(fit, columns[0], num_samples=num_samples, seed=seed)
    return Health(
        shares=g.mean(0),
        num_rows=len(g),
        x_dim=fit.x_dim,
        entropy=float(torch.special.entr(g).sum(-1).mean()),
        disagreement=_disagreement(fit, columns, num_samples, seed),
        objective_gap=_objective_gap(fit, columns, num_samples, seed),
    )


def _disagreement(
    fit: Fit, columns: tuple[torch.Tensor, ...], num_samples: int, seed: int
) -> float | None:
    total, rows = 0.0, 0
    with torch.no_grad(), reproducible(seed):
        for batch in batches(fit, columns):
            for _ in range(num_samples):
                model_trace, guide_trace = enumerated_traces(
                    fit.model, fit.guide, batch[0], *(None for _ in batch[1:])
                )
                log_q, log_p = log_assignment(guide_trace), _assignment_given_code(model_trace)
                if log_q is None or log_p is None:
                    return None
                total += float((log_q.exp() * (log_q - log_p)).sum())
                rows += len(batch[0])
    return total / rows


def _assignment_given_code(model_trace: Trace) -> torch.Tensor | None:
    """Log p(c = k|z), shape (K, N), or None for a model without ``c`` and ``z``."""
    nodes = model_trace.nodes
    if "c" not in nodes or "z" not in nodes:
        return None
    return (nodes["c"]["log_prob"] + nodes["z"]["log_prob"]).log_softmax(0)


def _objective_gap(
    fit: Fit, columns: tuple[torch.Tensor, ...], num_samples: int, seed: int
) -> float | None:
    loss = fit.settings["loss"]
    if loss in ("marginal", "em"):
        return 0.0
    if loss not in LOSSES or not fit.history:
        return None
    elbo, treatment = objective(loss)
    treated = treatment(fit.model, fit.guide, fit.history[-1]["temperature"], False)
    marginal = MarginalELBO()
    total = 0.0
    with torch.no_grad(), reproducible(seed):
        for batch in batches(fit, columns):
            for _ in range(num_samples):
                total += marginal.loss(fit.model, fit.guide, *batch)
                total -= elbo.loss(*treated, *batch)
    return total / num_samples / len(columns[0])


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
