"""Any story on any data: a finite, normalized, consistent result, or one line that says why not.

`HYPOTHESIS_PROFILE=thorough pytest tests/pyro_moe/test_any_data.py --hypothesis-seed=1` draws 2,000
cases, other ones for each seed.
"""

import os
import re
import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, SiteError, criticism, evaluation, models, plots
from pyro_moe.inference.traces import enumerated_traces, log_assignment

common: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=150, derandomize=True, database=None, **common)
settings.register_profile("thorough", max_examples=2000, database=None, **common)
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

OURS = re.compile(r"expected [^\n]+; got[^\n]*")
OUR_WARNINGS = (
    pyro_moe.DataWarning,
    pyro_moe.EmptyComponentWarning,
    pyro_moe.NonFiniteWarning,
    pyro_moe.ConvergenceWarning,
)
OF_X = ("GMM", "VAE", "VaDE", "DMVAE")
OF_Y = ("ME", "DeepMoE", "HierarchicalME", "GMMMoE", "VaDEMoE", "DVMoE")
DEEP = ("VAE", "VaDE", "DMVAE", "VaDEMoE", "DVMoE")
REAL = ("normal", "normal-scalar", "normal-full", "student-t")
PAGES = ("report", "pictures", "check")  # which take minutes with 64 draws of experts
# UMAP compiles itself for half a minute
UMAP = "umap" if find_spec("umap") is None or PROFILE.max_examples > 150 else "tsne"
FAMILIES = (*REAL, "categorical", "bernoulli", "poisson")


@dataclass(frozen=True)
class Case:
    """What was drawn. The same case has the same data."""

    story: str
    arguments: dict[str, Any]
    bayesian: bool
    x: dict[str, Any]
    y: dict[str, Any] | None
    container: str
    fit: dict[str, Any]
    start: str | None
    tool: str
    seed: int


def rarely(usual: Any, *others: Any) -> st.SearchStrategy:
    """A value that is the usual one in most draws."""
    return st.sampled_from([usual] * (9 * len(others)) + list(others))


def sometimes(*values: Any) -> st.SearchStrategy:
    return st.sampled_from(values)


@st.composite
def tables(draw: Any, rows: int, columns: int, kinds: tuple[str, ...]) -> dict[str, Any]:
    return {
        "shape": (rows, columns),
        "kind": draw(sometimes(*kinds)),
        "scale": draw(rarely(0, -30, -12, -3, 3, 12, 30)),
        "offset": draw(rarely(0.0, 1.0, -1e4, 1e9)),
        "hole": draw(rarely(None, "nan", "inf", "column", "all", "first")),
        "dtype": draw(
            rarely("float64", "float32", "float16", "int64", "uint8", "bool", "object", "complex64")
        ),
    }


