"""The report is one page that needs nothing beside it, and what is wrong stands first."""

import base64
import itertools
import math
import re
from datetime import date
from html.parser import HTMLParser

import pytest
import torch

import pyro_moe
from pyro_moe import DataError, Rows, models
from pyro_moe.criticism import check, report

FEW = {"num_replicates": 20}
CHECKS = ["variable", "component", "statistic", "column", "observed", "simulated"]
CHECKS += ["standard deviation", "p value", "adjusted p value"]
EM = {"loss": "em", "epochs": 20, "prior": "none", "progress": False}


class Page(HTMLParser):
    """Titles, pictures, links and texts of a page."""

    def __init__(self, source):
        super().__init__()
        self.source, self.inside = source, []
        self.headings, self.items, self.heads, self.cells, self.title = [], [], [], [], ""
        self.images, self.links, self.classes = [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in ("meta", "img", "link"):
            self.inside.append(tag)
        if tag == "img":
            self.images.append(given)
        if tag == "section":
            self.classes.append(given.get("class"))
        self.links += [given[name] for name in ("href", "src", "srcset") if name in given]

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, text):
        tag = self.inside[-1] if self.inside else None
        kept = {"h2": self.headings, "li": self.items, "th": self.heads, "td": self.cells}
        if tag in kept:
            kept[tag].append(text)
        if tag == "title":
            self.title += text


@pytest.fixture
def written(tmp_path):
    """A function that writes the report of a fit and reads it."""

    def make(fit, data=None, **options):
        path = report(fit, tmp_path / "report.html", data, **{**FEW, **options})
        assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
        return Page(path.read_text(encoding="utf-8"))

    return make


@pytest.fixture(scope="module")
def clusters():
    generator = torch.Generator().manual_seed(0)
    c = torch.arange(600) % 2
    x = torch.randn(600, 3, generator=generator)
    x[:, 0] += 8.0 * c
    return x


def fitted(story, data):
    return pyro_moe.fit(story.model, story.guide, data, **EM)


OF_Y, PLANE = ["Components", "Experts", "Predictive checks"], ["Maps"]
SECTIONS = {
    "vae": ["Predictive checks", "Maps", "Generated data"],
    "vade": ["Components", "Predictive checks", "Maps", "Generated data"],
    "me, two targets": OF_Y + PLANE,
    "me, classes": OF_Y + PLANE,
    "me, missing targets": OF_Y + PLANE,
    "gmmmoe": [*OF_Y, *PLANE, "Generated data"],
    "bayesian, classes": OF_Y + PLANE,
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_needs_nothing_beside_it_and_has_what_the_story_has(fits, written, name):
    page = written(fits(name))
    assert not page.inside
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"@import|url\(", page.source)
    assert all(image["alt"].strip() for image in page.images)
    pictures = [base64.b64decode(image["src"].split(",")[1]) for image in page.images]
    assert all(picture.startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures)
    assert len(set(pictures)) == len(pictures) >= 3
    first, *others = page.headings
    assert first in ("Warnings", "No warnings")
    assert others == ["The fitted model", "Goodness of fit", *SECTIONS[name], "Training"]


def test_a_good_fit_has_no_warnings(clusters, written):
    page = written(fitted(models.GMM(3, 2), clusters[:400]), clusters[400:])
    assert page.headings[0] == "No warnings"
    assert page.classes[0] == "well"
    assert page.items == []


def test_what_is_wrong_stands_first_and_is_named(clusters, written):
    """One Gaussian for two clusters along the first of the columns that have names."""
    fit = fitted(models.GMM(3, 1), clusters[:400])
    rows = Rows(clusters[400:], columns=("age", "weight", "height"))
    page = written(fit, rows)
    assert page.headings[0] == "Warnings"
    assert page.classes[0] == "warnings"
    found = check(fit, rows, **FEW)
    first = found.allowed.loc[found.surprises().index[0]]
    assert first["column"] == "age"
    assert page.items == [
        f"Data simulated from the model differ from these rows: {found}. Largest discrepancy: "
        f"{first['statistic']} of x (age). Observed: {first['observed']:.4g}. Simulated: "
        f"{first['replicated']:.4g} ± {first['standard_deviation']:.2g}."
    ]


def test_the_table_of_checks_speaks_of_variables_and_says_where_all_rows_count(clusters, written):
    page = written(fitted(models.GMM(3, 2), clusters[:400]), clusters[400:])
    assert page.heads[-len(CHECKS) :] == CHECKS
    start = page.cells.index("x")
    assert page.cells[start + 1] in ("all", "0", "1")
    assert "all" in page.cells


