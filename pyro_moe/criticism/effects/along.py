"""Along what experts are shown: columns of x, and factors, with the others at typical values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_moe.fitted import Fit
from pyro_moe.rows import numbered

MOST_NAMES = 6


@dataclass(frozen=True)
class Axis:
    """A variable of which the experts' means are functions.

    Attributes:
        name: Its name.
        columns: Its columns of x, of which a factor may have several.
        codes: The values of these columns at each level of a factor, shape (L, columns), or None.
        levels: The names of the levels.
    """

    name: str
    columns: list[int]
    codes: torch.Tensor | None = None
    levels: tuple[str, ...] = ()

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """The values in rows of x, shape (N,); of a factor the numbers of its levels."""
        own = x[:, self.columns].double()
        if self.codes is None:
            return own[:, 0]
        return (own.unsqueeze(1) - self.codes).square().sum(-1).argmin(1).double()

    def coded(self, values: torch.Tensor) -> torch.Tensor:
        """The columns at values, shape (P, columns)."""
        return values.unsqueeze(-1) if self.codes is None else self.codes[values.long()]

    def typical(self, x: torch.Tensor) -> torch.Tensor:
        """The median over rows of x, or the number of the most frequent level."""
        values = self.values(x)
        return values.median(0).values if self.codes is None else values.mode().values

    def shown(self, value: float) -> str:
        """A value as text."""
        return f"{value:.4g}" if self.codes is None else self.levels[int(value)]


def axes_of(fit: Fit) -> dict[int, Axis]:
    """The variables that experts read, by the number of their first column of x.

    Of a fit by formula these are the variables of the table, as far as they can be read from x,
    and not the columns that are functions of them, as squares and interactions are.
    """
    design: Any = getattr(fit, "design", None)
    names = list(fit.columns or numbered("x", fit.x_dim))
    if design is None:
        return {i: Axis(names[i], [i]) for i in _own_columns(fit)}
    known, own = design.variables, design.of_experts
    factors = {}
    for name, codes in known.factors.items():
        columns = [names.index(column) for column in codes]
        values = torch.from_numpy(codes.to_numpy(float, copy=True))
        factors[columns[0]] = Axis(name, columns, values, tuple(map(str, codes.index)))
    coded = {i for axis in factors.values() for i in axis.columns}
    numbers = {
        i: Axis(name, [i])
        for i, name in enumerate(names)
        if i not in coded and name not in known.derived
    }
    found = {i: axis for i, axis in {**factors, **numbers}.items() if axis.name in own}
    alone = {i: axis for i, axis in found.items() if axis.name not in known.unread}
    return dict(sorted((alone or found).items())) or {0: Axis(names[0], [0])}


def _own_columns(fit: Fit) -> list[int]:
    given = getattr(fit.story, "options", {}).get("predictor")
    each = given if isinstance(given, list | tuple) else [given]
    chosen = [getattr(predictor, "columns", None) for predictor in each]
    known = [set(columns) for columns in chosen if columns is not None]
    if len(known) < len(chosen):
        return list(range(fit.x_dim))
    return sorted(set().union(*known)) or [0]


def typical(fit: Fit, own: torch.Tensor) -> torch.Tensor:
    """A row of medians, and of the most frequent levels of factors, shape (1, D)."""
    row = own.median(0).values.unsqueeze(0)
    for axis in axes_of(fit).values():
        if axis.codes is not None:
            row[:, axis.columns] = axis.coded(axis.typical(own).reshape(1)).to(row)
    return row


def along(fit: Fit, own: torch.Tensor, axis: Axis, at: torch.Tensor) -> torch.Tensor:
    """Rows at values of a variable, with the others at typical values of an expert's rows."""
    grid = typical(fit, own).repeat(len(at), 1)
    grid[:, axis.columns] = axis.coded(at).to(grid)
    design: Any = getattr(fit, "design", None)
    if design is None:
        return grid
    frame = pd.DataFrame(grid.numpy(), columns=list(fit.columns or ()))
    return torch.from_numpy(design.variables.recomputed(frame).to_numpy(float, copy=True))


def held(fit: Fit, x: torch.Tensor, component: np.ndarray) -> str:
    """At which values variables are held in each component, as text."""
    axes = list(axes_of(fit).values())
    texts = []
    for k in np.unique(component).tolist():
        own = x[torch.from_numpy(component == k)].double()
        values = (f"{a.name} = {a.shown(float(a.typical(own)))}" for a in axes[:MOST_NAMES])
        texts.append(f"{', '.join(values)}{', …' if len(axes) > MOST_NAMES else ''} ({k})")
    return "; ".join(texts)
