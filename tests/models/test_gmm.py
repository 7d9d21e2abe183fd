import numpy as np
import pytest
import torch
from pyro import poutine
from sklearn.mixture import GaussianMixture as Reference
from torch.testing import assert_close

from pyro_moe.inference import MarginalELBO
from pyro_moe.models import GMM

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 50, 3, 4
SKLEARN = {"full": "full", "diagonal": "diag", "tied": "tied"}
each_covariance = pytest.mark.parametrize("covariance", SKLEARN)


def reference(story):
    """scikit-learn's mixture with the same parameters."""
    mixture, kind = story.mixture, SKLEARN[story.mixture.covariance]
    factor = mixture.scale_tril.detach().numpy()
    same = Reference(K, covariance_type=kind)
    same.weights_ = mixture.logits.softmax(-1).detach().numpy()
    same.means_ = mixture.loc.detach().numpy()
    cholesky = np.linalg.inv(factor).transpose(0, 2, 1)
    if kind == "diag":
        cholesky = np.diagonal(cholesky, axis1=1, axis2=2)
    same.precisions_cholesky_ = cholesky[0] if kind == "tied" else cholesky
    return same


@pytest.fixture
def story(scatter, covariance):
    return scatter(GMM(D, K, covariance=covariance))


@each_covariance
def test_marginal_elbo_is_the_likelihood_of_scikit_learn(story):
    x = 2.0 * torch.randn(N, D)
    expected = reference(story).score_samples(x.numpy()).sum()
    assert -MarginalELBO().loss(story.model, story.guide, x) == pytest.approx(expected, rel=1e-10)


@each_covariance
def test_responsibilities_are_those_of_scikit_learn(story):
    x = 2.0 * torch.randn(N, D)
    expected = torch.as_tensor(reference(story).predict_proba(x.numpy()))
    nodes = poutine.trace(story.guide).get_trace(x).nodes
    assert_close(nodes["c"]["fn"].probs.detach(), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("covariance", ["full"])
def test_the_likelihood_does_not_depend_on_the_guide(story):
    x = torch.randn(N, D)
    exact = MarginalELBO().loss(story.model, story.guide, x)
    assert MarginalELBO().loss(story.model, lambda x: None, x) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("covariance", ["tied"])
def test_sites_are_c_and_x(story):
    trace = poutine.trace(story.model).get_trace(torch.randn(N, D))
    assert trace.nodes["c"]["value"].shape == (N, K)
    assert trace.observation_nodes == ["x"]


@each_covariance
def test_adapt_starts_at_rows_of_the_data(story):
    x = 100.0 * torch.randn(N, D) + 1000.0
    with torch.no_grad():
        story.adapt(x)
    means = story.mixture.normals.mean.detach()
    distances = torch.cdist(means, x, compute_mode="donot_use_mm_for_euclid_dist")
    assert_close(distances.amin(-1), torch.zeros(K), rtol=0, atol=1e-9)
    assert len(set(distances.argmin(-1).tolist())) == K
    assert_close(story.mixture.loc.detach(), story.units(means))


def test_weights_are_learned_unless_asked_for():
    assert "mixture.logits" in dict(GMM(D, K).named_parameters())
    assert "mixture.logits" not in dict(GMM(D, K, weights="uniform").named_parameters())


@pytest.mark.parametrize("choice", ["covariance", "weights"])
def test_a_choice_that_is_none_is_an_error(choice):
    with pytest.raises(ValueError, match=rf"expected {choice} in .*; got 'other'"):
        GMM(D, K, **{choice: "other"})
