"""What the page says is what the fit says: numbers are read from the HTML and compared."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import criticism, evaluation, models
from pyro_moe.criticism import figures
from pyro_moe.criticism.report.model import estimates, rounded
from pyro_moe.fitting import with_fewer


class Tables(HTMLParser):
    """The tables of a page by the heading before them, each a list of rows of texts."""

    def __init__(self, source):
        super().__init__()
        self.tables, self.title, self.inside, self.text = {}, "", None, []
        self.paragraphs = []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.setdefault(self.title, []).append([])
        if tag == "tr":
            self.tables[self.title][-1].append([])
        if tag in ("td", "th", "h2", "h3", "p", "li"):
            self.inside, self.text = tag, []

    def handle_data(self, data):
        if self.inside:
            self.text.append(data)

    def handle_endtag(self, tag):
        if tag != self.inside:
            return
        text = "".join(self.text)
        if tag in ("td", "th"):
            self.tables[self.title][-1][-1].append(text)
        elif tag in ("h2", "h3"):
            self.title = text
        else:
            self.paragraphs.append(text)
        self.inside = None

    def frame(self, title, number=0):
        head, *rows = self.tables[title][number]
        return pd.DataFrame(rows, columns=head).set_index(head[0])


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    x, size = generator.normal(size=160), generator.normal(size=160)
    c = generator.random(160) < 1 / (1 + np.exp(-2.0 * size))
    y = np.where(c, 3.0 + x, -1.0 - 2.0 * x) + 0.6 * generator.normal(size=160)
    counts = generator.poisson(np.exp(np.where(c, 1.0 + 0.5 * x, 2.0)))
    kind = np.where(y > 1, "much", np.where(y > -1, "some", "none"))
    return pd.DataFrame({"x": x, "size": size, "y": y, "n": counts, "kind": kind})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    def make(fit, data=None, **options):
        path = tmp_path_factory.mktemp("page") / "report.html"
        return Tables(fit.report(path, data, num_replicates=5, **options).read_text("utf-8"))

    return make


@pytest.fixture(scope="module")
def mixture(table):
    return pyro_moe.mixture("y ~ x | size", table, num_components=2, order="x")


@pytest.fixture(scope="module")
def page(mixture, written):
    return written(mixture, table="firms.csv")


def within(text, value, error):
    """Whether a number is written to at least three digits of its error."""
    return abs(float(text) - value) <= 0.006 * error


def test_coefficients_errors_and_intervals(mixture, page):
    found, number = mixture.coefficients(), 0
    titles = {(0, "y"): "Component 0: y", (1, "y"): "Component 1: y"}
    titles[1, "gate"] = "Gate: component 1 against component 0"
    for (k, equation, term), row in found.iterrows():
        shown = page.frame(titles[k, equation]).loc[term]
        error = row["standard_error"]
        assert within(shown["estimate"], row["estimate"], error)
        assert within(shown["std. error"], error, error)
        ends = shown["95 % interval"].split(" to ")
        for text, value in zip(ends, row[["lower", "upper"]], strict=True):
            assert abs(float(text) - value) <= 0.06 * error
        if not math.isnan(row["z"]):
            assert float(shown["z"]) == pytest.approx(row["z"], abs=0.0051)
            assert shown["p"] == ("<0.001" if row["p"] < 1e-3 else f"{row['p']:.3f}")
        number += 1
    assert number == mixture.df_model


def test_the_equation_has_names_and_numbers(mixture, page):
    b = mixture.params
    line = next(text for text in page.paragraphs if text.startswith("component 1: y = "))
    numbers = re.findall(r"(\N{MINUS SIGN}?) ?(\d[\d.e-]*)", line.partition("y = ")[2])
    values = [float(number) * (-1 if sign else 1) for sign, number in numbers]
    expected = [b[1, "y", "Intercept"], b[1, "y", "x"], 0.0, b[1, "y", "sigma"]]
    assert values[:2] + values[3:4] == pytest.approx(expected[:2] + expected[3:], rel=1e-3)
    assert " x + ε" in line
    assert any(text.startswith("gate: log g₁(x) / g₀(x) = ") for text in page.paragraphs)


def test_criteria_are_those_of_the_fit(mixture, page):
    facts = dict(page.tables["The fitted model"][0])
    assert facts["log-likelihood of the training rows, nats"] == f"{mixture.llf:.3f}"
    assert facts["parameters"] == str(mixture.df_model)
    assert [facts[name] for name in ("AIC", "BIC", "ICL")] == [
        f"{value:.3f}" for value in (mixture.aic, mixture.bic, mixture.icl)
    ]


def test_the_title_says_what_was_fitted_to_what(mixture, page):
    facts = dict(page.tables[""][0] if "" in page.tables else next(iter(page.tables.values()))[0])
    assert facts["Table"] == "firms.csv"
    assert facts["Target"] == "y"
    assert facts["Formula"] == "y ~ x | size"
    assert facts["Rows"] == "160 for fitting"
    assert facts["Model"].endswith("2 components, normal experts")


def test_sizes_are_those_of_the_training_rows(mixture, page, table, written):
    shown = page.frame("Components").astype(float)
    sizes = mixture.sizes
    np.testing.assert_allclose(shown["prior"], sizes["gate"], rtol=1e-3)
    np.testing.assert_allclose(shown["posterior"], sizes["posterior"], rtol=1e-3)
    np.testing.assert_array_equal(shown["assigned"], sizes["assigned"])
    q = mixture.posterior().to_numpy()
    np.testing.assert_array_equal(shown["posterior > 0.0001"], (q > 1e-4).sum(0))
    other = written(mixture, table.iloc[:60])  # other rows to be judged by
    pd.testing.assert_frame_equal(other.frame("Components").astype(float), shown)
    assert dict(next(iter(other.tables.values()))[0])["Rows"] == "160 for fitting; 60 held out"


def test_the_baselines_stand_beside_the_fit(mixture, page, table):
    shown = page.frame("Goodness of fit")
    x = np.column_stack([np.ones(160), table["x"], table["size"]])
    y = table["y"].to_numpy()
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    rmse, sigma = np.sqrt(np.square(residual).mean()), np.sqrt(np.square(residual).sum() / 157)
    log_density = -0.5 * np.square(residual / sigma) - np.log(sigma * np.sqrt(2 * np.pi))
    line, fewer = shown["one linear model"], shown["1 component"]
    assert float(line["root mean squared error of y"]) == pytest.approx(rmse, rel=1e-3)
    assert float(line["log-likelihood, nats per row"]) == pytest.approx(
        log_density.mean(), rel=1e-3
    )
    own = mixture.llf / 160
    assert float(shown.loc["log-likelihood, nats per row", "this fit"]) == pytest.approx(
        own, rel=1e-3
    )
    smaller = with_fewer(mixture)
    assert float(fewer["log-likelihood, nats per row"]) == pytest.approx(
        evaluation.score(smaller, mixture.data[:2]), rel=1e-3
    )


def test_classes_have_accuracy_log_loss_and_probabilities(table, written):
    fit = pyro_moe.mixture(
        "kind ~ x | size", table, num_components=2, family="categorical", prior="weak"
    )
    page = written(fit)
    x, y = fit.data[:2]
    scores = evaluation.classification_scores(evaluation.predict(fit, x), y)
    shown = page.frame("Goodness of fit")["this fit"]
    assert float(shown["log loss, nats per row"]) == pytest.approx(scores["log_loss"], rel=1e-3)
    (accuracy,) = (text for name, text in shown.items() if name.startswith("accuracy"))
    assert accuracy == f"{scores['accuracy']:.1%}"
    experts = page.frame("Experts")
    assert {"P(much)", "P(none)", "P(some)"} <= set(experts.columns)
    assert not {"mean", "standard deviation"} & set(experts.columns)
    total = experts[["P(much)", "P(none)", "P(some)"]].astype(float).sum(axis=1)
    np.testing.assert_allclose(total, 1.0, atol=2e-3)
    assert "Component 0: kind = none against much" in page.tables


def test_a_bad_fit_is_told_with_its_reason(written):
    """Three experts with seven slopes each on 26 rows of noise."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(26, 7, generator=generator), torch.randn(26, 1, generator=generator)
    story = models.ME(7, 1, 3)
    options = {"prior": "none", "progress": False}
    with pytest.warns(pyro_moe.EmptyComponentWarning):
        fit = pyro_moe.fit(story.model, story.guide, (x, y), **options)
    told = " ".join(written(fit).paragraphs)
    found = re.search(
        r"The \N{GREEK SMALL LETTER SIGMA} of experts? [\d, and]+ at (its|their) floor: "
        r"(\d+) parameters on 26",
        told,
    )
    assert found is not None
    assert int(found[2]) == 3 * 9 + 2 * 8 == len(fit.coefficients())


