import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pyro_moe.inference import AssignedELBO, MarginalELBO, Reconstruction
from pyro_moe.inference.handlers import Annotations
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.steps import gradients, onednn
from pyro_moe.inference.steps.simplify import simplify
from pyro_moe.inference.svi import SVI
from pyro_moe.models import (
    DMVAE,
    GMM,
    DeepMoE,
    DVMoE,
    GMMMoE,
    HierarchicalDVMoE,
    VaDE,
    VaDEMoE,
)

N, D, K = 22, 2, 3
SAME = {"rtol": 0, "atol": 0}
STORIES = {
    "gmm": lambda: GMM(D, K),
    "gmmmoe": lambda: GMMMoE(D, 1, K),
    "deepmoe": lambda: DeepMoE(D, 1, K, hidden=(4,)),
    "vade": lambda: VaDE(D, 1, K, hidden=(4,)),
    "dmvae": lambda: DMVAE(D, 1, K, hidden=(4,)),
    "vademoe": lambda: VaDEMoE(D, 1, K, 1, hidden=(4,)),
    "dvmoe": lambda: DVMoE(D, 1, K, 1, hidden=(4,), experts="student-t"),
    "hierarchicaldvmoe": lambda: HierarchicalDVMoE(D, 1, K, 1, hidden=(4,)),
}


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch):
    monkeypatch.setattr(gradients, "WORTHWHILE", 1)


def run_of(model, guide, data, loss="marginal", *, prior=None, epochs=3, **choices):
    elbo, treatment = objective(loss, **({"prior": prior, "num_rows": N} if prior else {}))
    settings = {"batch_size": 8, "learning_rate": 1e-2, "temperature": 0.5, "seed": 0} | choices
    return SVI(model, guide, data, elbo, treatment, epochs=epochs, **settings)


def trained(make, monkeypatch, *arguments, replay, **options):
    """The parameters and the history after a run with or without replay."""
    monkeypatch.setattr(gradients, "WORTHWHILE", 1 if replay else math.inf)
    torch.manual_seed(3)
    run = run_of(*make(), *arguments, **options)
    history = [{**record, "seconds": 0.0} for record in run]
    return run, {name: p.detach() for name, p in run.parameters().items()}, history


def assert_same(make, monkeypatch, *arguments, replays, **options):
    run, parameters, history = trained(make, monkeypatch, *arguments, replay=True, **options)
    other, expected, told = trained(make, monkeypatch, *arguments, replay=False, **options)
    assert (run.gradients.replayed, other.gradients.replayed) == (replays, 0)
    assert history == told
    assert_close(parameters, expected, **SAME)
    for one, two in zip(run.model.__self__.buffers(), other.model.__self__.buffers(), strict=True):
        assert_close(one, two, **SAME)


def of(story):
    return story.model, story.guide


@pytest.mark.parametrize("name", STORIES)
def test_a_replayed_run_is_the_run_itself(name, monkeypatch):
    data = (torch.randn(N, D), torch.randn(N, 1))[: 1 if name in ("gmm", "vade", "dmvae") else 2]
    # 22 rows in batches of 8, 7 and 7: two shapes; the first step creates the optimizer
    assert_same(
        lambda: of(STORIES[name]()), monkeypatch, data, prior=Prior(1.0, 1.0), replays=3 * 3 - 1
    )


@pytest.mark.parametrize("loss", ["relaxed", "categorical-kl", "marginal"])
def test_temperatures_and_missing_targets_are_replayed(loss, monkeypatch):
    y = torch.randn(N, 1)
    y[::5] = torch.nan
    assert_same(
        lambda: of(STORIES["dvmoe"]()),
        monkeypatch,
        (torch.randn(N, D), y),
        loss,
        temperature=lambda done: 1.0 - 0.5 * done,
        replays=8,
    )


