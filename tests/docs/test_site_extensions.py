"""What the site is checked for, and how its names become links."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "site_extensions"


def module(name):
    """A file of the site's own, which is part of no package that is installed."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


remote, names = module("remote"), module("names")


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://a.org/x.js"></script>',
        '<script src="//a.org/x.js"></script>',
        '<link rel="stylesheet" href="https://a.org/x.css">',
        '<img src="http://a.org/x.png">',
        '<iframe src="https://a.org"></iframe>',
        "<style>@import 'https://a.org/x.css';</style>",
        "<style>p { background: url(https://a.org/x.png) }</style>",
        '<p style="background: url(//a.org/x.png)">text</p>',
    ],
)
def test_a_page_that_fetches_is_found(html):
    assert len(remote.remote_in_page(html)) == 1


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://a.org">a link that a reader may follow</a>',
        '<script src="_static/x.js"></script>',
        '<script>const address = "https://a.org"; // url(https://a.org)</script>',
        '<link rel="canonical" href="https://a.org/page.html">',
        "<p>url(https://a.org) in a text</p>",
        '<style>p { background: url("data:image/png;base64,AAAA") }</style>',
    ],
)
def test_a_page_that_fetches_nothing_is_not(html):
    assert remote.remote_in_page(html) == []


def test_pages_and_style_sheets_of_a_folder_are_read(tmp_path):
    (tmp_path / "good.html").write_text('<script src="x.js"></script>')
    (tmp_path / "bad.html").write_text('<script src="https://a.org/x.js"></script>')
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "bad.css").write_text("src: url('https://a.org/x.woff2')")
    assert list(remote.remote_references(tmp_path)) == [
        "https://a.org/x.js in bad.html",
        "https://a.org/x.woff2 in fonts/bad.css",
    ]


@pytest.mark.parametrize(
    ("name", "target", "called"),
    [
        ("pyro_moe.evaluation.gate", "gate", True),
        ("pyro_moe.evaluation.gate", "evaluation.gate", True),
        ("pyro_moe.evaluation.gate", "pyro_moe.gating.gate", True),
        ("pyro_moe.evaluation.gate", "plots.gate", False),
        ("pyro_moe.evaluation.Prediction.gate", "gate", False),
        ("pyro_moe.evaluation.Prediction.gate", "Prediction.gate", True),
        ("pyro_moe.Fit", "pyro_moe.fitting.Fit", True),
    ],
)
def test_a_name_is_that_of_an_object_by_its_last_parts(name, target, called):
    assert names.is_called(name, target) is called
