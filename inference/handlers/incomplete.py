"""Rows of x with missing entries, in any story with a site ``x``."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from pyro_moe.distributions import Observed, incomplete

ROWS = 2**16  # that are read at once


class Incomplete(Messenger):
    """Run a story on rows with NaN where an entry of x is missing.

    The density of the observed site ``x`` is the marginal density of the observed entries. What
    else depends on x must ask `rows_are_incomplete`.
    """

    def __enter__(self) -> Any:
        """Tell stories that rows are incomplete."""
        self.told = incomplete()
        self.told.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Take it back."""
        super().__exit__(*error)
        self.told.__exit__(None, None, None)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "x" and msg["is_observed"]:
            msg["fn"] = Observed(msg["fn"], ~msg["value"].isnan())


def where_incomplete(*columns: torch.Tensor | None) -> AbstractContextManager[Any]:
    """A context for these columns, of which the first is x: `Incomplete` if x has NaN."""
    return Incomplete() if columns and lacks_entries(columns[0]) else nullcontext()


def lacks_entries(x: torch.Tensor | None) -> bool:
    """Whether x has NaN."""
    if not torch.is_tensor(x) or not x.is_floating_point():
        return False
    return any(bool(part.isnan().any()) for part in x.split(ROWS))  # rows may be on disk
