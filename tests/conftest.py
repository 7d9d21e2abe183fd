"""What all tests share: one thread, an empty parameter store, a seed, and double precision."""

import pyro
import pytest
import torch
from torch.testing import assert_close

from pyro_moe.inference import MarginalELBO
from pyro_moe.inference.traces import enumerated_traces, log_assignment, row_log_weights

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def scatter():
    """A function that moves every parameter of a module away from its symmetric start."""

    def scattered(module, seed=0, scale=0.5):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        return module

    return scattered


@pytest.fixture
def loss_and_gradients():
    """A function that gives a loss and its gradients by parameter name, at one seed."""

    def evaluate(elbo, model, guide, story, *args, seed=0):
        story.zero_grad()
        torch.manual_seed(seed)
        loss = elbo.loss_and_grads(model, guide, *args)
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in story.named_parameters()
        }
        return loss, gradients

    return evaluate


@pytest.fixture
def marginal_elbo_is(loss_and_gradients):
    """A function that compares a story's marginal ELBO, and its gradients, to a hand-made sum.

    The sum is a function of the story's arguments that gives each row's bound, at one seed.
    """

    def compare(story, rows, *args):
        loss, gradients = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, *args)
        story.zero_grad()
        torch.manual_seed(0)
        expected = rows(*args).sum()
        expected.backward()
        assert -loss == pytest.approx(expected.item(), rel=1e-9)
        for name, p in story.named_parameters():
            by_hand = torch.zeros_like(p) if p.grad is None else p.grad
            assert_close(-gradients[name], by_hand, rtol=1e-7, atol=1e-9, msg=name)
        assert any(gradient.any() for gradient in gradients.values())

    return compare


@pytest.fixture
def guide_is_the_posterior():
    """A function that asserts that log p - log q is the same at every value of c."""

    def compare(story, *args):
        torch.manual_seed(0)
        model_trace, guide_trace = enumerated_traces(story.model, story.guide, *args)
        log_weights = row_log_weights(model_trace, guide_trace)
        gap = (log_weights - log_assignment(guide_trace)).detach()
        assert len(gap) > 1
        assert_close(gap, gap[:1].expand_as(gap), rtol=1e-9, atol=1e-9)

    return compare
