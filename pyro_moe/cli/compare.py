"""``pyro-moe compare``: comparison of runs by the log density of the same test rows."""

import argparse

from pyro_moe import criticism, runs
from pyro_moe.inference.errors import DataError
from pyro_moe.text import in_one_line

from . import choices


def run(options: argparse.Namespace) -> None:
    """Print the runs in order of decreasing log density."""
    how = {"trust_code": options.trust, **choices.reading(options)}
    restored = {folder: runs.restore(folder, options.data, **how) for folder in options.runs}
    (_, train, test), *others = restored.values()
    for folder, (_, _, rows) in zip([*restored][1:], others, strict=True):
        if rows.x.shape != test.x.shape or not rows.x.equal(test.x):
            raise DataError(
                f"expected runs of the same data; got other test rows in {folder} than in "
                f"{options.runs[0]}"
            )
    table = criticism.compare({name: fitted for name, (fitted, _, _) in restored.items()}, test)
    which = in_one_line(choices.which_rows(options.data, train, test), longest=None)
    print(f"log density of {len(test):,} rows {which}, nats per row")
    columns = ["log_density", "standard_error", "difference", "difference_standard_error"]
    if table["loo"].notna().any():
        columns += ["loo", "loo_standard_error"]
    shown = table[columns].rename(index=in_one_line)
    print(shown.to_string(float_format=lambda value: f"{value:.4f}"))
