"""Expectation maximization for stories whose parts have an M-step."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from .context import all_or_nothing, late_imports, reproducible, running
from .errors import SiteError
from .handlers import Enumerate
from .prior import (
    FLAT,
    PERMUTATIONS,
    Prior,
    log_ridge_of,
    penalized,
    prior_rows,
    with_prior_rows,
    with_ridge,
    without_effect,
)
from .programs import Program, beside, isolated, learned, modules
from .protocols import Maximizable, MixturePart, MStep, Penalized
from .svi import Data
from .traces import compute_log_prob, row_log_weights

ITERATIONS = 1000
TOLERANCE = 1e-3
ROWS = 2**15
VALUES = 2**22

Columns = tuple[torch.Tensor | None, ...]


@dataclass
class EM:
    r"""A run of EM on all rows. One iteration is one epoch.

    .. math:: r_{nk} = p_\theta(c_n = k \mid d_n), \quad
              \theta \leftarrow \arg\max_\theta \sum_{nk} r_{nk} \log p_\theta(d_n, c_n = k)

    with d_n the observed columns of row n: x, or x and y. For a model of y given x the densities
    are conditional on x. The E-step is Bayes' rule on the model's log-probabilities at each k.
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
        direct: Whether the story's own joint density is that of the model; None if not known yet.
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
    direct: bool | None = None

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
        checked = False
        while len(self.history) < self.epochs and not self.converged:
            started = time.perf_counter()
            with late_imports():
                responsibilities, evidence, joint = self.e_step()
                elbo = evidence.item() / len(self.data[0])
                with torch.no_grad():
                    log_prior = self._log_prior(joint).item()
                if not checked:
                    self.check_steps()
                    checked = True
                with all_or_nothing(self.store, self.model):
                    self.m_step(responsibilities)
            record = {
                "epoch": len(self.history) + 1,
                "elbo": elbo,
                "objective": elbo + log_prior / len(self.data[0]),
                "seconds": time.perf_counter() - started,
            }
            self.history.append(record)
            yield record

    def e_step(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        r"""The responsibilities, and sums over all rows.

        Returns:
            r, shape (N, K); the log-likelihood, a scalar; and Σ_nk log p(d_n, c_n = k), a scalar.
        """
        responsibilities = self.data[0].new_empty(0)
        first = 0

        def read(log_joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal responsibilities, first
            if not first:
                shape = (len(log_joint), len(self.data[0]))
                responsibilities = log_joint.new_empty(shape)
            log_sum, last = log_joint.logsumexp(0), first + log_joint.shape[1]
            torch.exp(log_joint - log_sum, out=responsibilities[:, first:last])
            first = last
            return log_sum.sum(), log_joint.sum()

        with torch.no_grad():
            sums = self._by_block(read, self.data)
        evidence, joint = (torch.stack(each).sum() for each in zip(*sums, strict=True))
        return responsibilities.T, evidence, joint

    def m_step(self, responsibilities: torch.Tensor) -> None:
        """Update the parameters given responsibilities (N, K), and the rows of the prior."""
        x = self.data[0]
        rows = with_prior_rows(self.prior, responsibilities, x, self.data, seed=self.seed)
        weights, points, data = rows
        maximize(self.model, weights, points, *data)

    def log_posterior(self) -> torch.Tensor:
        r"""The objective of all rows with its gradients, a scalar, in nats.

        .. math:: \sum_n \log p_\theta(d_n) + \log p(\theta)
        """
        log_joint = self._joint(self.data)
        return log_joint.logsumexp(0).sum() + self._log_prior(log_joint.sum())

    def _log_prior(self, joint: torch.Tensor) -> torch.Tensor:
        """Log p(θ) given Σ_nk log p(d, c=k) of all rows, a scalar."""
        sums = [joint]
        if self.prior.null_rows and len(self.data) > 1:
            copies = (without_effect(self.data, self.seed, n) for n in range(PERMUTATIONS))
            sums += [sum(self._by_block(torch.sum, copy)) for copy in copies]
        means = [each / len(self.data[0]) for each in sums]
        return prior_rows(self.prior, means) + log_ridge_of(self._penalized)

    @cached_property
    def _penalized(self) -> list[Penalized]:
        return penalized(self.model)

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

    def log_joint(self, data: Columns | None = None) -> torch.Tensor:
        """Log p(d, c=k) of each row's columns d, shape (K, N).

        Args:
            data: Other rows than those of the run. None stands for an unknown target.
        """
        with torch.no_grad():
            return self._joint(self.data if data is None else data)

    def _joint(self, columns: Columns) -> torch.Tensor:
        return torch.cat(self._by_block(lambda log_joint: log_joint, columns), -1)

    def _by_block(self, read: Callable[[torch.Tensor], Any], columns: Any) -> list[Any]:
        """What is read off log p(d, c=k) of one block of rows after the other, shape (K, B)."""
        rows = max(1, min(ROWS, VALUES // columns[0][:1].numel()))
        parts = (repeat(None) if c is None else c.split(rows) for c in columns)
        batches = zip(*parts, strict=False)
        with running(self.store):
            if self._is_direct():
                return [read(self._direct(*batch)) for batch in batches]
            with reproducible(self.seed):
                return [read(self._log_joint(*batch)) for batch in batches]

    def _is_direct(self) -> bool:
        """Whether the story's own log p(d, c=k) is that of the model, see `HasJoint`."""
        if self.direct is None and beside(self.model, "log_joint") is not None:
            some = [column[:ROWS] for column in self.data]
            with torch.no_grad(), reproducible(self.seed):
                one, other = self._log_joint(*some), self._direct(*some)
            same = one.shape == other.shape
            self.direct = same and torch.allclose(one, other, 1e-9, 1e-9, equal_nan=True)
        return bool(self.direct)

    def _direct(self, *batch: torch.Tensor | None) -> torch.Tensor:
        return beside(self.model, "log_joint")(*batch).double().mT

    def _log_joint(self, *batch: torch.Tensor | None) -> torch.Tensor:
        """Log p(d, c=k), by Bayes' rule from the model alone: nothing but c is latent."""
        with Enumerate():
            trace = prune_subsample_sites(poutine.trace(self.model).get_trace(*batch))
        latent = [name for name in trace.stochastic_nodes if name not in ("c", "y")]
        if latent:
            raise SiteError(f"expected no latent site besides 'c' for EM; got {latent[0]!r}")
        compute_log_prob(trace)
        return row_log_weights(trace, Trace())

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
