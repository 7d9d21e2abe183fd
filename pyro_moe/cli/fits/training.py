"""The arguments of `fit` from command-line options."""

import argparse
from dataclasses import replace
from typing import Any

from pyro_moe.inference.prior import FLAT, Prior

FIT_OPTIONS = (
    "epochs",
    "restarts",
    "loss",
    "validation",
    "patience",
    "weight_decay",
    "tolerance",
    "initialize",
    "missing_targets",
    "weight_type",
    "seed",
    "device",
    "bfloat16",
)


def fit_arguments(options: argparse.Namespace, prior: str = "auto") -> dict[str, Any]:
    """The arguments of `fit` that are given.

    Args:
        options: The options.
        prior: The prior of a ridge alone.
    """
    given = {name: vars(options)[name] for name in FIT_OPTIONS if vars(options)[name] is not None}
    if options.compile is not None:
        given["compile"] = {"auto": "auto", "yes": True, "no": False}[options.compile]
    if options.prior is not None or options.ridge is not None:
        given["prior"] = prior_of(options.prior or prior, options.ridge)
    return {**given, "progress": not options.quiet}


def prior_of(rows: str, ridge: float | None) -> str | Prior:
    """The prior of two options. A ridge alone belongs to the weak prior."""
    named = {"auto": Prior(), "weak": Prior(), "none": FLAT}
    if rows in named:
        return rows if ridge is None else replace(named[rows], ridge=ridge)
    try:
        return Prior(rows=float(rows), ridge=Prior().ridge if ridge is None else ridge)
    except ValueError as error:
        raise ValueError(f"expected --prior auto, weak, none or a number; got {rows!r}") from error
