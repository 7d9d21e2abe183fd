"""Expectation maximization, for stories whose parts have a closed-form M-step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .context import all_or_nothing, reproducible, running
from .errors import SiteError
from .programs import Program, isolated, learned, modules
from .protocols import Maximizable, MixturePart, MStep
from .svi import Data
from .traces import enumerated_traces, row_log_weights


@dataclass
class EM:
    r"""A run of EM, an iteration an epoch, over all rows at once and in log space.

    .. math:: r_{nk} = p(c_n = k \mid x_n), \quad
              \theta \leftarrow \arg\max_\theta \sum_{nk} r_{nk} \log p_\theta(x_n, c_n = k)

    The E-step is Bayes' rule on the model's trace at each k. The M-step is the ``maximize(x,
    responsibilities)`` of the model's parts. The likelihood never falls, but for what keeps
    covariances positive (a ridge, shrinkage) and gates finite (a penalty on their weights).

    Attributes:
        model: A Pyro program without latent variables besides ``c``.
        guide: Its guide.
        data: Tensors of N rows each.
        epochs: Iterations at the most.
        seed: Seed of the start; EM itself draws nothing.
        tolerance: Gain in log-likelihood, nats per row, below which it has converged.
        history: One record an iteration: epoch, elbo (the log-likelihood before its M-step,
            nats per row), seconds.
        store: The state of Pyro's parameter store that belongs to this run.
    """

    model: Program
    guide: Program
    data: Data
    epochs: int
    seed: int
    tolerance: float = 1e-7
    history: list[dict[str, float]] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=lambda: {"params": {}, "constraints": {}})

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Iterate until convergence or the last epoch, yielding each iteration's record.

        An interruption goes back to the end of the last iteration.

        Raises:
            SiteError: If there is a latent site besides ``c``.
            ValueError: If a parameter belongs to no part that has an M-step.
        """
        while len(self.history) < self.epochs and not self._converged():
            started = time.perf_counter()
            log_joint = self.log_joint()
            self._check_steps()
            with all_or_nothing(self.store, self.model):
                maximize(self.model, log_joint.softmax(0).T, self.data[0], *self.data)
            record = {
                "epoch": len(self.history) + 1,
                "elbo": log_joint.logsumexp(0).mean().item(),
                "seconds": time.perf_counter() - started,
            }
            self.history.append(record)
            yield record

    def _check_steps(self) -> None:
        parts = [part for outermost in modules(self.model) for part in outermost.modules()]
        stepping = [part for part in parts if isinstance(part, Maximizable)]
        reached = {id(p) for part in stepping for p in part.parameters()}
        for name, value in self.parameters().items():
            if id(value) not in reached:
                raise ValueError(
                    f"expected parts with a method 'maximize' for EM; got none for {name!r}"
                )

    def log_joint(self, rows_at_once: int = 4096) -> torch.Tensor:
        """Log p(x, c=k) of each row, shape (K, N)."""
        batches = zip(*(column.split(rows_at_once) for column in self.data), strict=True)
        with torch.no_grad(), running(self.store), reproducible(self.seed):
            return torch.cat([self._log_joint(*batch) for batch in batches], -1)

    def _log_joint(self, *batch: torch.Tensor) -> torch.Tensor:
        traces = enumerated_traces(self.model, self.guide, *batch)
        latent = [name for name in traces[0].stochastic_nodes if name != "c"]
        if latent:
            raise SiteError(f"expected no latent site besides 'c' for EM; got {latent[0]!r}")
        return row_log_weights(*traces)

    def copy(self, *, epochs: int) -> "EM":
        """A run that goes on from here to another number of epochs, and leaves this one alone."""
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
        """The tensors that are learned, by name."""
        return learned(self.store, self.model, self.guide)

    def _converged(self) -> bool:
        if len(self.history) < 2:
            return False
        return self.history[-1]["elbo"] - self.history[-2]["elbo"] < self.tolerance


def maximize(
    model: Program, responsibilities: torch.Tensor, points: torch.Tensor, *data: torch.Tensor
) -> None:
    """Take the M-step of a model made of modules.

    A story with an `MStep` takes it itself. Of others, each `MixturePart` does.

    Args:
        model: A Pyro model.
        responsibilities: Weights, shape (N, K).
        points: What the mixture is over, x or codes, shape (N, L).
        data: The columns that were fitted.
    """
    for outermost in modules(model):
        if isinstance(outermost, MStep):
            outermost.m_step(responsibilities, points, *data)
            continue
        for part in outermost.modules():
            if isinstance(part, MixturePart):
                part.maximize(points, responsibilities)
