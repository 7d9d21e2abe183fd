"""Expectation maximization for stories whose parts have an M-step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.processes import Processes

from .context import all_or_nothing, late_imports, reproducible, running
from .errors import SiteError
from .handlers import (
    UNANNOTATED,
    Annotations,
    Enumerate,
    Incomplete,
    lacks_entries,
    where_incomplete,
)
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
from .protocols import Completes, Maximizable, MixturePart, MStep, Penalized
from .rows import OnDisk, empty
from .rows.groups import rows_in_group, shares_of_groups, sums_of_groups
from .svi import Data
from .traces import assigned_bounds, compute_log_prob, is_labeled, row_log_weights

ITERATIONS = 1000
TOLERANCE = 1e-3
ROWS = 2**15
VALUES = 2**22
SHARED = 10_000  # rows that are worth a message

Columns = tuple[torch.Tensor | None, ...]
Read = Callable[["Block"], Any]


@dataclass
class EM:
    r"""A run of EM on all rows. One iteration is one epoch.

    .. math:: r_{nk} = p_\theta(c_n = k \mid d_n), \quad
              \theta \leftarrow \arg\max_\theta \sum_{nk} r_{nk} \log p_\theta(d_n, c_n = k)

    with d_n the observed columns of row n: x, or x and y. For a model of y given x the densities
    are conditional on x. The rows may have weights, groups with one c, and known components, see
    `Annotations`. The E-step is Bayes' rule on the model's log-probabilities at each k; in rows
    whose component is known, r is as given. The M-step is the story's ``m_step``, or else the
    ``maximize`` of its mixtures, see `maximize`, on the rows and those of the prior. The
    log-likelihood plus the log-density of the prior does not decrease from one iteration to the
    next, up to the ridge and shrinkage of covariances.

    In a process group of `torch.distributed` each process takes its share of many rows, and the
    sums of both steps are those of all rows. All processes are given the same rows and seed.

    Attributes:
        model: A Pyro program without latent variables besides ``c``.
        guide: Its guide.
        data: Tensors of N rows each.
        epochs: Maximum number of iterations.
        seed: Seed of the initial parameters. EM itself is deterministic.
        prior: The prior, see `inference.prior`.
        annotations: What is known of the rows besides their data.
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
    annotations: Annotations = UNANNOTATED
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
                elbo = evidence.item() / self.num_rows
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
                "objective": elbo + log_prior / self.num_rows,
                "seconds": time.perf_counter() - started,
            }
            self.history.append(record)
            yield record

    @cached_property
    def num_rows(self) -> float:
        """N, or the sum of the weights."""
        return self.annotations.total(len(self.data[0]))

    def on(self, rows: torch.Tensor) -> "EM":
        """The run on some of its rows."""
        data = tuple(column[rows] for column in self.data)
        return replace(self, data=data, annotations=self.annotations.take(rows))

    def e_step(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        r"""The responsibilities, and sums over all rows.

        Returns:
            r of the rows of this process, shape (N, K); the log-likelihood, a scalar; and
            Σ_nk log p(d_n, c_n = k), a scalar.
        """
        own, annotations = self._own
        responsibilities = sums = self.data[0].new_empty(0)
        first = 0

        def read(block: Block) -> None:
            nonlocal responsibilities, first, sums
            log_joint = block.log_joint
            if not first:
                responsibilities, sums = _like(own[0], log_joint), log_joint.new_zeros(2)
            log_sum, last = log_joint.logsumexp(0), first + log_joint.shape[1]
            shares = torch.exp(log_joint - log_sum).T
            if block.labels is not None:
                known = is_labeled(block.labels)
                shares[known] = block.labels[known].to(shares)
            responsibilities[first:last] = shares
            first = last
            evidence = block.times(block.evidence(log_sum)).sum()
            sums += torch.stack([evidence, block.times(log_joint).sum()])

        with torch.no_grad():
            self._by_block(read, own, annotations)
        if own is not self.data:
            Processes.running().add([sums])
        return responsibilities, sums[0], sums[1]

    def m_step(self, responsibilities: torch.Tensor) -> None:
        """Update the parameters given responsibilities (N, K), and the rows of the prior.

        In a process group the responsibilities are those of all rows, or of the rows of this
        process.
        """
        of_all = len(responsibilities) == len(self.data[0])
        own, annotations = (self.data, self.annotations) if of_all else self._own
        with Processes.rows_shared(own is not self.data):
            shares, points, data = with_prior_rows(
                self.prior,
                responsibilities,
                own[0],
                own,
                seed=self.seed,
                weights=annotations.weights,
                total=self.num_rows,
            )
            if annotations.groups is None:
                maximize(self.model, shares, points, *data)
                return
            sizes = shares.new_ones(len(shares))  # rows of the prior are in no groups
            of_rows = rows_in_group(annotations.groups, annotations.weights)
            sizes[: len(of_rows)] = of_rows.to(sizes)
            maximize(self.model, shares, points, *data, sizes=sizes)

    @cached_property
    def _own(self) -> tuple[Data, Annotations]:
        """The rows of this process; all rows if there are few, or if they are not independent."""
        processes, number = Processes.running(), len(self.data[0])
        together = self.annotations.groups is not None or self.prior.null_rows
        if processes.size == 1 or number < SHARED or together:
            return self.data, self.annotations
        rows = processes.part(number)
        own = tuple(c.part(rows) if isinstance(c, OnDisk) else c[rows] for c in self.data)
        return own, self.annotations.take(rows)

    def log_posterior(self) -> torch.Tensor:
        r"""The objective of all rows with its gradients, a scalar, in nats.

        .. math:: \sum_n w_n \log p_\theta(d_n) + \log p(\theta)
        """
        block = self._whole(self.data, self.annotations)
        evidence = block.times(block.evidence(block.log_joint.logsumexp(0)))
        return evidence.sum() + self._log_prior(block.times(block.log_joint).sum())

    def log_likelihoods(self) -> torch.Tensor:
        """The terms of the log-likelihood, with gradients, shape (N,).

        The term of a group of rows with one c is shared among its rows by their weights.
        """
        block = self._whole(self.data, self.annotations)
        return block.times(block.evidence(block.log_joint.logsumexp(0)))

    def shares(self) -> torch.Tensor:
        """The weight of each row, or its share of its group, shape (N,)."""
        with torch.no_grad():
            block = self._whole(self.data, self.annotations)
            return block.times(torch.ones_like(block.log_joint[0]))

    def _log_prior(self, joint: torch.Tensor) -> torch.Tensor:
        """Log p(θ) given Σ_nk w_n log p(d, c=k) of all rows, a scalar."""
        sums = [joint]
        if self.prior.null_rows and len(self.data) > 1:
            weights = Annotations(weights=self.annotations.weights)
            copies = (without_effect(self.data, self.seed, n) for n in range(PERMUTATIONS))
            sums += [sum(self._by_block(_sum, copy, weights)) for copy in copies]
        means = [each / self.num_rows for each in sums]
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

        In rows of groups it is that of the whole group.

        Args:
            data: Other rows than those of the run. None stands for an unknown target.
        """
        with torch.no_grad():
            if data is None:
                return self._whole(self.data, self.annotations).log_joint
            return self._whole(data, UNANNOTATED).log_joint

    def _whole(
        self, columns: Columns, annotations: Annotations, rows_at_once: int | None = None
    ) -> "Block":
        """All rows as one block."""
        blocks = self._by_block(lambda block: block, columns, annotations, rows_at_once)
        weights = [block.weights for block in blocks if block.weights is not None]
        return Block(
            torch.cat([block.log_joint for block in blocks], -1),
            torch.cat(weights) if weights else None,
            annotations.labels,
        )

    def _by_block(
        self, read: Read, columns: Any, annotations: Annotations, rows_at_once: int | None = None
    ) -> list[Any]:
        """What is read off one block of rows after the other.

        With groups all rows are one block, because the rows of a group may lie in several.
        """
        rows = rows_at_once or max(1, min(ROWS, VALUES // max(columns[0][:1].numel(), 1)))
        about = (annotations.weights, annotations.labels)
        parts = (repeat(None) if c is None else c.split(rows) for c in (*about, *columns))
        batches = zip(*parts, strict=False)
        with running(self.store), self._of(columns):
            if annotations.groups is not None:
                with reproducible(self.seed):
                    found = [self._log_joint(*batch) for _, _, *batch in batches]
                return [read(_of_groups(found, annotations))]
            if self.is_direct(columns):
                return [read(Block(self._direct(*b), *of)) for *of, b in _nested(batches)]
            with reproducible(self.seed):
                return [read(Block(self._log_joint(*b)[0], *of)) for *of, b in _nested(batches)]

    def _of(self, columns: Columns) -> AbstractContextManager[Any]:
        """The context of these columns. That of the run's is known, so that it can be recorded."""
        if columns[0] is not self.data[0] and columns[0] is not self._own[0][0]:
            return where_incomplete(*columns)
        return Incomplete() if self._is_incomplete else nullcontext()

    @cached_property
    def _is_incomplete(self) -> bool:
        return lacks_entries(self.data[0])

    def is_direct(self, columns: Columns) -> bool:
        """Whether the story's own log p(d, c=k) is that of the model, see `HasJoint`."""
        if max(len(columns), len(self.data)) > 2 or beside(self.model, "log_joint") is None:
            return False
        if self.direct is None:
            some = [column[:ROWS] for column in self.data]
            with torch.no_grad(), reproducible(self.seed):
                one, other = self._log_joint(*some)[0], self._direct(*some)
            same = one.shape == other.shape
            self.direct = same and torch.allclose(one, other, 1e-9, 1e-9, equal_nan=True)
        return self.direct

    def _direct(self, *batch: torch.Tensor | None) -> torch.Tensor:
        return beside(self.model, "log_joint")(*batch).double().mT

    def _log_joint(self, *batch: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
        """Log p(d, c=k) and log p(c=k), (K, B), from the model alone: nothing but c is latent."""
        with Enumerate():
            trace = prune_subsample_sites(poutine.trace(self.model).get_trace(*batch))
        latent = [name for name in trace.stochastic_nodes if name not in ("c", "y")]
        if latent:
            raise SiteError(f"expected no latent site besides 'c' for EM; got {latent[0]!r}")
        compute_log_prob(trace)
        log_joint = row_log_weights(trace, Trace())
        if "c" not in trace.nodes:
            return log_joint, log_joint.new_zeros(())
        if isinstance(trace.nodes["c"]["scale"], torch.Tensor) or trace.nodes["c"]["scale"] != 1:
            raise SiteError("expected weights=… of `fit` for EM; got a model that scales site 'c'")
        log_c = trace.nodes["c"]["unscaled_log_prob"].to(log_joint)
        return log_joint, log_c.expand(log_joint.shape)

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
        last, rate = self._increase()
        if last < 1e-13 * (1.0 + abs(self.history[-1]["objective"])):  # rounding errors
            return self.tolerance >= 0
        return rate < 1 and self.num_rows * last * max(rate / (1 - rate), 1.0) < self.tolerance

    @property
    def limit(self) -> float:
        """The objective that is expected of all further iterations, nats per row."""
        if len(self.history) < 3:
            return math.inf
        last, rate = self._increase()
        ahead = last * rate / (1 - rate) if rate < 1 else math.inf
        return self.history[-1]["objective"] + ahead

    def _increase(self) -> tuple[float, float]:
        """The last increase of the objective, and its ratio a to the one before."""
        first, second, third = (record["objective"] for record in self.history[-3:])
        before, last = second - first, third - second
        return last, last / before if before > 0 else 1.0


class Block(NamedTuple):
    """Log-probabilities of B rows, and what is known of them.

    Attributes:
        log_joint: Log p(d, c=k), shape (K, B); in groups that of the whole group.
        weights: The weights of the rows, or their shares of their groups, (B,); None for one.
        labels: The given probabilities of the components, shape (B, K), or None.
    """

    log_joint: torch.Tensor
    weights: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def evidence(self, log_sum: torch.Tensor) -> torch.Tensor:
        """Log p(d) of each row given it, or the bound at the given probabilities, shape (B,)."""
        if self.labels is None:
            return log_sum
        bounds = assigned_bounds(self.log_joint, self.labels)
        return torch.where(is_labeled(self.labels), bounds, log_sum)

    def times(self, values: torch.Tensor) -> torch.Tensor:
        """Values (..., B) times the weights."""
        return values if self.weights is None else self.weights * values


def _nested(batches: Iterable[Any]) -> Iterator[tuple[Any, Any, Any]]:
    return ((weights, labels, batch) for weights, labels, *batch in batches)


def _of_groups(found: list[tuple[torch.Tensor, Any]], annotations: Annotations) -> Block:
    """Log p(d, c=k) of the whole group of each row, and each row's share of its group.

    The log-probability of c is the mean of those of the group's rows.
    """
    log_joint, log_c = (torch.cat(part, -1) for part in zip(*found, strict=True))
    groups: Any = annotations.groups
    weights = annotations.weights
    scale = 1.0 if weights is None else weights.to(log_joint)
    share = shares_of_groups(groups, weights).to(log_joint)
    terms = share * log_c + scale * (log_joint - log_c)
    return Block(sums_of_groups(terms, groups), share, annotations.labels)


def _like(rows: torch.Tensor, log_joint: torch.Tensor) -> torch.Tensor:
    """An empty tensor (N, K), on disk for rows on disk."""
    shape = (len(rows), len(log_joint))
    if isinstance(rows, OnDisk):
        return empty(shape, log_joint.dtype)
    return log_joint.new_empty(*reversed(shape)).T


def _sum(block: Block) -> torch.Tensor:
    return block.times(block.log_joint).sum()


def maximize(
    model: Program,
    responsibilities: torch.Tensor,
    points: torch.Tensor,
    *data: torch.Tensor,
    sizes: torch.Tensor | None = None,
) -> None:
    """Update the parameters of a model by its M-step.

    A story that is an `MStep` is updated by its ``m_step``. In other stories every `MixturePart`
    is updated by its ``maximize``.

    Args:
        model: A Pyro model.
        responsibilities: r, shape (N, K), times the weights of the rows.
        points: The points of the mixture, x or the codes E[z|x], shape (N, L).
        data: The columns that are fitted.
        sizes: The number of rows, or the sum of their weights, in the group of each row, (N,).
    """
    groups = {} if sizes is None else {"sizes": sizes}
    incomplete = bool(data) and lacks_entries(data[0])
    with late_imports():
        for outermost in modules(model):
            if incomplete and isinstance(outermost, Completes):
                responsibilities, *rows = outermost.completed(responsibilities, *data)
                data = tuple(rows)
                points = data[0]
            if isinstance(outermost, MStep):
                outermost.m_step(responsibilities, points, *data, **groups)
                continue
            for part in outermost.modules():
                if isinstance(part, MixturePart):
                    part.maximize(points, responsibilities)
