"""Names of columns, targets and classes are text: in pictures, reports, output and tables."""

import html
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import pyro_moe
from pyro_moe import Rows, cli, criticism, datasets, models, plots
from pyro_moe.criticism import figures
from pyro_moe.plots.names import label
from pyro_moe.text import in_one_line

N = 40
NAMES = {
    "dollars": "a_$_b_$",
    "formula": r"$\frac{1$",
    "escaped": r"\$x_{$",
    "percent": "100 % {x} %s {}",
    "lines": "two\nlines\r\n\tand a tab",
    "right-to-left": "\u0627\u0644\u0633\u0639\u0631 \u05de\u05d7\u05d9\u05e8",
    "override": "a\u202egnp.exe",
    "control": "red \x1b[31m bell \x07",
    "emoji": "\U0001f600 \u4f60\u597d",
    "long": "m" * 300,
    "html": "<script>alert('x')</script>&amp;",
    "quotes": 'it\'s "quoted", or not',
    "underscore": "__",
    "mathematics": r"\alpha^2",
}
each_name = pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))


def rows_of(name):
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, :1] + 1.0).double()
    return Rows(x.double(), y, columns=(name, f"{name}2"), targets=(f"{name}3",))


@pytest.fixture(scope="module")
def fits():
    rows = rows_of("a")
    options = {"epochs": 2, "prior": "weak", "progress": False}
    story = models.VaDEMoE(2, 1, 2, 2, hidden=(4,))
    density = models.GMM(2, 2)
    return (
        pyro_moe.fit(story.model, story.guide, (rows.x, rows.y), **options),
        pyro_moe.fit(density.model, density.guide, rows.x, **options),
    )


def texts(figure):
    FigureCanvasAgg(figure).draw()
    found = [each for each in figure.findobj(Text) if each.get_text()]
    assert not any(
        unicodedata.category(letter) == "Cc" for each in found for letter in each.get_text()
    )
    return {each.get_text() for each in found}


@each_name
def test_a_label_is_drawn_as_it_is_written(name):
    shown = label(name)
    text, mathematics = Text(0, 0, shown)._preprocess_math(shown)
    assert not mathematics
    assert len(text) <= 32
    expected = in_one_line(name, 32)
    assert all(a in (b, "□") for a, b in zip(text, expected, strict=True))


@each_name
def test_every_picture(name, fits):
    of_y, of_x = fits
    rows = rows_of(name)
    first, second, target = map(label, (*rows.columns, *rows.targets))
    drawn = plots.pictures(of_y, rows)
    assert {"gate_map", "reconstructions", "generated", "predictions", "latent_map"} <= {*drawn}
    for figure in drawn.values():
        texts(figure)
    assert {first, second} <= texts(drawn["gate_map"])
    assert target in texts(drawn["predictions"])
    assert {first, second, target} <= texts(criticism.experts(of_y, rows))
    assert target in texts(figures.replicates(of_y, rows, num_replicates=2))
    features = Rows(rows.x, columns=rows.columns)
    assert {first, second} <= texts(figures.replicates(of_x, features, num_replicates=2))


@each_name
def test_a_report(name, fits, tmp_path):
    of_y, _ = fits
    path = of_y.report(tmp_path / "report.html", rows_of(name), title=name, num_replicates=5)
    page = path.read_text(encoding="utf-8")
    shown = html.escape(in_one_line(name, None))
    assert f"<title>{shown}</title>" in page
    assert "<script" not in page
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)
    assert criticism.check(of_y, rows_of(name), num_replicates=5).table["column"].notna().any()


@each_name
def test_a_table_is_read_as_it_was_written(name, tmp_path):
    rows = rows_of(name)
    frame = pd.DataFrame(rows.x.numpy(), columns=list(rows.columns))
    frame[rows.targets[0]] = rows.y.numpy()
    frame.to_csv(tmp_path / "table.csv", index=False)
    read = datasets.table(tmp_path / "table.csv", target=rows.targets[0])
    assert (read.columns, read.targets) == (rows.columns, rows.targets)


@each_name
def test_the_command_line(name, tmp_path, capfd):
    table, run = tmp_path / "table.csv", str(tmp_path / "run")
    x = rows_of("a").x.numpy()
    classes = np.where(np.arange(N) % 2 == 0, name, "other")
    frame = pd.DataFrame({f"{name}1": x[:, 0], f"{name}2": x[:, 1], f"{name}3": classes})
    frame.to_csv(table, index=False)
    options = ["--experts", "categorical", "--num-components", "2", "--prior", "weak"]
    fit = ["fit", "me", "--data", str(table), "--target", f"{name}3", "--out", run, *options]
    out = str(tmp_path / "out.csv")
    for command in (
        [*fit, "--epochs", "2", "--quiet"],
        ["check", run, "--replicates", "19", "--all"],
        ["compare", run],
        ["report", run],
        ["predict", run, "--data", str(table), "--out", out],
    ):
        assert cli.main(command) == 0, capfd.readouterr().err
    assert cli.main(["fit", "gmm", "--data", str(table)]) == 2  # text in a column
    for stream in capfd.readouterr():
        assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", stream)
        assert max(map(len, stream.splitlines()), default=0) < 1000
    assert set(pd.read_csv(out, dtype=str)[f"{name}3"]) <= {name.strip(), "other"}


@pytest.mark.parametrize("name", ["\ud800", "\u2028", "\x00", "\x7f", "\x85"])
def test_characters_that_act_are_escaped(name):
    assert in_one_line(name).isascii()
    assert in_one_line(name).isprintable()


def test_a_long_name_keeps_both_ends():
    assert in_one_line("abcdefgh", 5) == "ab…gh"
    assert in_one_line("abcde", 5) == "abcde"
