"""What a report is about: a fit, the rows it is judged by, and what is computed once of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_moe import evaluation
from pyro_moe.criticism.health import Health, health, posterior_of
from pyro_moe.criticism.predictive_check import Check, check
from pyro_moe.evaluation import Prediction
from pyro_moe.evaluation.baseline import Line
from pyro_moe.evaluation.marginals import has_classes, is_binary
from pyro_moe.fitted import Fit
from pyro_moe.fitting import with_fewer
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.rows import Data, Rows, numbered

CHEAP = 1.0  # seconds of training from which on no smaller mixture is fitted


@dataclass(frozen=True)
class Subject:
    """A fit and rows.

    Attributes:
        fit: The fit.
        data: The rows as they were given, or None for the training rows.
        table: The name of the table, or None.
        given_classes: Names of the classes of a categorical or binary target, or None.
        num_replicates: Number of replicates of the predictive check.
        seed: Seed of every draw.
    """

    fit: Fit
    data: Data | None
    table: str | None = None
    given_classes: Sequence[str] | None = None
    num_replicates: int = 200
    seed: int = 0

    @cached_property
    def rows(self) -> Rows:
        """The rows by which the fit is judged."""
        return self.fit.rows(self.data)

    @cached_property
    def seen(self) -> bool:
        """Whether these are the training rows."""
        if self.data is None or self.fit.restored is not None:
            return self.data is None
        given, own = self.rows, self.fit.rows()
        pairs = ((given.x, own.x), (given.y, own.y))
        return len(given) == len(own) and all(_equal(*pair) for pair in pairs)

    @cached_property
    def training(self) -> Rows:
        """The training rows, or for a restored fit without them the given rows.

        They have the names of the given rows if they have none of their own.
        """
        if self.fit.restored is not None:
            return self.rows
        own, given = self.fit.rows(), self.rows
        names: Any = {
            "columns": own.columns or given.columns,
            "targets": own.targets or given.targets,
        }
        return replace(own, **names)

    @property
    def where(self) -> str:
        """What the rows of judgement are called."""
        number = f"{counted(self.rows):,.10g}"
        return f"the {number} training rows" if self.seen else f"{number} held-out rows"

    @property
    def name(self) -> str:
        """The name of the story."""
        fit = self.fit
        if fit.story is None:
            return getattr(fit.programs.model, "__name__", "a story")
        return type(fit.story).__name__

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of x."""
        return self.training.columns or numbered("x", self.fit.x_dim)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets; empty without any."""
        if not self.has_target:
            return ()
        design = getattr(self.fit, "design", None)
        if design is not None:
            return tuple(design.target_names)
        width = self.fit.example[1].shape[1:].numel()
        return self.training.targets or numbered("y", width)

    @property
    def has_target(self) -> bool:
        """Whether there are targets."""
        return self.fit.has_target and self.rows.y is not None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes."""
        design = getattr(self.fit, "design", None)
        known = self.given_classes or getattr(design, "classes", None)
        return None if known is None else tuple(map(str, known))

    @cached_property
    def prediction(self) -> Prediction:
        """The prediction of the rows with a target, see `judged`."""
        return evaluation.predict(self.fit, self.judged, seed=self.seed)

    @cached_property
    def judged(self) -> Rows:
        """The rows of judgement that have a target."""
        return self.rows.with_targets()

    @property
    def of_classes(self) -> bool:
        """Whether the target is one of several classes."""
        return self.has_target and has_classes(self.prediction.distributions[0])

    @property
    def is_binary(self) -> bool:
        """Whether the targets are Bernoulli variables."""
        return self.has_target and is_binary(self.prediction.distributions[0])

    @cached_property
    def checked(self) -> Check | None:
        """The predictive check."""
        options: dict[str, Any] = {"num_replicates": self.num_replicates, "seed": self.seed}
        options["classes"] = self.classes
        return _or_none(lambda: check(self.fit, self._grouped(self.data, self.rows), **options))

    @cached_property
    def health(self) -> Health | None:
        """Diagnostics of the gate."""
        rows = None if self.seen else self._grouped(self.data, self.rows)
        return _or_none(lambda: health(self.fit, rows, seed=self.seed))

    @cached_property
    def posterior(self) -> torch.Tensor | None:
        """The probability of each component of the training rows given all that is known of them.

        It is that of the group, if rows have groups, and the gate where y is not known.
        """
        fit, rows = self.fit, self.training
        g = _or_none(lambda: self.gate)
        if g is None or not self.has_target:
            return g
        given = self.data if fit.restored is not None else fit.training_rows
        found = _or_none(lambda: posterior_of(fit, self._grouped(given, rows), g, seed=self.seed))
        return g if found is None else found.cpu()

    @cached_property
    def gate(self) -> torch.Tensor:
        """The gate of the training rows, shape (N, K)."""
        return evaluation.gate(self.fit, self.training, seed=self.seed).cpu().double()

    @cached_property
    def coefficients(self) -> pd.DataFrame | None:
        """The coefficients of experts and gate, see `Fit.coefficients`."""
        return _or_none(self.fit.coefficients)

    @cached_property
    def line(self) -> Line | None:
        """One linear model of the training rows."""
        if not self.has_target:
            return None
        return evaluation.linear_model(self.fit, (self.judged.x, self.judged.y))

    @cached_property
    def fewer(self) -> Prediction | None:
        """The prediction of the same story with one component less, if it is cheap to fit."""
        fit = self.fit
        seconds = sum(record["seconds"] for record in fit.history)
        if not self.has_target or not fit.history or seconds > CHEAP:
            return None
        smaller = with_fewer(fit)
        return None if smaller is None else evaluation.predict(smaller, self.judged.x)

    @property
    def num_components(self) -> int:
        """K, or one for a story without components."""
        return 1 if self.posterior is None else self.posterior.shape[1]

    @cached_property
    def num_parameters(self) -> int:
        """The number of free parameters."""
        story, found = self.fit.story, 0
        if self.coefficients is None and not hasattr(story, "mixture"):
            return sum(p.numel() for p in self.fit.parameters().values())
        if self.coefficients is not None:
            found += len(self.coefficients)
            gated = "gate" in self.coefficients.index.get_level_values("equation")
            if not gated and self.num_components > 1 and hasattr(story, "gate"):
                found += sum(p.numel() for p in story.gate.parameters())
        if hasattr(story, "mixture"):
            found += _size_of_mixture(story)
        return found

    @cached_property
    def log_likelihood(self) -> float | None:
        """The log-likelihood of the training rows, if it is exact."""
        fit = self.fit
        if fit.restored is not None:
            return None
        if hasattr(fit, "llf"):
            return float(fit.llf)
        if fit.settings["loss"] not in ("em", "marginal"):
            return None
        if not {"GMM", "GMMMoE", "ME", "DeepMoE", "HierarchicalME"} & {self.name}:
            return None
        found = evaluation.information_criteria(fit)["log_likelihood"]
        return None if math.isnan(found) else found

    def _grouped(self, data: Data | None, rows: Rows) -> Data | None:
        """The data as they were given if they have groups, and the rows of them otherwise."""
        if data is None or self.fit.groups_of(data) is not None:
            return data
        return rows

    @property
    def strong_prior(self) -> bool:
        """Whether the prior shrinks the estimates."""
        return float(self.fit.settings.get("prior", {}).get("rows", 0.0)) >= 1.0

    @property
    def weights(self) -> torch.Tensor | None:
        """How many rows each training row counts as, or None if each counts as one."""
        return self.training.annotations.get("weights")

    @property
    def posterior_of_rows(self) -> np.ndarray:
        """`posterior` with each row as many times as its weight says, for pictures."""
        places = self.fit.repeats_of(self.training)
        return self.posterior_array if places is None else self.posterior_array[places.numpy()]

    @property
    def posterior_array(self) -> np.ndarray:
        """`posterior` as an array."""
        return torch.as_tensor(self.posterior).numpy()


def counted(rows: Rows) -> float:
    """The number of rows, or the sum of their weights."""
    weights = rows.annotations.get("weights")
    return len(rows) if weights is None else float(weights.sum())


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether columns are equal, with values missing in the same places."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(
        ((one == other) | (one != one) & (other != other)).all()
    )


def _or_none(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except (SiteError, DataError):  # the story, or the rows, lack what is asked for
        return None


def _size_of_mixture(story: Any) -> int:
    mixture = story.mixture
    number, dim = mixture.num_components, mixture.dim
    each = dim if mixture.covariance == "diagonal" else dim * (dim + 1) // 2
    found = number * dim + each * (1 if mixture.covariance == "tied" else number)
    own = found + (number - 1 if mixture.weights == "learned" else 0)
    others = 0 if type(story).__name__ in ("GMM", "GMMMoE") else 1
    return own if not others else sum(p.numel() for p in story.parameters())