@st.composite
def cases(draw: Any) -> Case:
    story = draw(sometimes(*OF_X, *OF_Y, *OF_Y))
    rows = draw(sometimes(1, 2, 3, 5, 8, 12, 20, 30, 60))
    columns = draw(sometimes(1, 2, 3))
    arguments: dict[str, Any] = {"x_dim": columns}
    kinds: tuple[str, ...] = ("normal", "groups", "ties", "constant", "twins", "far", "line")
    if story in DEEP:
        arguments |= {"z_dim": draw(sometimes(1, 2)), "hidden": (4,)}
        arguments["likelihood"] = draw(
            rarely("normal", "normal-heteroscedastic", "bernoulli", "continuous-bernoulli")
        )
        if arguments["likelihood"] == "bernoulli":
            kinds = ("bits", "bits", "normal")
        elif arguments["likelihood"] == "continuous-bernoulli":
            kinds = ("gray", "bits", "gray", "normal")
    if story == "DeepMoE":
        arguments["hidden"] = (4,)
    if story == "HierarchicalME":
        arguments["num_components"] = draw(sometimes((2, 2), (1, 2)))
    elif story != "VAE":
        arguments["num_components"] = min(draw(sometimes(1, 2, 3, 4)), rows + draw(rarely(0, 1)))
    if story in ("GMM", "GMMMoE", "VaDE", "DMVAE", "VaDEMoE", "DVMoE"):
        arguments["covariance"] = draw(sometimes("full", "diagonal", "tied"))
        arguments["weights"] = draw(sometimes("learned", "uniform"))
    y = None
    if story in OF_Y:
        family = draw(sometimes(*FAMILIES))
        targets = draw(rarely(1, 2, 3))
        arguments |= {"experts": family, "y_dim": targets if family != "categorical" else 3}
        if story in ("VaDEMoE", "DVMoE"):
            arguments["context"] = draw(rarely("x", "z"))
        own = {"categorical": "classes", "bernoulli": "bits", "poisson": "counts"}.get(family)
        of_y = (own, own, own, "normal", "counts") if own else (*kinds[:6], "function", "counts")
        y = draw(tables(rows, 1 if family == "categorical" else targets, of_y))
        y["flat"] = y["shape"][1] == 1 and draw(st.booleans())
        if own:
            y |= {"scale": 0, "offset": 0.0}
    elif draw(rarely(False, True)):
        y = draw(tables(rows, 1, ("normal",)))
    x = draw(tables(rows, columns, kinds))
    if kinds[0] in ("bits", "gray"):
        x |= {"scale": 0, "offset": 0.0}
    # cross-validation takes minutes where the M-step is iterative
    slow = story == "HierarchicalME" or arguments.get("experts") in FAMILIES[3:]
    fit = {
        "epochs": draw(sometimes(0, 1, 2, 2)),
        "batch_size": draw(rarely(None, 1, 5)),
        "loss": draw(
            sometimes(
                *("auto", "auto", "marginal", "categorical-kl", "relaxed"),
                *(("em", "em") if story not in DEEP and story != "DeepMoE" else ()),
            )
        ),
        "restarts": draw(rarely(None, 1, 2)),
        "validation": draw(rarely(None, 0.0, 0.3, 0.9)),
        "prior": draw(
            sometimes("weak", "weak", "none") if slow else rarely("weak", "auto", "none")
        ),
        "missing_targets": draw(st.booleans()),
        "seed": draw(rarely(0, 7)),
    }
    starts: tuple[str | None, ...] = (None, "random", "keep")
    if story != "HierarchicalME":  # whose M-step takes half a minute from a clustering
        starts += (*starts, "autoencoder", "autoencoder", "tsne", "soft", "labels", "labels")
        starts += (*starts[:9], "other", UMAP)
    start = draw(sometimes(*starts))
    bayesian = story in OF_Y and draw(rarely(False, True))
    tools = [tool for tool in TOOLS if not (bayesian and tool in PAGES)]
    return Case(
        story,
        arguments,
        bayesian,
        x,
        y,
        draw(rarely("numpy", "tensor", "frame", "list", "Rows")),
        fit,
        start,
        draw(sometimes(*tools, *["none"] * len(TOOLS))),
        draw(st.integers(0, 1000)),
    )


@np.errstate(all="ignore")
def values_of(table: dict[str, Any], generator: np.random.Generator, x: Any = None) -> np.ndarray:
    """The values of a table, as an array of its type."""
    rows, columns = table["shape"]
    values = generator.normal(size=(rows, columns))
    match table["kind"]:
        case "groups":
            values = 0.1 * values + 5.0 * generator.integers(3, size=(rows, 1))
        case "ties":
            values = generator.integers(2, size=(rows, columns)).astype(float)
        case "constant":
            values[:] = 1.0
        case "twins":
            values = values[generator.integers(min(2, rows), size=rows)]
        case "far":
            values[0] = 1e6
        case "line":
            values = np.repeat(np.linspace(0.0, 1.0, rows)[:, None], columns, 1)
        case "function":
            values = np.repeat(2.0 * np.nan_to_num(x[:, :1].real) - 1.0, columns, 1)
        case "bits":
            values = (values > 0).astype(float)
        case "gray":
            values = generator.uniform(size=(rows, columns))
        case "classes":
            values = generator.integers(3, size=(rows, columns)).astype(float)
        case "counts":
            values = generator.poisson(4.0, size=(rows, columns)).astype(float)
    values = (values + table["offset"]) * 10.0 ** table["scale"]
    dtype = table["dtype"]
    if dtype in ("int64", "uint8", "bool"):
        return np.nan_to_num(values).clip(0 if dtype == "uint8" else -1e18, 255).astype(dtype)
    match table["hole"]:
        case "nan":
            values[generator.uniform(size=rows) < 0.3] = np.nan
        case "inf":
            values[-1, -1] = np.inf
        case "column":
            values[:, -1] = np.nan
        case "all":
            values[:] = np.nan
        case "first":
            values[0] = np.nan
    return values.astype(dtype)


def data_of(case: Case) -> Any:
    generator = np.random.default_rng(case.seed)
    x = values_of(case.x, generator)
    parts = [x]
    if case.y is not None:
        y = values_of(case.y, generator, np.asarray(x, dtype=complex))
        parts.append(y[:, 0] if case.y.get("flat") else y)
    if case.container == "Rows":
        parts = [torch.as_tensor(part.real.astype(float)) for part in parts]
        return pyro_moe.Rows(*parts)
    made = {
        "numpy": np.asarray,
        "tensor": lambda part: torch.as_tensor(part.astype(float) if part.dtype == "O" else part),
        "frame": pd.DataFrame,
        "list": lambda part: part.tolist(),
    }[case.container]
    parts = [made(part) for part in parts]
    return parts[0] if len(parts) == 1 else tuple(parts)


