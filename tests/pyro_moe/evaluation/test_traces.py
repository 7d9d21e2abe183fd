"""Sites of a fitted story by what they are: observed, or latent and shared by rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_moe
from pyro_moe import models
from pyro_moe.evaluation.traces import observed_sites, shared_latents
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.handlers import Given

pytestmark = pytest.mark.usefixtures("double")
N = 8


def as_it_is(model, guide, *columns, **options):
    return pyro_moe.fit(
        model, guide, columns, epochs=0, initialize="keep", progress=False, **options
    )


def model(x):
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(m + z, s).to_event(1), obs=x)


def guide(x):
    pyro.sample("m", dist.Normal(torch.tensor([3.0, -3.0]), 0.5).to_event(1))
    pyro.sample("s", dist.LogNormal(1.0, 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.1).to_event(1))


@pytest.fixture
def fit():
    return as_it_is(model, guide, torch.randn(N, 2))


def test_shared_latents_are_those_outside_the_plate_drawn_from_the_guide(fit):
    with reproducible(0):
        draws = [shared_latents(fit) for _ in range(400)]
    assert all(set(draw) == {"m", "s"} for draw in draws)
    m = torch.stack([draw["m"] for draw in draws])
    assert ((m.mean(0) - torch.tensor([3.0, -3.0])).abs() < 4 * 0.5 / 20).all()
    torch.testing.assert_close(m.std(0), torch.full((2,), 0.5), rtol=4 / 800**0.5, atol=0)


@pytest.mark.parametrize("name", ["GMM", "ME", "BayesianExperts"])
def test_shipped_stories_share_the_parameters_that_have_a_posterior(name):
    x, y = torch.randn(N, 2), torch.randn(N, 1)
    me = models.ME(2, 1, 2)
    stories = {
        "GMM": (models.GMM(2, 2), (x,), set()),
        "ME": (me, (x, y), set()),
        "BayesianExperts": (
            models.BayesianExperts(models.ME(2, 1, 2)),
            (x, y),
            {f"experts.{name}" for name, _ in me.experts.named_parameters()},
        ),
    }
    story, columns, expected = stories[name]
    assert set(shared_latents(as_it_is(story.model, story.guide, *columns))) == expected


def test_what_is_given_is_not_drawn(fit):
    values = {"m": torch.tensor([7.0, 8.0]), "s": torch.tensor(0.5)}
    with Given(values):
        traces = [poutine.trace(program).get_trace(fit.data[0]) for program in (model, guide)]
    for trace in traces:
        for name, value in values.items():
            assert torch.equal(trace.nodes[name]["value"], value)
            assert not trace.nodes[name]["is_observed"]
        assert trace.nodes["z"]["value"].shape == (N, 2)
    x = traces[0].nodes["x"]
    torch.testing.assert_close(x["fn"].mean, values["m"] + traces[0].nodes["z"]["value"])


def test_observed_sites_are_those_that_rows_were_given_for(fit):
    assert observed_sites(fit) == ["x"]
    x, y = torch.randn(N, 2), torch.randn(N, 1)
    me, both = models.ME(2, 1, 2), models.GMMMoE(2, 1, 2)
    assert observed_sites(as_it_is(me.model, me.guide, x, y)) == ["y"]
    assert sorted(observed_sites(as_it_is(both.model, both.guide, x, y))) == ["x", "y"]


def test_a_first_row_without_a_target_does_not_hide_the_site():
    x, y = torch.randn(N, 2), torch.randn(N, 1)
    y[0] = torch.nan
    story = models.ME(2, 1, 2)
    assert observed_sites(as_it_is(story.model, story.guide, x, y, missing_targets=True)) == ["y"]


def test_what_is_observed_outside_the_plate_is_no_site_of_rows(fit):
    def with_a_constant(x):
        pyro.sample("known", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))
        model(x)

    assert observed_sites(as_it_is(with_a_constant, guide, fit.data[0])) == ["x"]