def test_few_rows_have_no_histogram_of_the_transform(mixture, table, written, tmp_path):
    few, many = (
        mixture.report(tmp_path / "page.html", table.iloc[:n], num_replicates=5).read_text("utf-8")
        for n in (6, 60)
    )
    assert "Probability integral transform" not in few
    assert "Probability integral transform" in many


def test_components_that_say_the_same_are_told(written):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    y = x.sum(-1, keepdim=True) + 0.5 * torch.randn(60, 1, generator=generator)
    story = models.ME(3, 1, 3)
    fit = pyro_moe.fit(story.model, story.guide, (x, y), progress=False)
    assert fit.settings["prior"]["rows"] >= 1
    page = written(fit)
    assert any(text.startswith("All 3 components say the same") for text in page.paragraphs)
    assert "AIC" not in dict(page.tables["The fitted model"][0])


def test_several_targets_have_their_names_and_families(table, written):
    rows = table.assign(number=np.arange(len(table)) % 7, other=table["y"] - table["x"])
    families = ["normal", "poisson", "normal"]
    formulas = ["y ~ x", "number ~ x", "other ~ x"]
    fit = pyro_moe.mixture(formulas, rows, family=families, restarts=1, epochs=5)
    page = written(fit, rows)
    facts = dict(next(iter(page.tables.values()))[0])
    assert facts["Rows"] == "160 for fitting"  # none of these rows is held out
    assert facts["Model"].endswith("2 components, normal, poisson, normal experts")
    text = " ".join(page.paragraphs)
    assert "component 0: log E[number] = " in text
    assert "component 0: y = " in text
    head = page.tables["Experts"][0][0]
    assert [name for name in head if name.startswith("mean of")] == [
        f"mean of {name}" for name in ("y", "number", "other")
    ]
    figure = pyro_moe.plots.predictions(fit, fit.rows())
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "expert"
    assert [axes.get_title() for axes in figure.axes] == ["y", "number", "other"]
    assert all(axes.get_legend() is None for axes in figure.axes)
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == sorted(set(map(str, fit.predict(rows).gate.argmax(-1).tolist())))
    drawn = figures.pit_histogram(criticism.check(fit), names=fit.targets)
    shown = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
    assert shown[1:] == [f"data, {name}" for name in ("y", "number", "other")]


