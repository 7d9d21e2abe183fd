"""The callback for TensorBoard that the page on training shows, with a writer that remembers."""

import re
import sys
import types
from pathlib import Path

import torch

from pyro_moe import models

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "training.md"


class Writer:
    def __init__(self, folder):
        self.folder, self.written = folder, []

    def add_scalar(self, *scalar):
        self.written.append(scalar)


def test_the_callback_for_tensorboard_writes_all_numbers(monkeypatch, capsys):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code = next(iter(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M)))
    story = models.DeepMoE(2, 1, 2, hidden=(4,))
    x = torch.randn(40, 2)
    named = {"story": story, "x": x, "y": x[:, :1]}
    short = "callback=log, epochs=2, validation=0.2, initialize='random')"
    exec("import pyro_moe\n" + code.replace("callback=log)", short), named)  # noqa: S102
    writer = named["writer"]
    assert writer.folder == "runs/my-fit"
    names = {name for name, _, _ in writer.written}
    assert names >= {"training/elbo", "training/held_out_elbo", "all rows/elbo"}
    elbo = [(value, step) for name, value, step in writer.written if name == "training/elbo"]
    assert [step for _, step in elbo] == [1, 2]
    assert all(isinstance(value, float) for value, _ in elbo)
