from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.distributions import Categorical, MixtureSameFamily
from torch.testing import assert_close

import pyro_moe
from pyro_moe.inference import MarginalELBO
from pyro_moe.models import GMM, GMMMoE

pytestmark = pytest.mark.usefixtures("double")
N, D, K, M = 14, 3, 4, 2
each_covariance = pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
each_family = pytest.mark.parametrize(
    "family", ["normal", "student-t", "categorical", "bernoulli", "poisson"]
)


@pytest.fixture
def x():
    return 2.0 * torch.randn(N, D) + 1.0


@pytest.fixture
def make(scatter, x):
    def story(y, **choices):
        made = GMMMoE(D, M, K, **choices)
        with torch.no_grad():
            made.adapt(x, y)
        return scatter(made)

    return story


def targets(family):
    return {
        "categorical": torch.arange(N) % M,
        "bernoulli": torch.arange(N * M).reshape(N, M) % 2.0,
        "poisson": torch.arange(N * M).reshape(N, M) % 5.0,
    }.get(family, 3.0 * torch.randn(N, M))


def log_joint(story, x, y):
    """Log sum_k pi_k N_k(x) p_k(y|x)."""
    mixture = story.mixture
    normal = mixture.normals.log_prob(x.unsqueeze(1))
    each = story.experts(x).log_prob(y.unsqueeze(1))
    return (mixture.logits.log_softmax(-1) + normal + each).logsumexp(-1)


@each_covariance
@pytest.mark.parametrize("weights", ["learned", "uniform"])
def test_marginal_elbo_and_gradients_are_the_joint_log_likelihood(
    make, x, marginal_elbo_is, covariance, weights
):
    y = targets("normal")
    story = make(y, covariance=covariance, weights=weights)
    marginal_elbo_is(story, lambda x, y: log_joint(story, x, y), x, y)


@each_family
def test_the_same_holds_for_every_family_of_experts(make, x, marginal_elbo_is, family):
    y = targets(family)
    story = make(y, experts=family)
    marginal_elbo_is(story, lambda x, y: log_joint(story, x, y), x, y)


def test_it_is_the_density_of_x_and_the_gated_density_of_y(make, x):
    y = targets("normal")
    story = make(y)
    mixture = story.mixture
    normals = mixture.normals
    log_x = MixtureSameFamily(Categorical(logits=mixture.logits), normals).log_prob(x)
    gate = mixture.responsibilities(x).probs
    assert_close(gate.sum(-1), torch.ones(N))
    log_y = (gate.log() + story.experts(x).log_prob(y.unsqueeze(1))).logsumexp(-1)
    loss = MarginalELBO().loss(story.model, story.guide, x, y)
    assert -loss == pytest.approx((log_x + log_y).sum().item(), rel=1e-10)


@each_covariance
def test_the_guide_is_the_exact_posterior(make, x, guide_is_the_posterior, covariance):
    y = targets("normal")
    guide_is_the_posterior(make(y, covariance=covariance), x, y)
    guide_is_the_posterior(make(y, covariance=covariance), x)


def test_rows_without_a_target_add_the_density_of_x_alone(make, x, marginal_elbo_is):
    y = targets("normal")
    story, missing = make(y), torch.arange(N) % 3 == 0
    holes = y.clone()
    holes[missing, 0] = torch.nan

    def rows(x, holes):
        alone = story.mixture.log_joint(x).logsumexp(-1)
        return torch.where(missing, alone, log_joint(story, x, y))

    marginal_elbo_is(story, rows, x, holes)


def test_without_targets_it_is_the_gmm_and_the_experts_learn_nothing(make, x, loss_and_gradients):
    y = targets("normal")
    story, gmm = make(y), GMM(D, K)
    gmm.mixture = story.mixture
    loss, gradients = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    assert loss == pytest.approx(MarginalELBO().loss(gmm.model, gmm.guide, x), rel=1e-10)
    assert not any(g.any() for name, g in gradients.items() if name.startswith("experts"))
    nowhere = torch.full((N, M), torch.nan)
    again = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x, nowhere)
    assert_close((loss, gradients), again)


