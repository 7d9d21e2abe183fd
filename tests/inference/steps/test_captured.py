"""Steps as CUDA graphs, on an imitation of them that runs everywhere.

It has what is special of CUDA graphs: Python runs once, and later only the operations, on the same
memory. `tests/pyro_moe/test_cuda.py` has the graphs themselves.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_moe.inference.objectives import objective
from pyro_moe.inference.steps import Recording, gradients
from pyro_moe.inference.steps.captured import captured, on_gpu
from pyro_moe.inference.svi import SVI
from pyro_moe.models import DMVAE, DeepMoE

EXACT = {"rtol": 0, "atol": 0}


class Graph:
    """Operations with their memory."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for operation, args, kwargs, results in self.calls:
            found = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(found), strict=True):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capture(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        self.graph.calls.append((operation, args, kwargs or {}, results))
        return results


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture(autouse=True)
def imitated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(gradients, "on_gpu", lambda tensors: True)
    monkeypatch.setattr(gradients, "WORTHWHILE", 1)
    monkeypatch.setattr(Recording, "compile", lambda self, inputs: "there is no compiler")


def noisy(mean, total, x):
    """A function with random numbers and with an argument that it changes."""
    drawn = mean + torch.randn(3)
    total.add_(drawn)
    return [(x * drawn).sum(), drawn.exp()]


def test_a_captured_function_has_the_results_of_the_function():
    """New arguments, new random numbers, and a sum that goes on."""
    arguments = [torch.randn(3) for _ in range(3)]
    graph = make_fx(noisy)(*(value.clone() for value in arguments))
    run = captured(graph, arguments)
    own, other = torch.zeros(3), torch.zeros(3)
    for seed in range(3):
        mean, x = torch.randn(2, 3).unbind()
        torch.manual_seed(seed)
        found = [value.clone() for value in run(mean, own, x)]
        torch.manual_seed(seed)
        assert_close(found, noisy(mean, other, x), **EXACT)
        assert_close(own, other, **EXACT)
    assert not on_gpu(arguments)


def run_of(make, data, **choices):
    torch.manual_seed(0)
    story = make()
    elbo, treatment = objective("marginal")
    settings = {"epochs": 6, "batch_size": 10, "learning_rate": 1e-2, "seed": 0} | choices
    run = SVI(story.model, story.guide, data, elbo, treatment, temperature=0.5, **settings)
    lines = []
    run.gradients.say = lines.append
    list(run)
    return run, lines


@contextmanager
def failing(self, *arguments):
    raise RuntimeError("operation not permitted when stream is capturing")
    yield


def dmvae():
    return DMVAE(2, 1, 3, hidden=(4,))


def deepmoe():
    gate = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    return DeepMoE(2, 1, 3, gate=gate)


@pytest.mark.parametrize("make", [dmvae, deepmoe])
def test_a_captured_run_is_the_run_itself(make):
    """With random numbers of the guide; and with those of dropout, and statistics of batches."""
    data = (torch.randn(20, 2), torch.randn(20, 1))[: 1 if make is dmvae else 2]
    (run, lines), (other, _) = (run_of(make, data, compile=each) for each in (True, False))
    assert lines[-1] == "steps of 10 rows are a CUDA graph"
    assert run.gradients.replayed == other.gradients.replayed > 8
    assert_close(run.parameters(), other.parameters(), **EXACT)
    assert_close(run.buffers(), other.buffers(), **EXACT)
    assert [each["elbo"] for each in run.history] == [each["elbo"] for each in other.history]


def test_steps_that_cannot_be_captured_are_replayed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph", failing)
    data = (torch.randn(20, 2),)
    run, lines = run_of(dmvae, data, compile=True)
    reason = "operation not permitted when stream is capturing"
    assert lines[-1] == f"steps of 10 rows are not a CUDA graph: RuntimeError: {reason}"
    assert run.gradients.replayed > 8


def test_where_a_captured_step_differs_steps_go_on_without(monkeypatch):
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    run, lines = run_of(dmvae, (torch.randn(20, 2),), compile=True)
    assert lines[2] == "gradients differ: steps go on without bfloat16 and CUDA graphs"
    assert "steps of 10 rows are a CUDA graph" not in lines[3:]
    assert run.gradients.replayed > 8