def test_shares_of_classes_have_their_names(table, written):
    rows = table.assign(kind=np.where(table["x"] > 0.3, "2", "1"))
    rows["kind"] = rows["kind"].where(np.arange(len(rows)) % 5 > 0, "3")
    fit = pyro_moe.mixture("kind ~ size", rows, family="categorical", restarts=1, epochs=3)
    page = written(fit)
    checked = page.frame("Predictive checks")
    named = checked["column"][checked["statistic"] == "share"]
    assert len(named)
    assert set(named) <= {"1", "2", "3"}
    table = criticism.check(fit, classes=["1", "2", "3"], num_replicates=20).table
    first = table[table["statistic"] == "share"].iloc[0]
    assert first["column"] == "1"
    assert first["observed"] == pytest.approx((rows["kind"] == "1").mean(), rel=0.05)
    equations = " ".join(page.paragraphs)
    assert "log P(kind = 2) / P(kind = 1)" in equations


def test_no_zero_is_negative():
    assert rounded(-461.0, -3) == "0"
    assert rounded(-0.001, 2) == "0.00"


def test_no_estimate_is_rounded_away_by_its_error():
    terms = pd.Index(["separated", "undetermined", "large", "small"])
    known = {
        "estimate": [-35.238, -35.238, 27941.0, 0.0123],
        "standard_error": [1.6e7, np.nan, 512.0, 0.5],
    }
    columns = {**known, "z": 0.0, "p": 1.0, "lower": -1.0, "upper": 1.0}
    shown = estimates(pd.DataFrame(columns, terms)).set_index("term")
    assert shown["estimate"].tolist() == ["-35.2", "-35.2", "27941", "0.012"]
    assert pd.isna(shown.loc["undetermined", "std. error"])
    assert shown.loc["large", "std. error"] == "512"