def start_of(case: Case) -> Any:
    generator = np.random.default_rng(case.seed + 1)
    rows, number = case.x["shape"][0], case.arguments.get("num_components", 2)
    number = number if isinstance(number, int) else number[0]
    match case.start:
        case "soft":
            r = generator.uniform(size=(rows, number))
            return r / r.sum(1, keepdims=True)
        case "labels":
            return generator.integers(number, size=rows)
        case "other":
            return generator.integers(number + 1, size=rows + 1)
    return case.start


def fitted(case: Case) -> Any:
    story = getattr(models, case.story)(**case.arguments)
    if case.bayesian:
        story = models.BayesianExperts(story)
    options = {**case.fit, "initialize": start_of(case), "progress": False}
    return pyro_moe.fit(story.model, story.guide, data_of(case), **options)


def expect_probabilities(p: torch.Tensor) -> None:
    assert p.isfinite().all()
    assert (p >= 0).all()
    assert_close(p.double().sum(-1), torch.ones(len(p)).double(), atol=1e-5, rtol=0.0)


def consistent(fit: Any, case: Case) -> None:
    """The identities of a fit on its own rows."""
    assert all(value.isfinite().all() for value in fit.parameters().values())
    assert all(np.isfinite(r["elbo"]) for r in fit.history)
    assert evaluation.elbo(fit, fit.data, num_samples=8).isfinite().all()
    x = fit.data[0]
    if case.story != "VAE":
        expect_probabilities(evaluation.gate(fit, x, num_samples=8))
        with torch.no_grad():
            log_q = log_assignment(enumerated_traces(fit.model, fit.guide, *fit.data)[1])
        expect_probabilities(log_q.exp().double().T)
    if case.story in DEEP:
        assert evaluation.encode(fit, x).isfinite().all()
        assert evaluation.reconstruct(fit, x).isfinite().all()
    if case.story in OF_Y:
        consistent_prediction(fit, case, evaluation.predict(fit, x, num_samples=8))


def consistent_prediction(fit: Any, case: Case, p: evaluation.Prediction) -> None:
    expect_probabilities(p.gate)
    assert p.mean.isfinite().all()
    assert (p.variance >= 0).all()
    weights, means, variances = p.components()
    spread = (weights * (variances + (means - p.mean.unsqueeze(1)).square())).sum(1)
    assert_close(p.variance, spread, rtol=1e-9, atol=0.0)
    y = fit.data[1]
    known = ~y.reshape(len(y), -1).isnan().any(-1)
    density = p.log_prob(y.nan_to_num(0.0))
    assert density[known].isfinite().all()
    if case.story in ("ME", "DeepMoE", "HierarchicalME") and not case.bayesian:
        bound = evaluation.elbo(fit, fit.data).double()
        assert_close(bound[known], density[known], rtol=1e-4, atol=1e-3)
    family = case.arguments["experts"]
    if family == "categorical":
        each = [p.log_prob(torch.full((len(p),), k)).exp() for k in range(p.mean.shape[1])]
        assert_close(sum(each), torch.ones(len(p)).double())
    elif family in ("bernoulli", "poisson"):
        counts(p)
    else:
        quantiles(p)
        if p.mean.shape[1] == 1 and family != "student-t" and case.story != "HierarchicalME":
            integrates(p, y)
        elif p.mean.shape[1] == 1:  # a grid may miss narrow peaks
            is_derivative(p)


def counts(p: evaluation.Prediction) -> None:
    """The probabilities of the values up to each quantile sum to the distribution function."""
    like = torch.zeros(len(p), *p.distributions[0].event_shape).double()
    for q in (0.05, 0.5, 0.95):
        value = p.quantile(q)
        assert (p.cdf(value) >= q - 1e-9).all()
        assert (p.cdf(value - 1.0) < q + 1e-9).all()
    last = int(p.quantile(0.5).max())
    if like[0].numel() == 1 and last < 100:
        total = sum(p.log_prob(like + k).exp() for k in range(last + 1))
        assert_close(total, p.cdf(like + last).reshape(-1), rtol=1e-6, atol=1e-9)


def quantiles(p: evaluation.Prediction) -> None:
    for q in (0.05, 0.5, 0.95):
        value = p.quantile(q)
        assert value.isfinite().all()
        rounding = 1e-15 * value.abs()
        shape = (-1, *p.distributions[0].event_shape)
        assert (p.cdf((value - rounding).reshape(shape)) <= q + 1e-6).all()
        assert (p.cdf((value + rounding).reshape(shape)) >= q - 1e-6).all()


