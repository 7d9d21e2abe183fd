from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pyro_moe.fitting.reset import reset
from pyro_moe.inference import Reconstruction
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.starts import stacked
from pyro_moe.inference.starts.stacked import side_by_side
from pyro_moe.inference.steps import flat
from pyro_moe.inference.steps import stacked as stacked_graph
from pyro_moe.inference.svi import SVI, NonFiniteError
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

pytestmark = pytest.mark.usefixtures("double")
N, D, K, S, EPOCHS = 50, 2, 3, 3, 6
STORIES = {
    "gmm": lambda: GMM(D, K),
    "gmmmoe": lambda: GMMMoE(D, 1, K),
    "deepmoe": lambda: DeepMoE(D, 1, K, hidden=(4,)),
    "vade": lambda: VaDE(D, 1, K, hidden=(4,)),
    "dmvae": lambda: DMVAE(D, 1, K, hidden=(4,)),
    "vademoe": lambda: VaDEMoE(D, 1, K, 1, hidden=(4,)),
    "dvmoe": lambda: DVMoE(D, 1, K, 1, hidden=(4,)),
    "hierarchicaldvmoe": lambda: HierarchicalDVMoE(D, 1, K, 1, hidden=(4,)),
}


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch):
    monkeypatch.setattr(stacked, "WORTHWHILE", 1)


def rows(story):
    torch.manual_seed(0)
    x = torch.randn(N, D)
    y = x[:, :1] + torch.randn(N, 1)
    return (x, y) if hasattr(story, "expert") or hasattr(story, "experts") else (x,)


def begun(make, *, loss="marginal", data=None, **options):
    """Runs from different initial parameters."""
    runs = []
    for seed in range(S):
        story = make()
        columns = rows(story) if data is None else data
        reset(story.model, story.guide, columns, seed)
        elbo, treatment = objective(loss)
        settings = {"batch_size": 16, "learning_rate": 1e-2, "temperature": 0.5} | options
        settings = {"epochs": EPOCHS, "seed": seed, "held_out": columns} | settings
        runs.append(SVI(story.model, story.guide, columns, elbo, treatment, **settings))
    return runs


def the_same(runs, alone):
    for run, other in zip(runs, alone, strict=True):
        for record, expected in zip(run.history, other.history, strict=True):
            numbers = [{**each, "seconds": 0.0} for each in (record, expected)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-9)
        for found in (SVI.parameters, lambda run: dict(enumerate(run.buffers()))):
            assert_close(found(run), found(other), rtol=1e-7, atol=1e-9, check_dtype=True)


def trained(begin, together=EPOCHS):
    """Runs that took so many epochs together, beside runs that were alone."""
    runs, alone = begin(), begin()
    assert len(list(side_by_side(runs))) == together
    for run in (*runs, *alone):
        list(run)
    return runs, alone


@pytest.mark.parametrize(
    ("name", "loss"),
    [*((name, "marginal") for name in STORIES), ("dmvae", "relaxed"), ("vademoe", "relaxed")],
)
def test_runs_side_by_side_have_the_results_of_single_runs(name, loss):
    the_same(*trained(partial(begun, STORIES[name], loss=loss)))


def with_gate(make):
    """A story whose gate has another layer between two affine maps."""
    gate = nn.Sequential(nn.Linear(D, 8, bias=False), make(), nn.Linear(8, K))
    return DeepMoE(D, 1, K, gate=gate)


def test_dropout_draws_from_the_stream_of_each_run():
    the_same(*trained(partial(begun, partial(with_gate, nn.Dropout))))


def test_batch_normalization_counts_the_batches_of_each_run():
    runs, alone = trained(partial(begun, partial(with_gate, partial(nn.BatchNorm1d, 8))))
    the_same(runs, alone)
    (counted,) = {int(b) for run in runs for b in run.buffers() if b.dtype == torch.long}
    assert counted == EPOCHS * 4


def test_the_moments_go_on_when_a_run_is_alone_again():
    begin = partial(begun, STORIES["dmvae"], epochs=9)
    runs, alone = begin(), begin()
    for _, _ in zip(range(4), side_by_side(runs), strict=False):
        pass
    assert [len(run.history) for run in runs] == [4] * S
    for run in (*runs, *alone):
        list(run)
    the_same(runs, alone)


def test_runs_that_have_begun_go_on_together_if_they_are_at_the_same_epoch():
    begin = partial(begun, STORIES["dmvae"], epochs=9)
    runs, alone = begin(), begin()
    for _, _ in zip(range(4), side_by_side(runs), strict=False):
        pass
    next(iter(runs[0]))
    assert not list(side_by_side(runs))
    for run in runs[1:]:
        next(iter(run))
    assert len(list(side_by_side(runs))) == 4
    for run in alone:
        list(run)
    the_same(runs, alone)


def test_runs_with_rows_of_their_own_keep_them():
    def begin():
        runs = begun(STORIES["dmvae"])
        for number, run in enumerate(runs):
            run.data = (run.data[0] + number,)
        return runs

    the_same(*trained(begin))


def test_parameters_without_gradient_stay():
    def begin():
        return begun(STORIES["dmvae"], loss=Reconstruction())

    runs, alone = trained(begin)
    the_same(runs, alone)
    found, initial = runs[0].parameters()["prior.loc"], begin()[0].parameters()["prior.loc"]
    assert_close(found, initial, rtol=0, atol=0)


