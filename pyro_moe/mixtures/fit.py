"""A fit by formula: a `Fit` that codes the rows of new tables as those of training."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_moe.fitted import Fit
from pyro_moe.fitted.weights import counted
from pyro_moe.rows import Rows

from .coefficients import named_parameters
from .formulas import Design
from .formulas.rows import weighing

OF_MIXTURES = {
    "aic",
    "bic",
    "bse",
    "classify",
    "conf_int",
    "converged",
    "cov_params",
    "df_model",
    "df_resid",
    "icl",
    "information",
    "llf",
    "posterior",
    "profile_interval",
    "pvalues",
    "relabel",
    "sizes",
    "tvalues",
    "undetermined",
    "zvalues",
}


@dataclass(frozen=True, repr=False)
class FormulaFit(Fit):
    """The result of `mixture`: a `Fit` with the coding of its formula.

    All tools take it. Where they take rows, they also take data frames with the variables of the
    formula.

    Attributes:
        design: The coding of the formula.
        family: The family of the experts.
        story_name: The name of the story, or None if it has none.
        story_arguments: The arguments of its constructor, or None for a story given as a module.
        index: The index of the training rows in their table, or None if it is not known.
        given_rows: The number of rows of the table, those that are left out included.
    """

    design: Design = field(default=None, repr=False)  # type: ignore[assignment]
    family: str = "normal"
    story_name: str | None = None
    story_arguments: Mapping[str, Any] | None = None
    index: pd.Index | None = field(default=None, repr=False)
    given_rows: int | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"{self.design.formula}: {super().__repr__()}"

    def __getattr__(self, name: str) -> Any:
        if name not in OF_MIXTURES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(
            f"expected story='me', a mixture of regressions fitted by maximum likelihood, for "
            f"{name!r}; got {type(self.story).__name__}"
        )

    @property
    def num_components(self) -> Any:
        """K."""
        return self.story.num_components

    @property
    def left_out(self) -> int:
        """The number of rows of the table that are not fitted: with gaps, or of weight zero."""
        return 0 if self.given_rows is None else self.given_rows - self.num_rows

    @functools.cached_property
    def params(self) -> pd.Series:
        """The estimates in the units of the data, by component, equation and term.

        These are the coefficients and scales of the experts, and those of a softmax gate.

        Raises:
            ValueError: If the experts are not affine in x.
        """
        if getattr(self.story, "context", "x") != "x":
            raise ValueError("expected experts of x, for coefficients of columns; got those of z")
        index, values = named_parameters(self.story, self.design)
        return pd.Series(values.detach().cpu().numpy(), index, name="estimate")

    def in_order(self, data: Any) -> Any:
        """Data with the fitted columns in order; a data frame is coded by the formula."""
        return super().in_order(self._coded(data))

    def as_tensors(self, data: Any) -> tuple[torch.Tensor, ...]:
        """Rows with targets as tensors, see `Fit`; a data frame is coded by the formula."""
        return super().as_tensors(self._coded(data, with_target=True))

    def features(self, data: Any) -> tuple[Any, ...]:
        """Rows as tensors, see `Fit`; a data frame is coded by the formula."""
        return super().features(self._coded(data))

    def groups_of(self, data: Any = None) -> torch.Tensor | None:
        """The numbers of the groups of rows, see `Fit`; those of a data frame by its column."""
        name = self.design.groups
        if not isinstance(data, pd.DataFrame) or name is None or name not in data.columns:
            return super().groups_of(data)
        place, _ = pd.factorize(data[name], use_na_sentinel=False)
        return torch.from_numpy(place.astype(np.int64))

    def weights_of(self, data: Any = None) -> torch.Tensor | None:
        """How many rows each row counts as, see `Fit`; of a data frame by its column."""
        name = self.design.weights
        if not isinstance(data, pd.DataFrame) or name is None or name not in data.columns:
            return super().weights_of(data)
        return counted(weighing(data, name), sampling=self.weight_type == "sampling")

    def _coded(self, data: Any, *, with_target: bool = False) -> Any:
        if isinstance(data, tuple) and len(data) > 1 and isinstance(data[0], pd.DataFrame):
            return (self._coded(data[0]), *data[1:])
        if not isinstance(data, pd.DataFrame) or isinstance(data, Rows):
            return data
        if set(self.design.columns) <= set(data.columns) and not with_target:
            return data[list(self.design.columns)]
        x = self.design.features(data)
        return (x, self.design.target(data)) if with_target else x


def by_formula(kind: type[FormulaFit], fit: Fit, **values: Any) -> Any:
    """A fit as one by formula.

    Args:
        kind: `FormulaFit` or a class of it.
        fit: The fit.
        **values: The attributes that it has besides those of a `Fit`.
    """
    values = {**vars(fit), **values}
    return kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})
