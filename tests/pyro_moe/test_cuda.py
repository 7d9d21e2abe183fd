"""Fits on a GPU, where there is one."""

import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation
from pyro_moe.models import GMM, DVMoE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def rows():
    x = torch.randn(120, 2, generator=torch.Generator().manual_seed(0)).double()
    x += 4.0 * (torch.arange(120) % 2).unsqueeze(-1)
    return x, x[:, :1].abs()


@pytest.mark.parametrize("loss", ["em", "marginal"])
def test_a_mixture_has_the_parameters_of_a_fit_on_the_cpu(loss):
    """Their losses have no random numbers, and minibatches are drawn on the CPU."""
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        story = GMM(2, 2).double()
        options = {"loss": loss, "epochs": 20, "initialize": "keep", "progress": False}
        fit = pyro_moe.fit(story.model, story.guide, rows()[0], device=device, **options)
        parameters = fit.programs.parameters()
        assert {value.device.type for value in parameters.values()} == {device}
        found.append({name: value.detach().cpu() for name, value in parameters.items()})
    assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", ["marginal", "relaxed", "categorical-kl"])
def test_a_deep_story_is_trained_replayed_and_evaluated(loss):
    (x, y), story = rows(), DVMoE(2, 1, 2, 2, hidden=(8,))
    options = {"loss": loss, "epochs": 150, "batch_size": 60, "progress": False}
    data = x.float(), y.float()
    fit = pyro_moe.fit(story.model, story.guide, data, device="cuda", restarts=2, **options)
    assert fit.stopped is None
    assert {value.device.type for value in fit.programs.parameters().values()} == {"cuda"}
    mean = torch.as_tensor(evaluation.predict(fit, data[0]).mean)
    assert mean.shape == y.shape
    assert mean.isfinite().all()