def is_derivative(p: evaluation.Prediction) -> None:
    """The density is the derivative of the distribution function.

    The step must be short beside the narrowest component, and long beside rounding errors. In
    gaps between components there is none.
    """
    shape = (-1, *p.distributions[0].event_shape)
    width = (p.quantile(0.975) - p.quantile(0.025)).reshape(shape)
    for q in (0.05, 0.5, 0.95):
        value = p.quantile(q).reshape(shape)
        density = p.log_prob(value).exp().reshape(shape)
        close = density * width < 1e-2
        for step in (1e-4, 1e-6, 1e-8):
            low, high = value - step / density, value + step / density
            change = (p.cdf(high) - p.cdf(low)).reshape(shape)
            close |= change.isclose((high - low) * density, rtol=0.05, atol=1e-12)
        assert close.all()


def integrates(p: evaluation.Prediction, y: torch.Tensor) -> None:
    """The integral of the density is the difference of the distribution function."""
    _, means, variances = p.components()
    if (variances.sqrt() < 1e-10 * means.abs()).any():
        return  # no two doubles are as near to each other as the density is wide
    scale = variances.clamp_max(1e6 * variances.amin(1, keepdim=True)).sqrt()
    steps = torch.linspace(-4.0, 4.0, 401).double().sinh()
    grid = (means + scale * steps).flatten(1).sort(1).values[:, :, None]  # (N, G, 1)
    column = p.distributions[0].event_shape
    ends = [grid[:, place].reshape(-1, *column) for place in (0, -1)]
    known = y.reshape(-1, 1, 1).nan_to_num(0.0).double()
    densities = []
    for points in (known, grid):
        each = [density_of(q, points.transpose(0, 1), p.leading) for q in p.distributions]
        joint = torch.stack(each).transpose(1, 2) + p.log_weights.unsqueeze(2)
        densities.append(joint.logsumexp(-1).exp().mean(0))
    at_y, density = densities
    assert_close(at_y[:, 0], p.log_prob(known.reshape(-1, *column)).exp())
    below = p.cdf(ends[1]) - p.cdf(ends[0])
    total = torch.trapezoid(density, grid[..., 0], dim=1)
    assert_close(total, below.reshape(-1), rtol=0.0, atol=2e-3)


def density_of(q: Any, points: torch.Tensor, leading: bool) -> torch.Tensor:
    """Log-densities (G, N, K) of points (G, N, 1) under the K distributions of each row."""
    value = points.unsqueeze(1) if leading else points.unsqueeze(2)
    value = value if q.event_shape else value.squeeze(-1)
    each = q.log_prob(value)
    return each.transpose(1, 2) if leading else each


def report(fit: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert fit.report(f"{folder}/report.html", num_replicates=5).exists()


TOOLS = {
    "none": lambda fit: None,
    "sample": lambda fit: evaluation.sample(fit, 5),
    "impute": lambda fit: evaluation.impute(
        fit, fit.data[0].clone().index_fill(1, torch.tensor([0]), torch.nan), num_samples=8
    ),
    "novelty": lambda fit: evaluation.novelty(fit, fit.data, num_samples=8),
    "check": lambda fit: criticism.check(fit, fit.data, num_replicates=19),
    "health": lambda fit: criticism.health(fit, fit.data),
    "pictures": lambda fit: [
        figure.canvas.draw() for figure in plots.pictures(fit, pyro_moe.Rows(*fit.data)).values()
    ],
    "report": report,
    "bound": lambda fit: evaluation.importance_weighted_bound(fit, fit.data, num_samples=8),
    "resume": lambda fit: pyro_moe.resume(fit, epochs=3, progress=False),
    "baseline": lambda fit: evaluation.linear_baseline(fit, fit.data),
}


def ends(case: Case) -> str:
    """How a case ends: "fit", or the line of ours."""
    allowed: tuple[type[Exception], ...] = (DataError, ValueError, SiteError)
    if case.start == "umap" and find_spec("umap") is None:
        allowed = (*allowed, ImportError)
    line = ""
    fit = None
    try:
        fit = fitted(case)
    except allowed as error:
        line = str(error)
    if fit is not None:
        consistent(fit, case)
        try:
            TOOLS[case.tool](fit)
        except allowed as error:
            line = str(error)
    assert not line or OURS.fullmatch(line), f"not a line of ours: {line}"
    return line if fit is None else "fit"


@PROFILE
@given(cases())
def test_a_consistent_result_or_one_line(case):
    with warnings.catch_warnings(record=True) as caught:
        for category in OUR_WARNINGS:  # others are errors
            warnings.simplefilter("always", category)
        ends(case)
    for warning in caught:
        assert OURS.fullmatch(str(warning.message)), f"not a line of ours: {warning.message}"
