"""The report in a real browser: nothing fetched, nothing cut off, on a desk and on a phone."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch

import pyro_moe
from pyro_moe import Rows, models

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium")

MEASURE = """
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, images = [...page.images];
  const outside = [...page.querySelectorAll("h1, h2, p, li, figcaption, .scroll")].filter(
    (part) => part.getBoundingClientRect().right > frame.clientWidth + 1);
  const cut = [...page.querySelectorAll("td, th, p, li, h1, h2")].filter(
    (part) => part.scrollWidth > part.clientWidth + 1 && !part.closest(".scroll"));
  const result = {
    title: page.title,
    overflow: page.documentElement.scrollWidth - frame.clientWidth,
    outside: outside.map((part) => part.textContent.slice(0, 60)),
    cut: cut.map((part) => part.textContent.slice(0, 60)),
    images: images.map((image) => [image.naturalWidth, image.getBoundingClientRect().width]),
    first: page.querySelector("h2").textContent,
    fetched: frame.contentWindow.performance.getEntriesByType("resource")
      .map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
    text: Math.min(...[...page.querySelectorAll("p, td, li, figcaption")].map(
      (part) => parseFloat(getComputedStyle(part).fontSize))),
  };
  document.querySelector("#result").textContent = JSON.stringify(result);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    c = torch.randint(2, (400,), generator=generator)
    x = torch.randn(400, 2, generator=generator) + 4.0 * c.unsqueeze(-1)
    y = torch.where(c == 0, x[:, 0], -x[:, 1]) + torch.randn(400, generator=generator)
    story = models.GMMMoE(x_dim=2, y_dim=1, num_components=2)
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        (x[:300], y[:300]),
        loss="em",
        epochs=20,
        prior="none",
        progress=False,
    )
    rows = Rows(x[300:], y[300:], columns=("a column with a long name", "b"), targets=("price",))
    path = tmp_path_factory.mktemp("report") / "report.html"
    return fit.report(path, rows, num_replicates=20)


def opened(page, folder, width):
    """What a frame of that width says of the page."""
    source = html.escape(page.read_text(encoding="utf-8"))
    outer = folder / "outer.html"
    frame = f'<iframe srcdoc="{source}" style="border:0" width="{width}" height="800"></iframe>'
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><pre id="result"></pre>{frame}{MEASURE}',
        encoding="utf-8",
    )
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=20000",
        "--dump-dom",
        outer.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout  # noqa: S603
    return json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1]))


@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_fits_its_window(page, tmp_path, width):
    seen = opened(page, tmp_path, width)
    assert seen["overflow"] <= 0
    assert seen["outside"] == []
    assert seen["cut"] == []


@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_needs_nothing_beside_it(page, tmp_path, width):
    seen = opened(page, tmp_path, width)
    assert seen["fetched"] == []
    assert len(seen["images"]) > 5
    assert all(natural > 0 and shown > 200 for natural, shown in seen["images"])


def test_warnings_come_first_and_text_can_be_read(page, tmp_path):
    seen = opened(page, tmp_path, 360)
    assert seen["first"] in ("Warnings", "No warnings")
    assert seen["title"] == "GMMMoE of price"
    assert seen["text"] >= 13  # pixels


def test_the_page_prints(page, tmp_path):
    out = tmp_path / "report.pdf"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={out}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)  # noqa: S603
    assert out.read_bytes().startswith(b"%PDF")


def test_a_page_that_is_too_wide_is_seen(page, tmp_path):
    """The measurement can fail."""
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(
        text.replace("<main>", '<main><p style="width: 3000px">wide</p>'), encoding="utf-8"
    )
    assert opened(broken, tmp_path, 360)["overflow"] > 0