@pytest.mark.parametrize("elbo", [AssignedELBO(), Reconstruction(), AssignedELBO(num_particles=2)])
def test_the_phases_of_a_start_are_replayed(elbo, monkeypatch):
    labels = Annotations(labels=torch.full((N, K), 1 / K))
    about = labels if isinstance(elbo, AssignedELBO) else Annotations()
    data = (torch.randn(N, D),)
    make = lambda: of(STORIES["dmvae"]())  # noqa: E731
    assert_same(make, monkeypatch, data, elbo, replays=8, annotations=about)


@pytest.mark.parametrize("name", ["dmvae", "gmm"])
def test_rows_with_weights_and_labels_are_replayed(name, monkeypatch):
    labels = torch.eye(K)[torch.arange(N) % K]
    labels[::3] = torch.nan
    about = Annotations(weights=torch.rand(N) + 0.5, labels=labels)
    data = (torch.randn(N, D),)
    make = lambda: of(STORIES[name]())  # noqa: E731
    elbo = MarginalELBO(teaches=True)
    assert_same(make, monkeypatch, data, elbo, replays=8, annotations=about)


def test_dropout_and_batch_normalization_are_replayed(monkeypatch):
    layers = nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, K)
    make = lambda: of(DeepMoE(D, 1, K, gate=nn.Sequential(*map(_fresh, layers))))  # noqa: E731
    assert_same(make, monkeypatch, (torch.randn(N, D), torch.randn(N, 1)), replays=8)


def _fresh(layer):
    if hasattr(layer, "reset_parameters"):
        layer.reset_parameters()
    return layer


def normal(loc):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc(x), 1.0).to_event(1), obs=x)

    return model


def nothing(x):
    pass


def test_params_and_automatic_guides_are_replayed(monkeypatch):
    def model(x):
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x[:, 0])

    data = (1.0 + torch.randn(N, 1),)
    one, parameters, _ = trained(
        lambda: (model, AutoNormal(model)), monkeypatch, data, Trace_ELBO(), replay=True
    )
    assert one.gradients.replayed == 0  # Pyro's own ELBO takes numbers from its tensors
    for loss in ("relaxed", "categorical-kl", "marginal"):
        one, parameters, _ = trained(
            lambda: (model, AutoNormal(model)), monkeypatch, data, loss, replay=True
        )
        _, expected, _ = trained(
            lambda: (model, AutoNormal(model)), monkeypatch, data, loss, replay=False
        )
        assert one.gradients.replayed == 8
        assert len(parameters) == 3
        assert_close(parameters, expected, **SAME)


