"""The variables of a formula that can be read from columns of x, and what is computed of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from formulaic import ModelSpec
from formulaic.parser.types import Factor

from .coding import INTERCEPT, evaluated, levels_of, names_in


@dataclass(frozen=True)
class Variables:
    """The variables behind columns of x.

    Attributes:
        numbers: Names of columns that are variables themselves.
        factors: The columns of x at each level of a factor, by the name of its variable.
        functions: Codings of terms of these variables, and their columns, as ``I(x ** 2)``.
        products: Columns that are products of others, as ``log(x):f[T.b]``.
        unread: Columns that only vary together, of variables that cannot be read, as those of
            ``poly(x, 2)`` without ``x``.
    """

    numbers: tuple[str, ...]
    factors: dict[str, pd.DataFrame]
    functions: tuple[tuple[ModelSpec, tuple[str, ...]], ...]
    products: dict[str, list[str]]
    unread: tuple[str, ...] = ()

    @property
    def derived(self) -> tuple[str, ...]:
        """The columns that are functions of other columns."""
        found = [name for _, names in self.functions for name in names]
        return tuple(dict.fromkeys([*found, *self.products]))

    def read(self, x: pd.DataFrame) -> pd.DataFrame:
        """The variables of rows of x."""
        found = x[list(self.numbers)].copy()
        for name, codes in self.factors.items():
            found[name] = codes.index.to_numpy()[nearest(x[list(codes)].to_numpy(), codes)]
        return found

    def recomputed(self, x: pd.DataFrame) -> pd.DataFrame:
        """Rows of x, with the columns that are functions of others computed from these."""
        x, table = x.copy(), self.read(x)
        for spec, names in self.functions:
            found = pd.DataFrame(evaluated(spec, table))
            x[list(names)] = found[list(names)].to_numpy(float)
        for name, parts in self.products.items():
            x[name] = x[parts].prod(axis=1)
        return x


def nearest(x: np.ndarray, codes: pd.DataFrame) -> np.ndarray:
    """The number of the level of each row of the columns of a factor, shape (N,)."""
    gaps = x[:, None, :] - codes.to_numpy(float)
    return np.square(gaps).sum(-1).argmin(1)


def variables_of(specs: Sequence[ModelSpec]) -> Variables:
    """The variables that can be read from the columns of codings."""
    parts = [
        (spec, structure)
        for spec in specs
        for structure in spec.structure
        if structure.term.factors and INTERCEPT not in structure.columns
    ]
    numbers = {
        structure.columns[0]: None
        for _, structure in parts
        if list(structure.columns) == [str(structure.term).replace("`", "")]
        and len(structure.term.factors) == 1
        and structure.term.factors[0].eval_method is Factor.EvalMethod.LOOKUP
    }
    factors: dict[str, pd.DataFrame] = {}
    for spec, structure in parts:
        names = names_in(structure.term)
        levels = [levels_of(spec).get(name) for name in names]
        if (
            len(structure.term.factors) == 1
            and len(levels) == 1
            and levels[0]
            and structure.columns
        ):
            (name,) = names
            if name not in {*numbers, *factors}:
                table = pd.DataFrame({name: levels[0]})
                codes = pd.DataFrame(evaluated(spec.subset([structure.term]), table))
                factors[name] = codes[list(structure.columns)].set_axis(levels[0])
    own = {*numbers, *(name for codes in factors.values() for name in codes)}
    known = {*numbers, *factors}
    functions = tuple(
        (spec.subset([structure.term]), tuple(structure.columns))
        for spec, structure in parts
        if not set(structure.columns) <= own and names_in(structure.term) <= known
    )
    done = own | {name for _, names in functions for name in names}
    columns = {name for _, structure in parts for name in structure.columns}
    products = {
        name: name.split(":")
        for _, structure in parts
        for name in structure.columns
        if len(structure.term.factors) > 1 and name not in done and {*name.split(":")} <= columns
    }
    unread = [
        name
        for _, structure in parts
        for name in structure.columns
        if max(len(structure.columns), len(structure.term.factors)) > 1
        and name not in {*done, *products}
    ]
    return Variables(tuple(numbers), factors, functions, products, tuple(unread))
