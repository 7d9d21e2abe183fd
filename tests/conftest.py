"""What all tests share: one thread, an empty parameter store, a seed, and double precision."""

import pyro
import pytest
import torch

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
