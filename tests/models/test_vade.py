import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence
from torch.testing import assert_close

from pyro_moe.models import VaDE

pytestmark = pytest.mark.usefixtures("double")
D, L, K = 3, 2, 4


def test_weights_are_learned_unless_asked_for():
    assert "prior.logits" in dict(VaDE(D, L, K).named_parameters())
    assert "prior.logits" not in dict(VaDE(D, L, K, weights="uniform").named_parameters())


@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
def test_guide_of_c_is_bayes_rule_at_its_own_z(scatter, covariance):
    story = scatter(VaDE(D, L, K, covariance=covariance, hidden=(5,)))
    nodes = poutine.trace(story.guide).get_trace(torch.randn(5, D)).nodes
    z, prior = nodes["z"]["value"], story.prior
    joint = torch.stack(
        [
            prior.logits.softmax(-1)[k]
            * dist.MultivariateNormal(
                torch.eye(K)[k] @ prior.loc, scale_tril=prior.cholesky(torch.eye(K)[k])
            )
            .log_prob(z)
            .exp()
            for k in range(K)
        ],
        dim=-1,
    )
    assert_close(nodes["c"]["fn"].probs, joint / joint.sum(-1, keepdim=True))
    assert_close(
        kl_divergence(dist.OneHotCategorical(nodes["c"]["fn"].probs), prior.responsibilities(z)),
        torch.zeros(5),
        atol=1e-12,
        rtol=0,
    )


def test_gradients_reach_the_encoder_through_c(scatter):
    story = scatter(VaDE(D, L, K))
    nodes = poutine.trace(story.guide).get_trace(torch.randn(5, D)).nodes
    nodes["c"]["fn"].logits[:, 0].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in story.encoder.network[-1][-1].parameters())


@pytest.mark.parametrize("choice", ["covariance", "weights"])
def test_a_choice_that_is_none_is_an_error(choice):
    with pytest.raises(ValueError, match=rf"expected {choice} in .*; got 'other'"):
        VaDE(D, L, K, **{choice: "other"})
