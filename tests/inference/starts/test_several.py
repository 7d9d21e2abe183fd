import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from pyro_moe.inference import EM
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.starts import several
from pyro_moe.inference.starts.several import best_start
from pyro_moe.models import GMM, ME, GMMMoE

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 60, 2, 3


@pytest.fixture
def x():
    """Clusters of different sizes, of which k-means and random assignments find some."""
    centers = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 9.0]])
    return centers[torch.arange(N) % 5 % K] + torch.randn(N, D)


@pytest.fixture
def begin(x):
    """A function that begins a run of a Gaussian mixture, and lists the runs that it began."""

    def start(number, *, num_components=K, begun=None):
        story = GMM(D, num_components)
        with reproducible(number), torch.no_grad():
            story.adapt(x)
        run = EM(story.model, story.guide, (x,), 100, number)
        if begun is not None:
            begun.append(run)
        return run

    return start


@pytest.fixture
def finished(monkeypatch):
    """The last objective of each start, by seed."""
    objectives, iterate = {}, several.iterate

    def watched(runs, iterations, **options):
        iterate(runs, iterations, **options)
        objectives.update({run.seed: run.history[-1]["objective"] for run in runs})

    monkeypatch.setattr(several, "iterate", watched)
    return objectives


def test_the_run_with_the_best_objective_is_returned(begin, finished):
    best = best_start(begin, 6, K)
    assert set(finished) == set(range(6))
    assert len({round(value, 6) for value in finished.values()}) > 1
    assert best.history[-1]["objective"] == max(finished.values())
    assert finished[best.seed] == max(finished.values())


def test_a_third_of_the_starts_goes_on(begin, monkeypatch):
    calls, iterate = [], several.iterate

    def watched(runs, number, **options):
        calls.append((sorted(run.seed for run in runs), number))
        iterate(runs, number, **options)

    monkeypatch.setattr(several, "iterate", watched)
    best_start(begin, 7, K)
    (first, ten), (others, forty) = calls
    assert (first, ten) == (list(range(7)), 10)
    assert (len(others), forty) == (math.ceil(0.34 * 7), 40)


def test_it_goes_on_with_its_history_and_all_rows(begin, x):
    best = best_start(begin, 3, K)
    assert_close(best.data[0], x, rtol=0, atol=0)
    assert [record["epoch"] for record in best.history] == list(range(1, len(best.history) + 1))
    done = len(best.history)
    assert best.converged or next(iter(best))["epoch"] == done + 1


def test_starts_differ_and_are_reproducible(begin):
    first, second = best_start(begin, 5, K), best_start(begin, 5, K)
    assert [r["elbo"] for r in first.history] == [r["elbo"] for r in second.history]
    assert first.seed == second.seed


@pytest.mark.parametrize(("number", "num_components"), [(1, K), (5, 1), (5, None)])
def test_one_start_and_one_component_are_the_first_run_untouched(begin, number, num_components):
    begun = []
    make = partial(begin, num_components=num_components or 1, begun=begun)
    best = best_start(make, number, num_components)
    assert begun == [best]
    assert best.history == []


def test_of_many_rows_some_are_used_and_the_run_is_on_all(begin, x, monkeypatch, finished):
    monkeypatch.setattr(several, "ROWS", 30)
    sizes, iterate = [], several.iterate

    def watched(runs, iterations, **options):
        sizes.extend(len(run.data[0]) for run in runs)
        iterate(runs, iterations, **options)

    monkeypatch.setattr(several, "iterate", watched)
    best = best_start(begin, 4, K)
    assert set(sizes) == {30}
    assert len(best.data[0]) == N
    assert best.history == []
    assert finished[best.seed] == max(finished.values())


@pytest.mark.parametrize("story_type", [ME, GMMMoE])
def test_targets_may_be_missing(x, story_type):
    y = 2.0 * x[:, :1]
    y[::4] = torch.nan

    def start(number):
        story = story_type(D, 1, K)
        with reproducible(number), torch.no_grad():
            story.apply(lambda part: getattr(part, "reset_parameters", lambda: None)())
            story.adapt(x, y)
        return EM(story.model, story.guide, (x, y), 3, number)

    assert math.isfinite(best_start(start, 3, K).history[-1]["objective"])
