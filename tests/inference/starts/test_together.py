from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from pyro_moe.fitting.reset import reset
from pyro_moe.inference import EM
from pyro_moe.inference.handlers import Annotations
from pyro_moe.inference.prior import WEAK, Prior
from pyro_moe.inference.starts.together import iterate, m_steps, together
from pyro_moe.models import GMM, ME, Predictor

pytestmark = pytest.mark.usefixtures("double")
N, D, K, S = 80, 2, 3, 4


def table(family):
    """Rows of three regimes with targets of a family."""
    torch.manual_seed(0)
    x = torch.randn(N, D)
    mean = x[:, :1] * (torch.arange(N) % 3 - 1.0).unsqueeze(-1)
    if family in ("normal", "student-t"):
        return x, mean + 0.3 * torch.randn(N, 1)
    if family == "categorical":
        return x, (mean[:, 0] > 0).long() + (x[:, 1] > 0).long()
    if family == "bernoulli":
        return x, (mean > 0.2).double()
    return x, torch.poisson(mean.exp())


def begun(data, prior=WEAK, **options):
    """Runs of EM from different initial parameters."""
    y_dim = 3 if options.get("experts") == "categorical" else 1
    runs = []
    for seed in range(S):
        story = ME(D, y_dim, K, **options)
        reset(story.model, story.guide, data, seed)
        runs.append(EM(story.model, story.guide, data, 100, 0, prior))
    return runs


def single(runs, iterations):
    for run in runs:
        for _, _ in zip(range(iterations), run, strict=False):
            pass


FAMILIES = ("normal", "student-t", "categorical", "bernoulli", "poisson")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prior", [Prior(0, 0, 0), WEAK, Prior(2.0, 1.0, 0.1)])
def test_iterations_are_those_of_single_runs(family, prior):
    begin = partial(begun, table(family), prior, experts=family)
    alone, runs = begin(), begin()
    assert together(runs) is not None
    single(alone, 6)
    iterate(runs, 6)
    for one, other in zip(alone, runs, strict=True):
        for name in ("epoch", "elbo", "objective"):
            values = [[record[name] for record in run.history] for run in (one, other)]
            assert_close(*values, rtol=1e-9, atol=1e-9)
        if not prior.ridge:  # a constant may be added to all intercepts of the gate
            continue
        for name, value in one.parameters().items():
            assert_close(other.parameters()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gate", [(), (1,)])
def test_gates_may_read_some_columns(gate):
    begin = partial(begun, table("normal"), gate_columns=gate)
    alone, runs = begin(), begin()
    single(alone, 5)
    iterate(runs, 5)
    found, expected = ([run.history[-1]["objective"] for run in each] for each in (runs, alone))
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predictor", [Predictor(), Predictor(shrinkage=1.0)])
def test_m_steps_are_those_of_single_runs(predictor):
    begin = partial(begun, table("normal"), predictor=predictor)
    alone, runs = begin(), begin()
    shares = [torch.rand(N, K).softmax(-1) for _ in range(S)]
    for run, each in zip(alone, shares, strict=True):
        run.m_step(each)
    m_steps(runs, shares)
    for one, other in zip(alone, runs, strict=True):
        for name, value in one.parameters().items():
            assert_close(other.parameters()[name], value, rtol=1e-6, atol=1e-7)


def test_a_converged_run_stays_as_it_is():
    runs = begun(table("normal"))
    iterate(runs[:1], 100)
    assert runs[0].converged
    before = {name: value.clone() for name, value in runs[0].parameters().items()}
    done = len(runs[0].history)
    iterate(runs, 3)
    assert [len(run.history) for run in runs] == [done, 3, 3, 3]
    for name, value in runs[0].parameters().items():
        assert_close(value, before[name], rtol=0, atol=0)


def test_runs_that_cannot_become_the_best_end():
    begin = partial(begun, table("normal"))
    alone, runs = begin(), begin()
    single(alone, 100)
    iterate(runs, 100, best_only=True)
    found, expected = (max(run.history[-1]["objective"] for run in each) for each in (runs, alone))
    assert found == pytest.approx(expected, abs=2e-3 / N)
    assert sum(len(run.history) for run in runs) < sum(len(run.history) for run in alone)


class Edited(ME):
    def m_step(self, *arguments):
        self.called = True
        super().m_step(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"predictor": Predictor(shared=(1,))},
        {"predictor": Predictor(shared_scale=True)},
        {"gate_intercept": False},
    ],
)
def test_stories_whose_m_steps_are_not_separate_run_one_by_one(options):
    runs = begun(table("normal"), **options)
    assert together(runs) is None
    iterate(runs, 2)
    assert [len(run.history) for run in runs] == [2] * S


def test_an_edited_story_runs_by_its_own_m_step():
    data, runs = table("normal"), []
    for _ in range(2):
        story = Edited(D, 1, K)
        runs.append(EM(story.model, story.guide, data, 100, 0))
    assert together(runs) is None
    iterate(runs, 1)
    assert runs[0].model.__self__.called


def test_stories_without_side_by_side_run_one_by_one():
    runs = []
    for _ in range(2):
        story = GMM(D, K)
        story.adapt(table("normal")[0])
        runs.append(EM(story.model, story.guide, table("normal")[:1], 100, 0))
    assert together(runs) is None
    iterate(runs, 1)
    assert [len(run.history) for run in runs] == [1, 1]


@pytest.mark.parametrize("name", ["weights", "groups", "labels"])
def test_runs_with_annotations_run_one_by_one(name):
    data = table("normal")
    number = len(data[0])
    column = {
        "weights": torch.arange(number).double() % 3,
        "groups": torch.arange(number) // 4,
        "labels": torch.eye(K).double()[torch.arange(number) % K],
    }[name]
    about = Annotations(**{name: column})
    runs, others = ([replace(run, annotations=about) for run in begun(data)] for _ in range(2))
    assert together(runs) is None
    iterate(runs, 3)
    single(others, 3)
    for run, other in zip(runs, others, strict=True):
        assert run.history[-1]["objective"] == other.history[-1]["objective"]
        assert run.history[-1]["objective"] > run.history[0]["objective"]
