"""Fits on a GPU, where there is one."""

import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation
from pyro_moe.inference.steps import bfloat16
from pyro_moe.inference.steps.captured import captured
from pyro_moe.models import DMVAE, GMM, DVMoE
from pyro_moe.progress import Progress

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


@pytest.mark.parametrize("options", [{"compile": True}, {"bfloat16": True}])
def test_steps_as_cuda_graphs_or_in_bfloat16_have_the_results_of_others(options, monkeypatch):
    """In the first epoch. Later ones of a network as small as this may go on without bfloat16."""
    monkeypatch.setattr(bfloat16, "LARGE", 1)
    (x, _), found, lines = rows(), [], []
    monkeypatch.setattr(Progress, "say", lambda self, line: lines.append(line))
    for more in ({"compile": False}, options):
        torch.manual_seed(0)
        story = DMVAE(2, 2, 2, hidden=(8,))
        common = {"epochs": 100, "batch_size": 60, "initialize": "random", "progress": False}
        fit = pyro_moe.fit(story.model, story.guide, x.float(), device="cuda", **common, **more)
        found.append(fit.history[0]["elbo"])
    assert found[1] == pytest.approx(found[0], rel=1e-2)
    if "compile" in options:
        assert "steps of 60 rows are a CUDA graph" in lines
    else:
        assert found[1] != found[0]


def test_a_cuda_graph_draws_the_random_numbers_of_its_operations():
    def noisy(mean, total):
        total.add_(mean + torch.randn(3, device="cuda"))
        return [total.exp(), torch.randn(2, device="cuda")]

    own, other = torch.zeros(3, device="cuda"), torch.zeros(3, device="cuda")
    run = captured(noisy, [torch.ones(3, device="cuda"), own])
    for seed in range(3):
        mean = torch.randn(3).cuda()
        torch.manual_seed(seed)
        found = [value.clone() for value in run(mean, own)]
        torch.manual_seed(seed)
        assert_close(found, noisy(mean, other))
        assert_close(own, other)


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
