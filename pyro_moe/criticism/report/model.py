"""Sections on what was fitted: the equation with its numbers, coefficients, criteria."""

import math
from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from pyro_moe.fitted.brief import weights_in_words

from .page import block, columns, equations, facts, paragraph, section, table
from .subject import Subject, counted

MOST_TERMS = 12
MOST_ROWS = 40
MINUS = "\N{MINUS SIGN}"
STORIES = {
    "GMM": ("c ~ Categorical(π)", "x | c = k ~ N(μₖ, Σₖ)"),
    "GMMMoE": ("c ~ Categorical(π)", "x | c = k ~ N(μₖ, Σₖ)", "y | x, c = k ~ pₖ(y | x)"),
    "VAE": ("z ~ N(0, I)", "x | z ~ p(x | f(z)), f a neural network"),
    "VaDE": ("c ~ Categorical(π)", "z | c = k ~ N(μₖ, Σₖ)", "x | z ~ p(x | f(z))"),
    "DMVAE": ("c ~ Categorical(π)", "z | c = k ~ N(μₖ, Σₖ)", "x | z ~ p(x | f(z))"),
    "VaDEMoE": (
        "c ~ Categorical(π)",
        "z | c = k ~ N(μₖ, Σₖ)",
        "x | z ~ p(x | f(z))",
        "y | z, c = k ~ pₖ(y | z)",
    ),
    "DVMoE": (
        "c ~ Categorical(π)",
        "z | c = k ~ N(μₖ, Σₖ)",
        "x | z ~ p(x | f(z))",
        "y | x ~ Σₖ gₖ(x) pₖ(y | x), g the encoder of c",
    ),
    "ME": ("y | x ~ Σₖ gₖ(x) pₖ(y | x), g a softmax of affine functions",),
    "DeepMoE": ("y | x ~ Σₖ gₖ(x) pₖ(y | x), g a neural network",),
    "HierarchicalME": ("y | x ~ Σₖ gₖ(x) pₖ(y | x), g a tree of softmax gates",),
}


MODELS = {
    "ME": "mixture of experts, softmax gate",
    "DeepMoE": "mixture of experts, neural gate",
    "HierarchicalME": "hierarchical mixture of experts",
    "GMM": "Gaussian mixture",
    "GMMMoE": "Gaussian mixture of x with an expert in each component",
    "VAE": "variational autoencoder",
    "VaDE": "autoencoder with a Gaussian mixture of codes",
    "DMVAE": "autoencoder with a Gaussian mixture of codes",
    "VaDEMoE": "autoencoder with a Gaussian mixture of codes and experts",
    "DVMoE": "autoencoder with a Gaussian mixture of codes and experts",
}


def heading(subject: Subject) -> str:
    """Model, table, target, rows and date."""
    fit, number = subject.fit, subject.num_components
    kind = MODELS.get(subject.name)
    if subject.name == "ME" and getattr(fit.story, "options", {}).get("gate_columns") == []:
        kind = "mixture of regressions, constant gate"
    model = subject.name if kind is None else f"{subject.name}: {kind}"
    if subject.posterior is not None:
        model += f", {number} component{'s' if number > 1 else ''}"
    family = family_of(subject)
    rows = f"{fit.total:,.10g} for fitting"
    groups = fit.groups_of() if fit.restored is None else None
    if groups is not None:
        rows += f", in {len(groups.unique()):,} groups"
    if not subject.seen:
        rows += f"; {counted(subject.rows):,.10g} held out"
    names = subject.columns
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
    values = {
        "Model": f"{model}, {family.replace(' and ', ', ')} experts" if family else model,
        "Formula": getattr(getattr(fit, "design", None), "formula", None),
        "Table": subject.table,
        "Target" + "s" * (len(subject.targets) > 1): ", ".join(subject.targets) or None,
        f"Columns of x ({fit.x_dim:,})": shown,
        "Rows": rows,
        "Weights": weights_in_words(fit),
        "Date": date.today().isoformat(),
    }
    return facts({name: value for name, value in values.items() if value is not None})


def family_of(subject: Subject) -> str | None:
    """The family of the experts."""
    if not subject.has_target:
        return None
    given: Any = getattr(subject.fit, "family", None)
    given = given or getattr(subject.fit.story, "options", {}).get("experts")
    if isinstance(given, str):
        return given
    names = type(getattr(subject.fit.story, "experts", None)).__name__
    return names.removesuffix("Experts").lower() if names.endswith("Experts") else None