def test_the_m_step_is_that_of_the_mixture_and_of_each_expert(make, x):
    y, r = targets("normal"), torch.rand(N, K).softmax(-1)
    story = make(y)
    mixture, experts = deepcopy(story), deepcopy(story)
    story.m_step(r, x, x, y)
    mixture.mixture.maximize(x, r)
    experts.experts.maximize(x, y, r)
    assert_close(story.mixture.state_dict(), mixture.mixture.state_dict(), rtol=0, atol=0)
    assert_close(story.experts.state_dict(), experts.experts.state_dict(), rtol=0, atol=0)


def test_it_starts_at_distant_rows_in_the_units_of_the_data(x):
    y = targets("normal")
    story = GMMMoE(D, M, K)
    with torch.no_grad():
        story.adapt(x, y)
    means = story.mixture.normals.mean.detach()
    assert_close(torch.cdist(means, x).amin(-1), torch.zeros(K))
    assert_close(story.mixture.loc.detach(), story.units(means))
    assert_close(story.units.loc, x.mean(0))
    assert_close(story.experts.units.loc, y.mean(0))


# Many columns


def gray_images():
    """Images of 784 pixels, a blurred spot at one of three places, and a rim without ink."""
    place, grid = torch.arange(40) % 3, torch.arange(28).double()
    row = (grid - 8.0 - 5.0 * place.unsqueeze(-1)).square()
    column = (grid - 14.0 - torch.randn(40, 1)).square()
    x = (-(row.unsqueeze(-1) + column.unsqueeze(-2)) / 8.0).exp() + 0.05 * torch.rand(40, 28, 28)
    x[:, :6], x[:, 22:], x[:, :, :6], x[:, :, 22:] = 0.0, 0.0, 0.0, 0.0
    y = (1.0 - place) * x.sum((1, 2)) + place + 0.01 * torch.randn(40)
    return x.flatten(1).float(), y.float()


def digits():
    x, y = load_digits(return_X_y=True)
    return torch.as_tensor(x[:600]).float(), (torch.as_tensor(y[:600]) + torch.rand(600)).float()


@pytest.mark.filterwarnings("ignore:expected rows for each of 3 components")
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize(
    ("data", "choices"),
    [
        (digits, {}),
        (digits, {"common_scale": True}),
        (gray_images, {"common_scale": True}),
        (gray_images, {}),
    ],
)
@pytest.mark.filterwarnings("ignore:expected:pyro_moe.EmptyComponentWarning")
def test_em_in_many_columns_of_which_many_are_constant_stays_finite(data, choices, covariance):
    x, y = data()
    assert (x == x[0]).all(0).any()
    story = GMMMoE(x.shape[1], 1, 3, covariance=covariance, **choices).float()
    settings = {"loss": "em", "epochs": 3, "prior": "weak", "seed": 0, "progress": False}
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), **settings)
    elbos = [record["elbo"] for record in fitted.history]
    assert fitted.stopped is None
    assert np.isfinite(elbos).all()
    assert elbos[-1] > elbos[0]
    assert all(p.isfinite().all() for p in fitted.parameters().values())
    gate = fitted.story.mixture.responsibilities(100.0 * x.double()).probs
    assert_close(gate.sum(-1), torch.ones(len(x)))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"experts": "gamma"}, "expected experts in .*; got 'gamma'"),
        ({"covariance": "round"}, "expected covariance in .*; got 'round'"),
        ({"weights": "heavy"}, "expected weights in .*; got 'heavy'"),
    ],
)
def test_a_choice_that_is_none_is_an_error(choices, message):
    with pytest.raises(ValueError, match=message):
        GMMMoE(D, M, K, **choices)


@pytest.mark.parametrize("program", ["model", "guide"])
def test_y_of_the_wrong_width_is_an_error(make, x, program):
    story = make(targets("normal"))
    with pytest.raises(ValueError, match="expected y with 2 columns; got 1"):
        getattr(story, program)(x, torch.randn(N))
