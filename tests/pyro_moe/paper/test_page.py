"""The page of the paper: numbers of tiny fits, and their pictures."""

from dataclasses import replace

import pytest

import pyro_moe
from pyro_moe import datasets
from pyro_moe.paper import clustering, page, table1

pytestmark = pytest.mark.filterwarnings(
    "ignore::pyro_moe.inference.errors.EmptyComponentWarning", "ignore::pyro_moe.DataWarning"
)  # of tiny fits


@pytest.fixture
def small(monkeypatch):
    """Both stories on a few rows, and one row of Table 1."""
    spiral = datasets.spiral(train_rows=12, test_rows=8)
    digits = [rows.take(slice(40)) for rows in datasets.digits()]
    monkeypatch.setattr(datasets, "spiral", lambda seed=0: spiral)
    monkeypatch.setattr(datasets, "digits", lambda: digits)
    true_fit = clustering.fit

    def fit(*programs, **options):
        return true_fit(*programs, **options | {"epochs": 2, "initialize": "random"})

    monkeypatch.setattr(clustering, "fit", fit)
    rows = [("spiral: paper, DVMoE", iter([1.0, 2.0, 3.0])), ("spiral: ME", iter([0.25, 0.5, 4.0]))]
    monkeypatch.setattr(page, "measured", lambda **options: iter(rows))


def test_the_page_has_the_table_the_figures_and_the_numbers(small, tmp_path):
    said = []
    path = page.write(tmp_path / "paper.html", quick=True, say=said.append)
    text = path.read_text()
    assert said == ["Table 1", "figures 4 to 7: digits of scikit-learn", "figures 8 to 11: spirals"]
    assert text.count("<img") == 12  # three of each story on both data
    for expected in ("paper, DVMoE", "0.25", "VaDE: codes of the test rows", "epochs to 99 %"):
        assert expected in text


def test_the_figures_come_without_the_table(small, tmp_path):
    said = []
    path = page.write(tmp_path / "figures.html", with_table=False, quick=True, say=said.append)
    text = path.read_text()
    assert [line.partition(":")[0] for line in said] == ["figures 4 to 7", "figures 8 to 11"]
    assert text.count("<img") == 12
    assert "Table 1" not in text


PARTS = {
    table1: lambda: table1.cell("ME", "spiral", *table1.rows("spiral", y_dim=1, seed=0), seed=0),
    clustering: lambda: clustering.of_spirals(quick=True),
}


@pytest.mark.parametrize("module", PARTS, ids=["table", "figures"])
def test_an_interruption_ends_the_page(module, small, monkeypatch):
    def interrupted(*programs, **options):
        options |= {"epochs": 1, "initialize": "random", "restarts": 1}
        return replace(pyro_moe.fit(*programs, **options), stopped="interrupted")

    monkeypatch.setattr(module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PARTS[module]()


def test_numbers_are_those_of_the_training(small):
    (dmvae, _) = clustering.of_spirals(quick=True)
    numbers = dmvae.numbers
    assert numbers["epochs"] == 2
    assert 0.2 <= numbers["test accuracy"] <= 1.0
    seconds = [record["seconds"] for record in dmvae.fit.history]
    assert numbers["seconds an epoch"] == pytest.approx(sum(seconds) / 2)


def test_epochs_to_a_share_of_the_gain():
    assert clustering.epochs_to([0.0, 5.0, 10.0, 9.0], 0.5) == 2
    assert clustering.epochs_to([3.0, 2.0], 0.99) == 1
