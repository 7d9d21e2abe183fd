"""Expectation maximization for stories whose parts have an M-step."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple

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
from .rows import OnDisk, empty
from .steps import Processes
from .svi import Data
from .traces import compute_log_prob, row_log_weights

ITERATIONS = 1000
TOLERANCE = 1e-3
ROWS = 2**15
VALUES = 2**22
SHARED = 10_000  # rows that are worth a message

Columns = tuple[torch.Tensor | None, ...]
Read = Callable[[torch.Tensor, torch.Tensor | None], Any]


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

    In a process group of `torch.distributed` each process takes its share of many rows, and the
    sums of both steps are those of all rows. All processes are given the same rows and seed.

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
        checked, processes = False, Processes.running()
        processes.expect_alike("rows", self.data)
        processes.expect_alike("parameters", [p.flatten() for p in self.parameters().values()])
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
            r of the rows of this process, shape (N, K); the log-likelihood, a scalar; and
            Σ_nk log p(d_n, c_n = k), a scalar.
        """
        own = self._own
        responsibilities = sums = self.data[0].new_empty(0)
        first = 0

        def read(log_joint: torch.Tensor, scale: torch.Tensor | None) -> None:
            nonlocal responsibilities, first, sums
            if not first:
                responsibilities, sums = _like(own[0], log_joint), log_joint.new_zeros(2)
            log_sum, last = log_joint.logsumexp(0), first + log_joint.shape[1]
            responsibilities[first:last] = torch.exp(log_joint - log_sum).T
            first = last
            terms = log_sum if scale is None else scale * log_sum
            sums += torch.stack([terms.sum(), log_joint.sum()])

        with torch.no_grad():
            self._by_block(read, own)
        if own is not self.data:
            Processes.running().add([sums])
        return responsibilities, sums[0], sums[1]

    def m_step(self, responsibilities: torch.Tensor) -> None:
        """Update the parameters given responsibilities (N, K), and the rows of the prior.

        In a process group the responsibilities are those of all rows, or of the rows of this
        process.
        """
        number = len(self.data[0])
        own = self.data if len(responsibilities) == number else self._own
        with Processes.rows_shared(own is not self.data):
            weights, points, data = with_prior_rows(
                self.prior, responsibilities, own[0], own, seed=self.seed, num_rows=number
            )
            maximize(self.model, weights, points, *data)

    @property
    def _own(self) -> Data:
        """The rows of this process; all rows if there are few, or if they are not independent."""
        processes, number = Processes.running(), len(self.data[0])
        if processes.size == 1 or number < SHARED or len(self.data) > 3 or self.prior.null_rows:
            return self.data
        rows = processes.part(number)
        return tuple(c.part(rows) if isinstance(c, OnDisk) else c[rows] for c in self.data)

    def log_posterior(self) -> torch.Tensor:
        r"""The objective of all rows with its gradients, a scalar, in nats.

        .. math:: \sum_n w_n \log p_\theta(d_n) + \log p(\theta)
        """
        log_joint, scale = self._joint(self.data)
        return (scale * log_joint.logsumexp(0)).sum() + self._log_prior(log_joint.sum())

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

    def _log_prior(self, joint: torch.Tensor) -> torch.Tensor:
        """Log p(θ) given Σ_nk log p(d, c=k) of all rows, a scalar."""
        sums = [joint]
        if self.prior.null_rows and len(self.data) > 1:
            copies = (without_effect(self.data, self.seed, n) for n in range(PERMUTATIONS))
            sums += [sum(self._by_block(_sum, copy)) for copy in copies]
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

        If the model gives the rows of a group one assignment, it is that of the whole group.

        Args:
            data: Other rows than those of the run. None stands for an unknown target.
        """
        with torch.no_grad():
            return self._joint(self.data if data is None else data)[0]

    def _joint(
        self, columns: Columns, rows_at_once: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p(d, c=k) of each row, shape (K, N), and the weight of each row, shape (N,)."""
        found = self._by_block(_and_weights, columns, rows_at_once)
        joints, scales = zip(*found, strict=True)
        return torch.cat(joints, -1), torch.cat(scales)

    def _by_block(self, read: Read, columns: Any, rows_at_once: int | None = None) -> list[Any]:
        """What is read off log p(d, c=k) and the weights of one block of rows after the other.

        With groups all rows are one block, because the rows of a group may lie in several.
        """
        rows = rows_at_once or max(1, min(ROWS, VALUES // max(columns[0][:1].numel(), 1)))
        parts = (repeat(None) if c is None else c.split(rows) for c in columns)
        batches = zip(*parts, strict=False)
        with running(self.store):
            if self._is_direct(columns):
                return [read(self._direct(*batch), None) for batch in batches]
            found, grouped = [], []
            with reproducible(self.seed):
                for block in (self._log_joint(*batch) for batch in batches):
                    if block.groups is None:
                        found.append(read(block.log_joint, block.scale))
                    else:
                        grouped.append(block)
        return [read(*_of_groups(grouped))] if grouped else found

    def _is_direct(self, columns: Columns) -> bool:
        """Whether the story's own log p(d, c=k) is that of the model, see `HasJoint`."""
        if max(len(columns), len(self.data)) > 2 or beside(self.model, "log_joint") is None:
            return False
        if self.direct is None:
            some = [column[:ROWS] for column in self.data]
            with torch.no_grad(), reproducible(self.seed):
                one, other = self._log_joint(*some), self._direct(*some)
            plain = one.scale is None and one.groups is None
            same = plain and one.log_joint.shape == other.shape
            self.direct = same and torch.allclose(one.log_joint, other, 1e-9, 1e-9, equal_nan=True)
        return self.direct

    def _direct(self, *batch: torch.Tensor | None) -> torch.Tensor:
        return beside(self.model, "log_joint")(*batch).double().mT

    def _log_joint(self, *batch: torch.Tensor | None) -> "_Block":
        """Log p(d, c=k), by Bayes' rule from the model alone: nothing but c is latent."""
        with Enumerate():
            trace = prune_subsample_sites(poutine.trace(self.model).get_trace(*batch))
        latent = [name for name in trace.stochastic_nodes if name not in ("c", "y")]
        if latent:
            raise SiteError(f"expected no latent site besides 'c' for EM; got {latent[0]!r}")
        compute_log_prob(trace)
        log_joint = row_log_weights(trace, Trace())
        if "c" not in trace.nodes:
            return _Block(log_joint)
        site = trace.nodes["c"]
        log_c, groups = site["unscaled_log_prob"].to(log_joint), site["infer"].get("groups")
        if not isinstance(site["scale"], torch.Tensor) and site["scale"] == 1:
            return _Block(log_joint, None, log_c.expand(log_joint.shape), groups)
        scale = torch.as_tensor(site["scale"]).to(log_joint).expand(log_joint.shape[1])
        return _Block(log_joint / scale, scale, log_c.expand(log_joint.shape), groups)

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


class _Block(NamedTuple):
    """Log-probabilities of B rows, and what the model says of its rows.

    Attributes:
        log_joint: Log p(d, c=k), shape (K, B).
        scale: The weights of the rows, shape (B,), or None for weights of one.
        log_c: Log p(c=k), shape (K, B), or None for a model without ``c``.
        groups: Numbers of groups, shape (B,), or None.
    """

    log_joint: torch.Tensor
    scale: torch.Tensor | None = None
    log_c: Any = None
    groups: Any = None


def _of_groups(blocks: list[_Block]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p(d, c=k) of the whole group of each row, (K, N), and each row's share of its group.

    The log-probability of c is the mean of those of the group's rows.
    """
    joints, scales = zip(*(_and_weights(*block[:2]) for block in blocks), strict=True)
    log_joint, scale = torch.cat(joints, -1), torch.cat(scales)
    log_c = torch.cat([block.log_c for block in blocks], -1)
    labels, place = torch.cat([block.groups for block in blocks]).unique(return_inverse=True)
    share = scale / scale.new_zeros(len(labels)).index_add(0, place, scale)[place]
    terms = share * log_c + scale * (log_joint - log_c)
    return terms.new_zeros(len(terms), len(labels)).index_add(1, place, terms)[:, place], share


def _like(rows: torch.Tensor, log_joint: torch.Tensor) -> torch.Tensor:
    """An empty tensor (N, K), on disk for rows on disk."""
    shape = (len(rows), len(log_joint))
    if isinstance(rows, OnDisk):
        return empty(shape, log_joint.dtype)
    return log_joint.new_empty(*reversed(shape)).T


def _and_weights(
    log_joint: torch.Tensor, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return log_joint, torch.ones_like(log_joint[0]) if scale is None else scale


def _sum(log_joint: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    return log_joint.sum()


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