def fitted(subject: Subject) -> str:
    """The equation with names and numbers, the coefficients, and the criteria."""
    table = subject.coefficients
    lines = [*_story(subject)]
    if table is not None:
        lines += [*_equations(subject, table)]
    parts = [equations(lines)] if lines else []
    parts.append(facts(criteria(subject)))
    if subject.strong_prior:
        parts.append(
            paragraph(
                "The prior of the fit shrinks the estimates. AIC and BIC, which suppose a maximum "
                "of the likelihood, are left out",
                soft=True,
            )
        )
    if table is not None:
        parts += [*_tables(subject, table)]
    means = _means(subject)
    return section("The fitted model", *parts, *means)


def _story(subject: Subject) -> Iterator[str]:
    known = STORIES.get(subject.name, ())
    if known and subject.num_components == 1 and subject.coefficients is not None:
        return
    yield from known


def _equations(subject: Subject, table: pd.DataFrame) -> Iterator[str]:
    """The linear predictors of experts and gate, with numbers."""
    family = family_of(subject) or "normal"
    for (k, equation), part in by_equation(table):
        values = part["estimate"].droplevel(["component", "equation"])
        scale = {name: values[name] for name in ("sigma", "df") if name in values.index}
        others = values.drop([n for n in values.index if n in scale or n.startswith("corr(")])
        right = linear(others)
        if equation == "gate":
            yield f"gate: log g{_low(k)}(x) / g{_low(0)}(x) = {right}"
            continue
        left = _left(subject, str(equation), _family_of(subject, str(equation), family))
        noise = ""
        if "sigma" in scale:
            noise = f" + ε, ε ~ N(0, {scale['sigma']:.4g}²)"
        if "df" in scale:
            noise = f" + {scale.get('sigma', 1.0):.4g} t, {scale['df']:.4g} degrees of freedom"
        of = "all components" if k == "all" else f"component {k}"
        yield f"{of}: {left} = {right}{noise}"


def by_equation(table: pd.DataFrame) -> list[tuple[tuple[Any, Any], pd.DataFrame]]:
    """The rows of each equation: those of the experts, then those of the gate."""
    parts = list(table.groupby(level=["component", "equation"], sort=False))
    return sorted(parts, key=lambda part: part[0][1] == "gate")


def _family_of(subject: Subject, equation: str, family: str) -> str:
    """The family of one target, of families that are joined by "and" in the order of targets."""
    each = dict(zip(subject.targets, family.split(" and "), strict=False))
    return each.get(equation, family) if " and " in family else family


def _left(subject: Subject, equation: str, family: str) -> str:
    if family == "poisson":
        return f"log E[{equation}]"
    if family == "bernoulli":
        yes = "1" if subject.classes is None else subject.classes[-1]
        return f"logit P({equation} = {yes})"
    if family == "binomial":
        return f"logit p({equation})"
    if subject.of_classes:
        one, other = _named(subject, equation).split(" against ", 1)
        return f"log P({one}) / P({subject.targets[0]} = {other})"
    return equation


def _low(number: Any) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))


def linear(values: pd.Series) -> str:
    """A linear predictor as text.

    Example:
        >>> linear(pd.Series({"Intercept": 1.5, "age": -0.25}))
        '1.5 − 0.25 age'
    """
    shown = list(values.items())
    more = len(shown) - MOST_TERMS
    if more > 0:
        shown = shown[:MOST_TERMS]
    text = ""
    for name, value in shown:
        sign = MINUS if value < 0 else "+"
        term = f"{abs(value):.4g}" + ("" if name == "Intercept" else f" {name}")
        text += f" {sign} {term}" if text else (f"{MINUS}{term}" if value < 0 else term)
    return (text or "0") + (f" + … ({more} more terms, see the table)" if more > 0 else "")


def criteria(subject: Subject) -> dict[str, Any]:
    """Log-likelihood of the training rows, degrees of freedom, AIC, BIC and ICL."""
    fit, size, llf = subject.fit, subject.num_parameters, subject.log_likelihood
    found: dict[str, Any] = {"parameters": f"{size:,}"}
    if llf is None:
        return found
    found["log-likelihood of the training rows, nats"] = f"{llf:.3f}"
    if subject.strong_prior:
        return found
    bic = -2.0 * llf + math.log(fit.total) * size
    found |= {"AIC": f"{-2.0 * llf + 2.0 * size:.3f}", "BIC": f"{bic:.3f}"}
    if hasattr(fit, "icl"):
        found["ICL"] = f"{fit.icl:.3f}"
    elif subject.posterior is not None and subject.num_components > 1:
        certain = np.log(np.maximum(subject.posterior_array.max(1), 1e-300))
        weights = 1.0 if subject.weights is None else subject.weights.numpy()
        found["ICL"] = f"{bic - 2.0 * (weights * certain).sum():.3f}"
    return found


