"""The rows of a table as a design makes them: x, y, and what else is known of them."""

from typing import Any

import numpy as np
import pandas as pd

from pyro_moe.inference.errors import DataError

from .coding import complete, plain, variable
from .design import Design


def as_frame(data: Any) -> pd.DataFrame:
    """Data as a data frame.

    Raises:
        DataError: If data are no table.
    """
    if not isinstance(data, pd.DataFrame):
        try:
            data = pd.DataFrame(data)
        except (TypeError, ValueError) as error:
            raise DataError(f"expected a table with named columns; got {error}") from error
    if data.empty:
        raise DataError(f"expected a table with rows and columns; got shape {data.shape}")
    return data


def weighted(table: pd.DataFrame, name: str | None, missing: str) -> pd.DataFrame:
    """The rows of weights above zero.

    Args:
        table: A table.
        name: The column of weights, or None.
        missing: What is done with rows without a weight, ``"raise"`` or ``"drop"``.

    Raises:
        DataError: If a weight is not a number of at least zero, or is missing.
    """
    if name is None:
        return table
    if missing == "drop":
        table = table[variable(table, name).notna()]
    return table[weighing(table, name) != 0]


def weighing(table: pd.DataFrame, name: str) -> np.ndarray:
    """The weights of rows.

    Raises:
        DataError: If one is not a number of at least zero.
    """
    column = pd.to_numeric(variable(table, name), errors="coerce")
    found = np.array(column.to_numpy(float, na_value=np.nan))  # pandas may share one to be read
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"expected weights {name!r} of at least 0; got {table[name].tolist()[row]!r} in row "
            f"{table.index[row]}"
        )
    return found


def columns_of(design: Design, table: pd.DataFrame) -> tuple[Any, ...]:
    """The rows x and y as data frames.

    Raises:
        DataError: If a variable is absent or a value is missing or invalid.
    """
    x, y = design.features(table), design.target(table)
    if design.trials is not None:
        check_trials(design, x, y)
    return x, y


def annotations_of(design: Design, table: pd.DataFrame) -> dict[str, Any]:
    """The weights, groups and labels of the rows, arguments of `fit`.

    Args:
        design: The design.
        table: A table with these columns.

    Raises:
        DataError: If a column is absent or a weight is invalid.
    """
    found: dict[str, Any] = {}
    if design.weights is not None:
        found["weights"] = weighing(table, design.weights)
    if design.groups is not None:
        found["groups"] = variable(table, design.groups).to_numpy()
    if design.labels is not None:
        labels = variable(table, design.labels)
        places = {label: place for place, label in enumerate(design.label_order)}
        found["labels"] = labels.map(lambda label: places.get(label, label)) if places else labels
    return found


def kept(design: Design, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are fitted, those of weights above zero, without gaps, numbered as given.

    Raises:
        DataError: If a value is missing, unless the design leaves such rows out.
    """
    table = as_frame(table).reset_index(drop=True)
    table = weighted(table, design.weights, design.missing)
    specs = [*design.targets, *design.experts, design.gate, *design.known]
    names = [name for name in (design.weights, design.groups) if name is not None]
    formulas = [spec.formula for spec in specs]
    return complete(plain(table), formulas, names, design.missing)


def check_trials(design: Design, x: pd.DataFrame, y: Any) -> None:
    """Check that there are no more successes than trials.

    Raises:
        DataError: If there are.
    """
    (name,) = design.trials.column_names if design.trials is not None else ("",)
    most, counts = x[[name]].to_numpy(), np.atleast_2d(y.to_numpy().T).T
    over = counts > most
    if over.any():
        row = int(over.any(1).argmax())
        raise DataError(
            f"expected counts of at most the trials {name!r}; got {y.to_numpy()[row].max():g} of "
            f"{x[name].iloc[row]:g} in row {x.index[row]}"
        )


def check_groups(design: Design, x: pd.DataFrame, groups: Any) -> None:
    """Check that the gate's columns do not differ in a group.

    Args:
        design: The design.
        x: Rows of x.
        groups: Their groups, (N,).

    Raises:
        DataError: If one does.
    """
    for name in design.gate_terms:
        by_group = x[name].groupby(groups)
        differing = by_group.max() != by_group.min()
        if differing.any():
            raise DataError(
                f"expected columns of the gate that are constant in each group of "
                f"{design.groups!r}; got different values of {name!r}"
            )