def test_rows_that_were_fitted_are_called_so(clusters, written):
    fit = fitted(models.GMM(3, 2), clusters)
    seen = "These rows were used for fitting. Checks on them are optimistic; use held-out rows."
    page = written(fit)
    assert page.items == []
    assert seen in page.source
    assert seen in written(fit, clusters.clone()).source
    assert seen not in written(fit, clusters[1:]).source


def test_a_dead_component_and_an_early_end_are_told(clusters, written):
    story = models.GMM(3, 3)
    with torch.no_grad():
        story.mixture.loc[2] = 100.0
    fit = pyro_moe.fit(
        story.model, story.guide, clusters[:400], epochs=0, initialize="keep", progress=False
    )
    items = written(fit, clusters[400:]).items
    assert any(re.fullmatch(r"Components without rows: [\d, ]+\.", item) for item in items)

    def interrupt(fit):
        raise KeyboardInterrupt

    story = models.GMM(3, 2)
    fit = pyro_moe.fit(story.model, story.guide, clusters[:400], callback=interrupt, **EM)
    told = f"interrupted after 1 of {EM['epochs']} epochs"
    assert written(fit, clusters[400:]).items[0] == f"Training stopped early: {told}."


def test_what_was_fitted_and_its_scores_are_there(clusters, written):
    fit = fitted(models.GMM(3, 2), clusters[:400])
    cells = written(fit, clusters[400:]).cells
    facts = dict(itertools.pairwise(cells))
    assert facts["Rows"] == "400 for fitting; 200 held out"
    assert facts["Date"] == date.today().isoformat()
    assert facts["Model"] == "GMM: Gaussian mixture, 2 components"
    assert (facts["loss"], facts["seed"], facts["iterations"]) == (
        "em",
        "0",
        f"{len(fit.history)} of at most {fit.settings['epochs']}",
    )
    held, trained = (
        pyro_moe.evaluation.elbo(fit, rows).double() for rows in (clusters[400:], clusters[:400])
    )
    assert facts["log-likelihood, nats per row"] == f"{held.mean():.4g}"
    llf, size = trained.sum().item(), 1 + 2 * 3 + 2 * 6
    assert facts["parameters"] == str(size)
    assert facts["log-likelihood of the training rows, nats"] == f"{llf:.3f}"
    assert facts["AIC"] == f"{-2 * llf + 2 * size:.3f}"
    assert facts["BIC"] == f"{-2 * llf + math.log(400) * size:.3f}"


def test_scores_are_of_rows_with_a_target(fits, written):
    fit = fits("me, missing targets")
    x, y = fit.data
    known = ~y.isnan().flatten()
    prediction = pyro_moe.evaluation.predict(fit, x[known])
    rmse = pyro_moe.evaluation.regression_scores(prediction, y[known])["rmse"]
    cells = written(fit).cells
    assert cells[cells.index("root mean squared error of y") + 1] == f"{rmse:.4g}"


def test_the_title_is_the_storys_name_or_what_is_asked(clusters, written):
    fit = fitted(models.GMM(3, 2), clusters[:400])
    assert written(fit, clusters[400:], num_replicates=2).title == "GMM"
    page = written(fit, clusters[400:], title="<b>mine</b> & yours", num_replicates=2)
    assert page.title == "<b>mine</b> & yours"
    assert "<b>" not in page.source


def test_names_of_columns_are_text_and_not_html(clusters, written):
    fit = fitted(models.GMM(3, 1), clusters[:400])
    rows = Rows(clusters[400:], columns=("<script>alert(1)</script>", "a & b", "c"))
    page = written(fit, rows)
    assert "<script" not in page.source
    assert "<script>alert(1)</script>" in page.cells


def test_a_fit_writes_its_own_report(clusters, tmp_path):
    fit = fitted(models.GMM(3, 2), clusters[:400])
    paths = [
        fit.report(tmp_path / "a.html", clusters[400:], **FEW),
        report(fit, str(tmp_path / "b.html"), clusters[400:], **FEW),
    ]
    assert [path.name for path in paths] == ["a.html", "b.html"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_file_that_cannot_be_written_is_told(clusters, tmp_path):
    fit = fitted(models.GMM(3, 2), clusters[:400])
    path = tmp_path / "nowhere" / "report.html"
    message = f"expected a file that can be written; got {path} (No such file or directory)"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        report(fit, path, clusters[400:], num_replicates=5)
