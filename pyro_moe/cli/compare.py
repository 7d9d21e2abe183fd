"""``pyro-moe compare``: comparison of runs by the log density of the same test rows."""

import argparse

from pyro_moe import criticism, runs
from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows
from pyro_moe.text import in_one_line

from . import choices


def run(options: argparse.Namespace) -> None:
    """Print the runs in order of decreasing log density."""
    how = {"trust_code": options.trust, **choices.reading(options)}
    restored = {folder: runs.restore(folder, options.data, **how) for folder in options.runs}
    (_, train, test), *others = restored.values()
    for folder, (_, _, rows) in zip([*restored][1:], others, strict=True):
        if not _alike(rows, test):
            raise DataError(
                f"expected runs of the same data; got other test rows in {folder} than in "
                f"{options.runs[0]}"
            )
    fits = {name: fitted for name, (fitted, _, _) in restored.items()}
    table = criticism.compare(fits, {name: rows for name, (_, _, rows) in restored.items()})
    which = in_one_line(choices.which_rows(options.data, train, test), longest=None)
    print(f"log density of {len(test):,} rows {which}, nats per row")
    columns = ["log_density", "standard_error", "difference", "difference_standard_error"]
    if table["loo"].notna().any():
        columns += ["loo", "loo_standard_error"]
    shown = table[columns].rename(index=in_one_line)
    print(shown.to_string(float_format=lambda value: f"{value:.4f}"))


def _alike(one: Rows, other: Rows) -> bool:
    """Whether rows are the same: in their targets if there are any, and in x otherwise.

    Formulas make other columns of x of the same table.
    """
    a, b = (one.x, other.x) if one.y is None or other.y is None else (one.y, other.y)
    return a.shape == b.shape and a.allclose(b.to(a), equal_nan=True)