class Loc(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.loc, self.calls, self.change = nn.Parameter(torch.zeros(D)), 0, change

    def forward(self, x):
        self.calls += 1
        return self.loc * self.change(self, x)


def branching(part, x):
    return 2.0 if part.loc.sum() > 0.01 else 1.0


def counting(part, x):
    return 1.0 / part.calls


def through_numpy(part, x):
    return float(np.sum(x.detach().numpy()))


@pytest.mark.parametrize("change", [branching, counting, through_numpy])
def test_a_model_that_cannot_be_replayed_is_evaluated_at_every_step(change, monkeypatch):
    data = (torch.randn(N, D),)
    results = []
    for replay in (True, False):
        # recording and checking calls the model; the count belongs to the steps
        part = Loc(change)
        run, parameters, _ = trained(
            lambda part=part: (normal(part), nothing), monkeypatch, data, replay=replay
        )
        results.append(parameters["loc"])
        assert run.gradients.replayed <= 2
    if change is not counting:
        assert_close(*results, **SAME)


def test_short_runs_and_copies_record_nothing(monkeypatch):
    monkeypatch.setattr(gradients, "WORTHWHILE", 200)
    run = run_of(*of(STORIES["gmm"]()), (torch.randn(N, D),))
    list(run)
    assert run.gradients.replayed == 0
    monkeypatch.setattr(gradients, "WORTHWHILE", 1)
    run = run_of(*of(STORIES["gmm"]()), (torch.randn(N, D),))
    list(run)
    assert run.gradients.replayed == 8
    assert run.copy(epochs=6).gradients.replayed == 0


def test_operations_that_change_nothing_are_removed():
    def function(x, total):
        seen = total.view(3)
        total.add_(1.0)
        same = x.view(2, 3).expand(2, 3).view(2, 3)
        once = torch.ops.aten.mul.Scalar(same, 1)
        return [once + once.view(3, 2).view(6)[:3], seen * 2.0, torch.ops.aten.mul.Scalar(x, 2)]

    x, total = torch.randn(2, 3), torch.zeros(3)
    graph = simplify(make_fx(function)(x, total.clone()))
    assert_close(graph(x, total.clone()), function(x, total.clone()), **SAME)
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    kinds = ("aten.view.default", "aten.expand.default", "aten.mul.Scalar")
    assert [names.count(kind) for kind in kinds] == [3, 0, 1]  # of the total, and of two shapes


def test_simplification_keeps_results_random_numbers_and_writes():
    def function(x, buffer):
        noise = torch.randn(3)
        buffer.add_(1.0)
        half = torch.ones(3).mul_(0.5)
        twice = x.exp() + x.exp()
        unused = torch.randn(2)  # noqa: F841, it moves the stream of random numbers
        return [twice.detach() * half + noise + buffer, torch.randn(3), x.neg().neg()]

    x, buffer = torch.randn(3), torch.zeros(3)
    graph = make_fx(function)(x, buffer)
    before = len(graph.graph.nodes)
    buffer.zero_()
    torch.manual_seed(0)
    expected = function(x, buffer)
    copy = torch.zeros(3)
    simplify(graph)
    torch.manual_seed(0)
    assert_close(graph(x, copy), expected, **SAME)
    assert_close(copy, torch.ones(3), **SAME)
    assert len(graph.graph.nodes) <= before - 4


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN")
def test_a_run_with_large_products_is_the_run_itself_and_can_be_continued(monkeypatch):
    """Up to rounding; and from a state on bit for bit, as each step is replayed."""
    x = torch.randn(N, D)

    def run(large, epochs=4):
        monkeypatch.setattr(onednn, "LARGE", large)
        torch.manual_seed(0)
        story = DMVAE(D, 1, K, hidden=(16, 16))
        return run_of(story.model, story.guide, (x,), epochs=epochs)

    plain, fast = run(math.inf), run(64)
    for each in (plain, fast):
        list(each)
    (recording, *_) = fast.gradients._recorded.values()
    assert not recording.exact
    pairs = zip(plain.parameters().values(), fast.parameters().values(), strict=True)
    for one, other in pairs:
        assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert [record["elbo"] for record in fast.history] == pytest.approx(
        [record["elbo"] for record in plain.history], rel=1e-3
    )
    part = run(64)
    epochs = iter(part)
    next(epochs), next(epochs)
    rest = part.copy(epochs=4)
    list(rest)
    for name, value in rest.parameters().items():
        assert_close(value, fast.parameters()[name], **SAME)


def test_rounding_of_the_largest_gradients_is_no_difference():
    one, large = torch.tensor([1e-3]), torch.tensor([1e3])
    assert gradients.alike([one, large], [one + 1e-6, large])
    assert not gradients.alike([one], [one + 1e-6])
    assert not gradients.alike([one / 0], [one / 0])
    assert not gradients.alike([one, large], [one + 1e-3, large])
    assert not gradients.alike(
        [one.double(), large.double()], [one.double() + 1e-6, large.double()]
    )


def test_rounding_in_wide_networks_is_no_difference(monkeypatch):
    one = [torch.ones(5), None, torch.tensor([1e-3])]
    other = [torch.ones(5), None, torch.tensor([1.2e-3])]
    assert not gradients.alike(one, other)
    monkeypatch.setattr(gradients, "MOST", 0)
    assert gradients.alike(one, other)
    assert not gradients.alike(one, [torch.ones(5), None, torch.tensor([2e-3])])
    assert not gradients.alike(one, [torch.ones(5), torch.ones(1), one[2]])
