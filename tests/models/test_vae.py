import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import Bernoulli, ContinuousBernoulli, Normal
from torch.testing import assert_close

import pyro_moe
from pyro_moe.models import DMVAE, MLP, VAE, VaDE

pytestmark = pytest.mark.usefixtures("double")
N, D, L, K = 7, 3, 2, 4
LIKELIHOODS = ["normal", "bernoulli", "continuous-bernoulli"]

# What the three stories with a latent space share; each has more in a file of its own.
STORIES = {
    "vae": lambda **choices: VAE(D, L, **choices),
    "vade": lambda **choices: VaDE(D, L, K, **choices),
    "dmvae": lambda **choices: DMVAE(D, L, K, **choices),
}
each_story = pytest.mark.parametrize("name", STORIES)


def binary():
    return torch.randint(2, (N, D)).double()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_elbo_equals_explicit_formulas(scatter, likelihood):
    story = scatter(VAE(D, L, likelihood=likelihood, hidden=(5,)))
    x = binary()
    torch.manual_seed(3)
    loss = Trace_ELBO().loss(story.model, story.guide, x)
    torch.manual_seed(3)
    loc, log_scale = story.encoder.network(x).chunk(2, -1)
    z = loc + 0.1 * log_scale.exp() * torch.normal(torch.zeros(N, L), torch.ones(N, L))
    f = story.decoder.network(z)
    p = {
        "normal": lambda: Normal(f, story.decoder.log_scale.exp()),
        "bernoulli": lambda: Bernoulli(logits=f),
        "continuous-bernoulli": lambda: ContinuousBernoulli(logits=15 * torch.tanh(f / 15)),
    }[likelihood]()
    log_ratio = Normal(0.0, 1.0).log_prob(z) - Normal(loc, 0.1 * log_scale.exp()).log_prob(z)
    expected = -(p.log_prob(x).sum() + log_ratio.sum())
    assert loss == pytest.approx(expected.item(), rel=1e-10)


@each_story
def test_sites_and_shapes_are_the_vocabulary(name):
    story, x = STORIES[name](hidden=(5,)), torch.randn(N, D)
    guide_trace = poutine.trace(story.guide).get_trace(x)
    trace = poutine.trace(poutine.replay(story.model, trace=guide_trace)).get_trace(x)
    shapes = {"z": (N, L), "x": (N, D)} | ({} if name == "vae" else {"c": (N, K)})
    sites = set(trace.stochastic_nodes + trace.observation_nodes) - {"data"}
    assert sites == set(shapes)
    for site, shape in shapes.items():
        assert trace.nodes[site]["value"].shape == shape
        assert [frame.name for frame in trace.nodes[site]["cond_indep_stack"]] == ["data"]
    assert trace.observation_nodes == ["x"]


@each_story
def test_every_parameter_is_registered_with_pyro(name):
    story = STORIES[name](hidden=(5,))
    trace = poutine.trace(story.guide).get_trace(torch.randn(N, D))
    registered = {id(trace.nodes[node]["value"]) for node in trace.param_nodes}
    assert registered == {id(p) for p in story.parameters()}


@each_story
def test_networks_of_ones_own_are_used(name):
    mine = {"encoder": MLP(D, (), 2 * L), "decoder": MLP(L, (), D)}
    if name == "dmvae":
        mine["gate"] = MLP(D, (), K)
    story = STORIES[name](**mine)
    assert set(mine.values()) <= set(story.modules())
    assert sum(isinstance(part, nn.Linear) for part in story.modules()) == len(mine)


@each_story
def test_hidden_widths_are_the_encoders_and_the_decoders_in_reverse(name):
    story = STORIES[name](hidden=(5, 6))

    def widths(network):
        return [part.out_features for part in network.modules() if isinstance(part, nn.Linear)]

    assert widths(story.encoder) == [5, 6, 2 * L]
    assert widths(story.decoder) == [6, 5, D]


@each_story
def test_units_are_adapted_and_shared_under_a_normal_likelihood(name):
    story, x = STORIES[name](), 5.0 * torch.randn(N, D) + 3.0
    story.adapt(x)
    assert_close(story.units.loc, x.mean(0))
    assert story.decoder.units is story.units
    assert story.encoder.network[0] is story.units


@each_story
@pytest.mark.parametrize("likelihood", LIKELIHOODS[1:])
def test_units_stay_when_the_likelihood_has_none(name, likelihood):
    story = STORIES[name](likelihood=likelihood)
    story.adapt(binary())
    assert_close(story.units.loc, torch.zeros(D))
    assert_close(story.units.scale, torch.ones(D))


@each_story
def test_a_fit_in_other_units_is_the_same_up_to_the_change_of_variables(name):
    story, x, scale = STORIES[name](hidden=(5,)), torch.randn(N, D), torch.tensor([1.0, 1e3, 1e-3])

    def loss(x):
        story.adapt(x)
        torch.manual_seed(0)
        return Trace_ELBO().loss(story.model, story.guide, x)

    assert loss(x * scale) == pytest.approx(loss(x) + N * scale.log().sum().item(), rel=1e-9)


@each_story
def test_an_unknown_likelihood_is_an_error(name):
    with pytest.raises(ValueError, match=r"expected likelihood in .*; got 'poisson'"):
        STORIES[name](likelihood="poisson")


def test_a_heteroscedastic_story_learns_where_the_noise_is():
    """x lies on a line, with ten times the noise on its right half."""
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(-3.0, 3.0, 2000)
    noise = torch.where(t > 0, 0.5, 0.05)
    x = torch.stack([t, torch.randn(len(t), generator=generator) * noise], 1)
    sd = {}
    for likelihood in ("normal", "normal-heteroscedastic"):
        story = VAE(2, 1, likelihood=likelihood, hidden=(16,))
        settings = {"epochs": 60, "prior": "none", "progress": False}
        fit = pyro_moe.fit(story.model, story.guide, x, learning_rate=1e-2, **settings)
        with torch.no_grad():
            of_x = fit.story.decoder(fit.story.encoder(x).mean)
        sd[likelihood] = [of_x.stddev[half, 1].mean().item() for half in (t > 0.5, t < -0.5)]
    assert sd["normal"][0] == sd["normal"][1]
    right, left = sd["normal-heteroscedastic"]
    assert right > 3.0 * left
    assert right == pytest.approx(0.5, rel=0.3)
