"""Compiled steps beside those that are evaluated.

A compilation of a story takes up to a minute. Stories are therefore tested with what is given to
the compiler, and the compiler with a small function.
"""

import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pyro_moe.inference.objectives import objective
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.steps import compiled, gradients, onednn, recording
from pyro_moe.inference.svi import SVI
from pyro_moe.models import DeepMoE, DVMoE

N, D, K = 22, 2, 3
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch):
    monkeypatch.setattr(gradients, "WORTHWHILE", 1)


def run_of(story, data, loss="marginal", *, compile=True, epochs=8, **choices):
    options = {"prior": Prior(1.0, 1.0), "num_rows": N} if loss == "marginal" else {}
    elbo, treatment = objective(loss, **options)
    settings = {"batch_size": 11, "learning_rate": 1e-2, "temperature": 0.5, "seed": 0} | choices
    run = SVI(
        story.model, story.guide, data, elbo, treatment, epochs=epochs, compile=compile, **settings
    )
    lines = []
    run.gradients.say = lines.append
    return run, lines


def assert_compiled_as_evaluated(make, data, *arguments, monkeypatch, **options):
    """A compiled run has the history and the parameters of an evaluated one, up to rounding."""
    torch.manual_seed(3)
    run, lines = run_of(make(), data, *arguments, **options)
    history = [record["elbo"] for record in run]
    assert lines
    assert all(" are compiled in " in line for line in lines)
    monkeypatch.setattr(gradients, "WORTHWHILE", 10**9)
    torch.manual_seed(3)
    other, _ = run_of(make(), data, *arguments, **options)
    assert_close(history, [record["elbo"] for record in other], **CLOSE)
    for name, value in other.parameters().items():
        assert_close(run.parameters()[name], value, **CLOSE)
    for one, two in zip(run.model.__self__.buffers(), other.model.__self__.buffers(), strict=True):
        assert_close(one, two, **CLOSE)


@pytest.fixture
def uncompiled(monkeypatch, tmp_path):
    """What is given to the compiler runs as it is."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "inductor", lambda function, tensors: function)


def some(x, w, b, c, noise):
    """A loss with products of few columns, random numbers, a constant and a change in place."""
    noise.normal_()
    hidden = torch.relu(torch.addmm(b, x, w)) + noise
    value = (hidden @ c + torch.eye(3)).square().sum()
    return [value, *torch.autograd.grad(value, [w, b, c])]


@needs_compiler
@pytest.mark.parametrize("by_onednn", [False, torch.backends.mkldnn.is_available()])
def test_the_compiler_gives_the_results_of_the_graph(by_onednn, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(onednn, "LARGE", 1)
    x, noise = torch.randn(3, 2), torch.zeros(3, 80)
    w, b, c = (torch.randn(*s, requires_grad=True) for s in ((2, 80), (80,), (80, 3)))
    graph = make_fx(some)(x, w, b, c, noise)
    (output,) = graph.graph.find_nodes(op="output")
    output.args = (list(output.args[0]),)
    graph.recompile()
    assert compiled.seconds_to_compile(graph, [x, w, b, c, noise]) == compiled.FRESH
    function = compiled.compiled(graph, [x, w, b, c, noise], onednn=by_onednn)
    assert compiled.seconds_to_compile(graph, [x, w, b, c, noise]) == compiled.CACHED
    results = []
    for run in (graph, function):
        torch.manual_seed(1)
        changed = torch.zeros_like(noise)
        with torch.no_grad():
            value, *rest = run(x, w, b, c, changed)
        results.append([value, torch.cat([each.flatten() for each in rest]), changed])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("loss", ["marginal", "relaxed"])
def test_a_compiled_run_is_the_run_itself(loss, monkeypatch):
    data = torch.randn(N, D), torch.randn(N, 1)
    assert_compiled_as_evaluated(
        lambda: DVMoE(D, 1, K, 1, hidden=(4,)),
        data,
        loss,
        temperature=lambda done: 1.0 - 0.5 * done,
        monkeypatch=monkeypatch,
    )


@pytest.mark.usefixtures("uncompiled")
def test_dropout_batch_normalization_and_a_smaller_batch_are_compiled(monkeypatch):
    def make():
        layers = nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, K)
        return DeepMoE(D, 1, K, gate=nn.Sequential(*layers))

    data = torch.randn(N - 1, D), torch.randn(N - 1, 1)
    assert_compiled_as_evaluated(make, data, monkeypatch=monkeypatch)


@pytest.mark.usefixtures("uncompiled")
def test_a_run_that_is_continued_has_the_results_of_a_whole_run():
    data, story = (torch.randn(N, D), torch.randn(N, 1)), DeepMoE(D, 1, K, hidden=(4,))
    first, _ = run_of(story, data, epochs=8)
    part = first.copy(epochs=8)
    list(first)
    epochs = iter(part)
    for _ in range(3):
        next(epochs)
    rest = part.copy(epochs=8)
    list(rest)
    assert [r["elbo"] for r in rest.history] == [r["elbo"] for r in first.history]
    assert_close(rest.parameters(), first.parameters(), rtol=0, atol=0)


def normal(x):
    with pyro.plate("data", len(x)):
        loc = pyro.param("loc", torch.zeros(D))
        scale = 2.0 if loc.sum() > 0.05 else 1.0  # which a graph cannot tell
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def nothing(x):
    pass


def test_data_dependent_control_flow_is_evaluated():
    elbo, treatment = objective("marginal")
    settings = {"batch_size": 11, "learning_rate": 1e-2, "temperature": 0.5, "seed": 0}
    data = (torch.randn(N, D) + 1.0,)
    run = SVI(normal, nothing, data, elbo, treatment, epochs=20, compile=True, **settings)
    assert len(list(run)) == 20
    assert run.gradients.replayed == 0


def test_without_a_compiler_steps_are_replayed(monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no working C++ compiler found\nmore")

    monkeypatch.setattr(recording, "compiled", fails)
    data = torch.randn(N, D), torch.randn(N, 1)
    run, lines = run_of(DeepMoE(D, 1, K, hidden=(4,)), data)
    list(run)
    assert lines == [
        "steps of 11 rows are not compiled: RuntimeError: no working C++ compiler found"
    ]
    assert run.gradients.replayed == 8 * 2 - 1


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (1e9, "steps of 11 rows are not compiled, because that would take about 1000000000 s"),
        (0.0, "steps of 11 rows are not compiled: RuntimeError: tried"),
    ],
)
def test_the_length_of_a_run_decides(seconds, line, monkeypatch):
    def tried(*arguments, **options):
        raise RuntimeError("tried")

    monkeypatch.setattr(recording, "compiled", tried)
    monkeypatch.setattr(gradients, "seconds_to_compile", lambda *arguments: seconds)
    monkeypatch.setattr(compiled, "SAVED", 1.0)
    data = torch.randn(N, D), torch.randn(N, 1)
    run, lines = run_of(DeepMoE(D, 1, K, hidden=(4,)), data, compile="auto")
    list(run)
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_a_short_run_is_not_compiled():
    data = torch.randn(N, D), torch.randn(N, 1)
    run, lines = run_of(DeepMoE(D, 1, K, hidden=(4,)), data, compile="auto")
    list(run)
    assert lines == []