def _tables(subject: Subject, coefficients: pd.DataFrame) -> Iterator[str]:
    without = bool(coefficients["standard_error"].isna().all())
    parts = []
    for (k, equation), part in by_equation(coefficients):
        own = part.droplevel(["component", "equation"])
        left = len(own) - MOST_ROWS
        if left > 0:
            largest = own["z"].abs().fillna(np.inf).nlargest(MOST_ROWS).index
            own = own[own.index.isin(largest)]
        title = (
            f"Gate: component {k} against component 0"
            if equation == "gate"
            else (
                f"{'All components' if k == 'all' else f'Component {k}'}: "
                f"{_named(subject, str(equation))}"
            )
        )
        shown = estimates(own)
        more = f" ({left} terms of smaller |z| are left out)" if left > 0 else ""
        parts.append(block(title + more, table(shown)))
    yield columns(*parts)
    yield paragraph(_of_errors(subject, without=without), soft=True)
    if coefficients["standard_error"].isna().any() and not without:
        yield paragraph(
            "An estimate without a standard error is not determined by the rows, or is at a limit, "
            "as the gate of components that a column separates",
            soft=True,
        )


def estimates(own: pd.DataFrame) -> pd.DataFrame:
    """A row for each term: the estimate, its error to three digits, and what follows from it."""
    rows, digits = [], 4 if own["standard_error"].isna().all() else 3
    for term, estimate, error, z, p, low, high in own.itertuples():
        row = {"term": str(term), "estimate": f"{estimate:.{digits}g}"}
        if np.isfinite(error) and error > 0:
            places = 2 - math.floor(math.log10(error))
            if places >= 0 or abs(estimate) > error:
                row["estimate"] = rounded(estimate, places)
            row["std. error"] = rounded(error, places)
            row["z"] = "" if np.isnan(z) else f"{z:.2f}"
            row["p"] = "" if np.isnan(p) else p_value(p)
            row["95 % interval"] = f"{rounded(low, places - 1)} to {rounded(high, places - 1)}"
        rows.append(row)
    return pd.DataFrame(rows)


def rounded(value: float, places: int) -> str:
    """A number to so many decimal places, which may be negative.

    Example:
        >>> rounded(143.6784, 1), rounded(27901.0, -2), rounded(2e-7, 9)
        ('143.7', '27900', '2.00e-07')
    """
    if places > 6:
        return f"{value:.2e}"
    return f"{round(value, places) + 0.0:.{max(places, 0)}f}"  # no zero is negative


def _named(subject: Subject, equation: str) -> str:
    """The name of an equation of an expert; for classes, what is compared."""
    if not subject.of_classes:
        return equation
    names = class_names(subject)
    numbered = subject.given_classes and getattr(subject.fit, "design", None) is None
    shown = names[int(equation)] if numbered and equation.isdigit() else equation
    return f"{subject.targets[0]} = {shown} against {names[0]}"


def class_names(subject: Subject) -> tuple[str, ...]:
    """The names of all classes; their numbers if they have none."""
    size = subject.prediction.experts.shape[-1]
    return subject.classes or tuple(str(k) for k in range(size))


def _of_errors(subject: Subject, *, without: bool) -> str:
    if without:
        return (
            "Estimates are in the units of the data. There are no standard errors: the story has "
            "other parameters that the rows do not determine, or the training rows are not here"
        )
    kind = getattr(subject.fit, "cov_type", "observed")
    source = "the sandwich" if kind == "sandwich" else "the observed information"
    prior = ", the prior counted in" if not hasattr(subject.fit, "cov_type") else ""
    return (
        f"Estimates are in the units of the data, standard errors from {source}{prior}. They hold "
        "for many rows in each component"
    )


def p_value(p: float) -> str:
    """A p-value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _means(subject: Subject) -> list[str]:
    """Weights, means and deviations of the components of a mixture of x."""
    mixture: Any = getattr(subject.fit.story, "mixture", None)
    if subject.name not in ("GMM", "GMMMoE") or mixture is None:
        return []
    normals, weights = mixture.normals, mixture.logits.detach().double().softmax(-1)
    mean, deviation = normals.mean.detach(), normals.stddev.detach()
    shown = pd.DataFrame({"column": list(subject.columns)})
    for k, weight in enumerate(weights.tolist()):
        pairs = zip(mean[k].tolist(), deviation[k].tolist(), strict=True)
        shown[f"component {k}, π = {weight:.3f}"] = [f"{m:.4g} ± {s:.3g}" for m, s in pairs]
    left = len(shown) - MOST_ROWS
    more = f"; {left} columns are left out" if left > 0 else ""
    return [block(f"Mean ± standard deviation of each column{more}", table(shown.head(MOST_ROWS)))]
