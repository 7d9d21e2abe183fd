"""Expectation maximization for stories whose parts have an M-step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import torch

from .context import all_or_nothing, late_imports, reproducible, running
from .errors import SiteError
from .prior import (
    FLAT,
    PERMUTATIONS,
    Prior,
    log_ridge,
    prior_rows,
    with_prior_rows,
    with_ridge,
    without_effect,
)
from .programs import Program, isolated, learned, modules
from .protocols import Maximizable, MixturePart, MStep
from .svi import Data
from .traces import enumerated_traces, row_log_weights

ITERATIONS = 1000
TOLERANCE = 1e-3


@dataclass
class EM:
    r"""A run of EM on all rows. One iteration is one epoch.

    .. math:: r_{nk} = p_\theta(c_n = k \mid d_n), \quad
              \theta \leftarrow \arg\max_\theta \sum_{nk} r_{nk} \log p_\theta(d_n, c_n = k)

    with d_n the observed columns of row n: x, or x and y. For a model of y given x the densities
    are conditional on x. A model may scale its rows by weights, with `pyro.poutine.scale`, and may
    give the rows of a group one c, with ``infer={"groups": ...}`` at its site ``c``. The E-step is
    Bayes' rule on the model's log-probabilities at each k.
    The M-step is the story's ``m_step``, or else the ``maximize`` of its mixtures, see
    `maximize`, on the rows and those of the prior. The log-likelihood plus the log-density of the
    prior does not decrease from one iteration to the next, up to the ridge and shrinkage of
    covariances.

    Attributes:
        model: A Pyro program without latent variables besides ``c``.
        guide: Its guide.
        data: Tensors of N rows each.
        epochs: Maximum number of iterations.
        seed: Seed of the initial parameters. EM itself is deterministic.
        prior: The prior, see `inference.prior`.
        tolerance: EM has converged when all further iterations together are expected to increase
            the objective of all rows by less, in nats.
        history: One record for each iteration: epoch, elbo (the log-likelihood before the M-step,
            nats per row), objective (the same with the prior), seconds.
        store: The state of Pyro's parameter store that belongs to this run.
    """

    model: Program
    guide: Program
    data: Data
    epochs: int
    seed: int
    prior: Prior = FLAT
    tolerance: float = TOLERANCE
    history: list[dict[str, float]] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=lambda: {"params": {}, "constraints": {}})

    def __post_init__(self) -> None:
        """Set the ridge of the M-steps to that of the prior."""
        with_ridge(self.prior, self.model)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Iterate until convergence or the last epoch, yielding each iteration's record.

        An interrupted iteration is undone.

        Raises:
            SiteError: If there is a latent site besides ``c``.
            ValueError: If a parameter belongs to no part that has an M-step.
        """
        while len(self.history) < self.epochs and not self.converged:
            started = time.perf_counter()
            with torch.no_grad():
                log_joint, scale = self._joint(self.data)
                elbo = (scale * log_joint.logsumexp(0)).mean().item()
                log_prior = self._log_prior(log_joint).item()
            self.check_steps()
            with all_or_nothing(self.store, self.model):
                self.m_step(log_joint.softmax(0).T)
            record = {
                "epoch": len(self.history) + 1,
                "elbo": elbo,
                "objective": elbo + log_prior / len(self.data[0]),
                "seconds": time.perf_counter() - started,
            }
            self.history.append(record)
            yield record

    def m_step(self, responsibilities: torch.Tensor) -> None:
        """Update the parameters given responsibilities (N, K), and the rows of the prior."""
        x = self.data[0]
        rows = with_prior_rows(self.prior, responsibilities, x, self.data, seed=self.seed)
        weights, points, data = rows
        maximize(self.model, weights, points, *data)

    def log_posterior(self) -> torch.Tensor:
        r"""The objective of all rows with its gradients, a scalar, in nats.

        .. math:: \sum_n w_n \log p_\theta(d_n) + \log p(\theta)
        """
        log_joint, scale = self._joint(self.data)
        return (scale * log_joint.logsumexp(0)).sum() + self._log_prior(log_joint)

    def log_likelihoods(self) -> torch.Tensor:
        """The terms of the log-likelihood, with gradients, shape (N,).

        The term of a group of rows with one c is shared equally among its rows.
        """
        log_joint, scale = self._joint(self.data)
        return scale * log_joint.logsumexp(0)

    def shares(self) -> torch.Tensor:
        """The weight of each row, or its share of its group, shape (N,)."""
        with torch.no_grad():
            return self._joint(self.data)[1]

    def _log_prior(self, log_joint: torch.Tensor) -> torch.Tensor:
        """Log p(θ) given log p(d, c=k) of all rows, shape (K, N)."""
        joints = [log_joint]
        if self.prior.null_rows and len(self.data) > 1:
            copies = (without_effect(self.data, self.seed, n) for n in range(PERMUTATIONS))
            joints += [self._joint(copy)[0] for copy in copies]
        return prior_rows(self.prior, joints) + log_ridge(self.model)

    def check_steps(self) -> None:
        """Check that every parameter belongs to a part that has an M-step.

        Raises:
            ValueError: If one does not.
        """
        parts = [part for outermost in modules(self.model) for part in outermost.modules()]
        stepping = [part for part in parts if isinstance(part, Maximizable)]
        reached = {id(p) for part in stepping for p in part.parameters()}
        for name, value in self.parameters().items():
            if id(value) not in reached:
                raise ValueError(
                    f"expected parts with a method 'maximize' for EM; got none for {name!r}"
                )

    def log_joint(
        self, data: tuple[torch.Tensor | None, ...] | None = None, *, rows_at_once: int = 4096
    ) -> torch.Tensor:
        """Log p(d, c=k) of each row's columns d, shape (K, N).

        If the model gives the rows of a group one assignment, it is that of the whole group.

        Args:
            data: Other rows than those of the run. None stands for an unknown target.
            rows_at_once: Rows in a minibatch.
        """
        with torch.no_grad():
            return self._joint(self.data if data is None else data, rows_at_once)[0]

    def _joint(
        self, columns: tuple[torch.Tensor | None, ...], rows_at_once: int = 4096
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p(d, c=k) of each row, shape (K, N), and the weight of each row, shape (N,)."""
        parts = (repeat(None) if c is None else c.split(rows_at_once) for c in columns)
        batches = zip(*parts, strict=False)
        with running(self.store), reproducible(self.seed):
            found = [self._log_joint(*batch) for batch in batches]
        assignment, others, scale, groups = zip(*found, strict=True)
        log_c, log_d = torch.cat(assignment, -1), torch.cat(others, -1)
        if groups[0] is None:
            return log_c + log_d, torch.cat(scale)
        return _of_groups(log_c, log_d, torch.cat(scale), torch.cat(groups))

    def _log_joint(self, *batch: torch.Tensor | None) -> tuple[Any, ...]:
        """Log p(c=k) and log p(d|c=k), each (K, N); the weights of rows; their groups, or None."""
        model_trace, guide_trace = enumerated_traces(self.model, self.guide, *batch)
        latent = [name for name in model_trace.stochastic_nodes if name not in ("c", "y")]
        if latent:
            raise SiteError(f"expected no latent site besides 'c' for EM; got {latent[0]!r}")
        joint = row_log_weights(model_trace, guide_trace)
        if "c" not in model_trace.nodes:
            return torch.zeros_like(joint), joint, torch.ones_like(joint[0]), None
        site = model_trace.nodes["c"]
        scale = torch.as_tensor(site["scale"]).to(joint).expand(joint.shape[1])
        log_c = site["unscaled_log_prob"].to(joint).expand(joint.shape)
        return log_c, joint / scale - log_c, scale, site["infer"].get("groups")

    def copy(self, *, epochs: int) -> "EM":
        """An independent copy of this run with another number of epochs, to be continued."""
        model, guide, store = isolated(self.model, self.guide, self.store)
        return replace(
            self,
            model=model,
            guide=guide,
            store=store,
            history=list(self.history),
            epochs=epochs,
        )

    def parameters(self) -> dict[str, torch.Tensor]:
        """The learned tensors by name."""
        return learned(self.store, self.model, self.guide)

    @property
    def converged(self) -> bool:
        r"""Whether the objective is expected to increase by less than the tolerance.

        .. math:: l_\infty - l_t \approx \frac{a}{1 - a} (l_t - l_{t-1}), \quad
                  a = \frac{l_t - l_{t-1}}{l_{t-1} - l_{t-2}}

        This is Aitken's extrapolation of the linear convergence of EM.
        """
        if len(self.history) < 3:
            return False
        first, second, third = (record["objective"] for record in self.history[-3:])
        before, last = second - first, third - second
        if last < 1e-13 * (1.0 + abs(third)):  # rounding errors
            return self.tolerance >= 0
        rate = last / before if before > 0 else 1.0
        return rate < 1 and len(self.data[0]) * last * max(rate / (1 - rate), 1.0) < self.tolerance


def _of_groups(
    log_c: torch.Tensor, log_d: torch.Tensor, scale: torch.Tensor, groups: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p(d, c=k) of the whole group of each row, (K, N), and each row's share of its group.

    The log-probability of c is the mean of those of the group's rows.
    """
    labels, place = groups.unique(return_inverse=True)
    share = scale / scale.new_zeros(len(labels)).index_add(0, place, scale)[place]
    terms = share * log_c + scale * log_d
    return terms.new_zeros(len(terms), len(labels)).index_add(1, place, terms)[:, place], share


def maximize(
    model: Program, responsibilities: torch.Tensor, points: torch.Tensor, *data: torch.Tensor
) -> None:
    """Update the parameters of a model by its M-step.

    A story that is an `MStep` is updated by its ``m_step``. In other stories every `MixturePart`
    is updated by its ``maximize``.

    Args:
        model: A Pyro model.
        responsibilities: r, shape (N, K).
        points: The points of the mixture, x or the codes E[z|x], shape (N, L).
        data: The columns that are fitted.
    """
    with late_imports():
        for outermost in modules(model):
            if isinstance(outermost, MStep):
                outermost.m_step(responsibilities, points, *data)
                continue
            for part in outermost.modules():
                if isinstance(part, MixturePart):
                    part.maximize(points, responsibilities)
