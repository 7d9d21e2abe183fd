"""The summary of a mixture as text and as a page."""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from .coefficients import ALL, GATE, at_limit
from .formulas.coding import terms

WIDTH = 78


@dataclass(frozen=True)
class Summary:
    """Tables with titles, and notes, which print as text.

    Attributes:
        title: The first line.
        tables: Pairs of a title and a table.
        notes: Sentences.
    """

    title: str
    tables: tuple[tuple[str, pd.DataFrame], ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [self.title.center(WIDTH).rstrip(), "=" * WIDTH]
        for title, table in self.tables:
            lines += ([title] if title else []) + [as_text(table), "-" * WIDTH]
        lines[-1] = "=" * WIDTH
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [f"<h3>{escape(self.title)}</h3>"]
        for title, table in self.tables:
            parts += [f"<h4>{escape(title)}</h4>", table.map(shown).to_html()]
        return "".join([*parts, *(f"<p>{escape(note)}</p>" for note in self.notes)])

    def as_text(self) -> str:
        """The summary as text."""
        return str(self)


def summarized(fit: Any, alpha: float) -> Summary:
    """The summary of a fit, with intervals of confidence 1 - α."""
    interval = fit.conf_int(alpha)
    ends = [f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"]
    table = pd.DataFrame(
        {
            "coef": fit.params,
            "std err": fit.bse,
            "z": fit.tvalues.map(lambda z: "" if np.isnan(z) else f"{z:.3f}"),
            "P>|z|": fit.pvalues.map(shown_p),
            ends[0]: interval["lower"],
            ends[1]: interval["upper"],
        }
    )
    tables = [("", facts(fit)), ("Components", fit.sizes.rename(index="component {}".format))]
    for k, equation in sorted(table.index.droplevel("term").unique(), key=place):
        title = f"Component {k}: {equation}"
        if equation == GATE:
            title = f"Gate: component {k} against component 0"
        if k == ALL:
            title = f"All components: {equation}"
        tables.append((title, table.loc[(k, equation)]))
    title = f"Mixture of {fit.num_components} {fit.family} regressions: {fit.design.formula}"
    return Summary(title, tuple(tables), tuple(notes(fit)))


def place(pair: tuple[Any, str]) -> tuple[bool, int]:
    """The place of an equation: what is shared, the experts, the gate."""
    return pair[1] == GATE, -1 if pair[0] == ALL else pair[0]


def facts(fit: Any) -> pd.DataFrame:
    """Formula, log-likelihood and criteria, two in a row."""
    rows = f"{fit.nobs:,.10g}"
    if fit.nobs != fit.num_rows or fit.weight_type == "sampling":
        rows += f" ({fit.num_rows:,} with weights)"
    if fit.design.groups is not None:
        rows += f" in {int(fit.annotations.groups.max()) + 1} groups"
    left = {"Rows:": rows, "Parameters:": str(fit.df_model), "Covariance:": fit.cov_type}
    right = {"Log-likelihood:": fit.llf, "AIC:": fit.aic, "BIC:": fit.bic}
    entries = [
        (*one, name, f"{value:.3f}")
        for one, (name, value) in zip(left.items(), right.items(), strict=True)
    ]
    entries.append(("Gate:", gate_text(fit), "ICL:", f"{fit.icl:.3f}"))
    return pd.DataFrame(entries).set_index(0).rename_axis(None)


def gate_text(fit: Any) -> str:
    """What the gate depends on."""
    names = terms(fit.design.gate)
    return f"softmax of {', '.join(names)}" if names else "constant"


def notes(fit: Any) -> list[str]:
    """What a reader must know of starts, convergence, and parameters that are not determined."""
    starts = fit.settings["restarts"]
    found = [
        f"Best of {starts} starts of EM, {len(fit.history)} iterations, then Newton's method: "
        + ("converged." if fit.converged else f"not converged, {fit.remaining:.2g} nats remain.")
    ]
    if fit.left_out:
        found.append(
            f"{fit.left_out:,} of {fit.given_rows:,} rows are left out: they have gaps or no "
            "weight."
        )
    if fit.cov_type == "observed":
        of = " of the posterior mode" if any(fit.settings["prior"].values()) else ""
        found.append(f"Standard errors are from the observed information{of}.")
    limits = [
        name
        for name, at in zip(fit.params.index, at_limit(fit.story, fit.design), strict=True)
        if at
    ]
    if limits:
        found.append(
            f"{named(limits)} at the limit: the likelihood grows beyond it. Standard errors are "
            "those with a fixed value; fewer components, or prior='weak', give a maximum."
        )
    others = [name for name in fit.undetermined if name not in limits]
    if others:
        names = named(others)
        found.append(
            f"No standard error of {names}: the information is singular there. The rows do not "
            "determine them, or the likelihood has no maximum, as for separable classes."
        )
    most = fit.df_model / fit.num_components
    for k, rows in fit.sizes["posterior"].items():
        if rows < 5 * most:
            found.append(
                f"Component {k} has {rows:.1f} rows for {most:.0f} parameters: its standard "
                "errors, which hold for many rows, may be too small."
            )
    return found


def named(parameters: list[Any]) -> str:
    """Parameters by name in a sentence."""
    return ", ".join(f"{term} of {equation} {k}" for k, equation, term in parameters)


def as_text(table: pd.DataFrame) -> str:
    """A table as aligned text of the width of the summary."""
    if table.columns.dtype == int:
        left = table.index.astype(str)
        cells = zip(left, table[1], table[2], table[3], strict=True)
        return "\n".join(f"{a:<14}{b:<38}{c:<16}{d:>10}" for a, b, c, d in cells)
    body = table.map(shown)
    first = max(14, *(len(str(name)) for name in body.index)) + 1
    width = max(10, (WIDTH - first) // len(body.columns))
    lines = [" " * first + "".join(f"{name:>{width}}" for name in body.columns)]
    for name, row in zip(body.index, body.to_numpy(), strict=True):
        lines.append(f"{name!s:<{first}}" + "".join(f"{value:>{width}}" for value in row))
    return "\n".join(lines)


def shown(value: object) -> str:
    """A number with four significant digits or three decimals, nothing for what is not defined."""
    if not isinstance(value, float | np.floating):
        return str(value)
    number = float(value)
    if not np.isfinite(number):
        return ""
    return f"{number:.3f}" if number == 0 or 0.1 <= abs(number) < 1e4 else f"{number:.4g}"


def shown_p(value: float) -> str:
    """A p-value with three decimals."""
    if np.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