def test_a_run_that_stalls_ends_and_the_others_go_on():
    begin = partial(begun, STORIES["deepmoe"], epochs=60, patience=2, learning_rate=0.3)
    runs, alone = begin(), begin()
    together = len(list(side_by_side(runs)))
    for run in (*runs, *alone):
        list(run)
    lengths = sorted(len(run.history) for run in alone)
    assert lengths[0] < lengths[-1] < 60
    assert together == lengths[S // 2]  # until fewer than half go on
    the_same(runs, alone)


class Noisy(nn.Module):
    """A regression on one latent normal number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.constant = torch.ones(1)

    def reset_parameters(self):
        nn.init.normal_(self.weight)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(self.of(z), 1.0), obs=x[:, 0])

    def of(self, z):
        return self.weight * self.constant * z

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight * x[:, 0], 1.0))


class OwnConstant(Noisy):
    """Each start draws a number that is neither parameter nor buffer."""

    def reset_parameters(self):
        super().reset_parameters()
        self.constant = torch.rand(1)


class Branching(Noisy):
    def of(self, z):
        return self.weight * z if z.sum() > 0 else z


class RandomShape(Noisy):
    """Random numbers that depend on a parameter in more than their scale."""

    def guide(self, x):
        concentration = self.weight.exp() + 1.0
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(concentration, 1.0).expand([len(x)]))


def wide(hidden):
    return DMVAE(D, 1, 2, hidden=(hidden,))


@pytest.mark.parametrize(
    ("make", "options", "limits"),
    [
        (OwnConstant, {}, {}),
        (Branching, {}, {}),
        (RandomShape, {}, {}),
        (Noisy, {"new_optimizer": lambda values: torch.optim.SGD(values, lr=0.1)}, {}),
        (lambda: wide(9), {}, {(stacked, "LARGE"): 12 * D * 8}),
        (lambda: wide(9), {}, {(flat, "MOST"): 100}),
        (lambda: wide(9), {"epochs": 2}, {(stacked, "WORTHWHILE"): 9}),
    ],
    ids=["constant", "branch", "random shape", "optimizer", "product", "values", "few steps"],
)
def test_runs_that_cannot_be_stacked_are_as_if_nothing_had_been_tried(
    make, options, limits, monkeypatch
):
    for (module, name), value in limits.items():
        monkeypatch.setattr(module, name, value)
    data = rows(None)[0][:, :1] if isinstance(make(), Noisy) else rows(None)[0]
    begin = partial(begun, make, data=(data,), **options)
    runs = begin()
    assert not list(side_by_side(runs))
    assert all(run.optimizer is None and not run.history for run in runs)
    assert all(value.grad is None for run in runs for value in run.parameters().values())
    alone = begin()
    for run in (*runs, *alone):
        list(run)
    the_same(runs, alone)


def test_a_story_of_plain_functions_is_stacked():
    the_same(*trained(partial(begun, Noisy, data=(torch.randn(N, 1),))))


def exploding(done):
    return float("inf") if done > 0.5 else 1e-2


def test_a_value_that_is_not_finite_ends_its_run_where_it_would_have_ended_alone():
    runs, alone = (begun(STORIES["dmvae"], learning_rate=exploding) for _ in range(2))
    assert len(list(side_by_side(runs))) == 3
    for run, other in zip(runs, alone, strict=True):
        with pytest.raises(NonFiniteError) as expected:
            list(other)
        with pytest.raises(NonFiniteError) as found:
            list(run)
        assert str(found.value) == str(expected.value)
    the_same(runs, alone)


def test_an_interrupted_epoch_is_undone():
    asked = []

    def rate(done):
        asked.append(done)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return 1e-2

    runs, alone = begun(STORIES["vade"], learning_rate=rate), begun(STORIES["vade"])
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(runs))
    assert [len(run.history) for run in runs] == [1] * S
    for run, other in zip(runs, alone, strict=True):
        run.learning_rate = other.learning_rate = lambda done: 1e-2
        list(run)
        list(other)
    the_same(runs, alone)


def test_a_stacked_graph_has_the_results_of_each_copy_with_its_own_noise():
    def function(w, x):
        noise = torch.empty(4, dtype=x.dtype).normal_()
        return [(w * x + noise).sum(), w + torch.rand(4, dtype=x.dtype) * x.new_ones(4)]

    w, x = torch.randn(S, 4), torch.randn(4)
    graph = make_fx(function)(w[0], x)
    draw, together = stacked_graph(graph, [w, x], [False, True])
    torch.manual_seed(0)
    drawn = [draw() for _ in range(S)]
    found = together(w, x, *(torch.stack(each) for each in zip(*drawn, strict=True)))
    torch.manual_seed(0)
    expected = [function(each, x) for each in w]
    for result, each in zip(found, zip(*expected, strict=True), strict=True):
        assert_close(result, torch.stack(each), rtol=0, atol=0)


@pytest.mark.parametrize("draw", [torch.bernoulli, lambda p: p.normal_() + 1.0])
def test_random_numbers_that_depend_on_an_argument_or_fill_it_cannot_be_stacked(draw):
    graph = make_fx(lambda p: [draw(p)])(torch.full((3,), 0.5))
    assert stacked_graph(graph, [torch.full((S, 3), 0.5)], [False]) is None


def test_random_numbers_without_a_use_are_left_out():
    graph = make_fx(lambda p: [torch.bernoulli(p), p + 1.0][1:])(torch.full((3,), 0.5))
    draw, together = stacked_graph(graph, [torch.ones(S, 3)], [False])
    before = torch.get_rng_state()
    assert draw() == ()
    assert torch.equal(before, torch.get_rng_state())
    assert_close(together(torch.ones(S, 3))[0], torch.full((S, 3), 2.0))
