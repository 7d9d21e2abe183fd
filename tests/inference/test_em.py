import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from torch import nn
from torch.testing import assert_close

import pyro_moe
from pyro_moe.inference import EM, MarginalELBO
from pyro_moe.inference.em import maximise
from pyro_moe.models import DMVAE, GMM, GaussianMixture

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 120, 2, 3
SKLEARN = {"full": "full", "diagonal": "diag", "tied": "tied"}
each_covariance = pytest.mark.parametrize("covariance", SKLEARN)


@pytest.fixture
def x():
    """Three clusters, ten standard deviations apart."""
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    return centres[torch.arange(N) % K] + torch.randn(N, D) * torch.tensor([1.0, 0.7])


@pytest.fixture
def make(scatter):
    def story(**choices):
        torch.manual_seed(1)
        return scatter(GMM(D, K, **choices), scale=2.0)

    return story


def run(story, x, **choices):
    settings = {"epochs": 50, "seed": 0} | choices
    return EM(story.model, story.guide, (x,), **settings)


def log_likelihood(story, x):
    return story.mixture.log_joint(x).logsumexp(-1).mean().item()


@each_covariance
def test_e_step_is_bayes_rule_at_every_k(make, x, covariance):
    story = make(covariance=covariance)
    log_joint = run(story, x).log_joint()
    assert_close(log_joint, story.mixture.log_joint(x).detach().T, rtol=1e-10, atol=1e-12)
    assert_close(log_joint.softmax(0).T, story.mixture.responsibilities(x).probs.detach())


@each_covariance
@pytest.mark.parametrize("weights", ["learned", "uniform"])
def test_the_likelihood_never_falls(make, covariance, weights):
    x = torch.randn(N, D) * torch.tensor([1.0, 3.0])
    em = run(make(covariance=covariance, weights=weights), x, tolerance=-1.0)
    elbos = [record["elbo"] for record in em]
    assert len(elbos) == 50
    assert (np.diff(elbos) > -1e-6).all()  # but for the ridge
    assert elbos[-1] > elbos[0] + 0.01


def test_the_recorded_elbo_is_the_likelihood_before_the_m_step(make, x):
    story = make()
    before = log_likelihood(story, x)
    em = iter(run(story, x))
    assert next(em)["elbo"] == pytest.approx(before, rel=1e-12)
    between = log_likelihood(story, x)
    assert next(em)["elbo"] == pytest.approx(between, rel=1e-12)
    assert between > before


@each_covariance
def test_iterations_are_those_of_scikit_learn_from_the_same_start(make, covariance):
    x, story = torch.randn(N, D) * torch.tensor([1.0, 3.0]), make(covariance=covariance)
    factor = story.mixture.scale_tril.detach()
    precision = torch.cholesky_inverse(factor).numpy()
    if covariance == "tied":
        precision = precision[0]
    if covariance == "diagonal":
        precision = np.diagonal(precision, axis1=1, axis2=2)
    reference = Reference(
        K,
        covariance_type=SKLEARN[covariance],
        tol=1e-9,
        reg_covar=0.0,
        max_iter=5,
        weights_init=story.mixture.assignment().probs.detach().numpy(),
        means_init=story.mixture.loc.detach().numpy(),
        precisions_init=precision,
    )
    with pytest.warns(UserWarning, match="did not converge"):
        reference.fit(x.numpy())
    for _ in run(story, x, epochs=5):
        pass
    expected = torch.as_tensor(reference.predict_proba(x.numpy()))
    assert_close(story.mixture.responsibilities(x).probs.detach(), expected, rtol=0, atol=1e-4)
    assert log_likelihood(story, x) == pytest.approx(reference.score(x.numpy()), abs=1e-5)


def test_em_svi_and_scikit_learn_agree_at_the_optimum(x):
    story = GMM(D, K)
    reference = Reference(K, n_init=5, tol=1e-8, random_state=0).fit(x.numpy())
    expected, probs = reference.score(x.numpy()), reference.predict_proba(x.numpy())
    for choices in [
        {"loss": "em", "epochs": 100},
        {"epochs": 120, "batch_size": N, "learning_rate": 0.2},
    ]:
        fitted = pyro_moe.fit(story.model, story.guide, x, progress=False, **choices)
        mixture = fitted.story.mixture
        assert log_likelihood(fitted.story, x) == pytest.approx(expected, abs=1e-3)
        got = mixture.responsibilities(x).probs.detach()
        order = torch.cdist(torch.as_tensor(reference.means_), mixture.loc.detach()).argmin(-1)
        assert_close(got[:, order], torch.as_tensor(probs), rtol=0, atol=1e-2)


def test_the_marginal_elbo_of_the_result_is_the_likelihood(x):
    story = GMM(D, K)
    fitted = pyro_moe.fit(story.model, story.guide, x, loss="em", epochs=5, progress=False)
    loss = MarginalELBO().loss(fitted.model, fitted.guide, x)
    assert -loss / N == pytest.approx(log_likelihood(fitted.story, x), rel=1e-10)


def test_it_stops_when_the_gain_is_below_the_tolerance(make, x):
    em = run(make(), x, epochs=1000, tolerance=1e-4)
    gains = np.diff([record["elbo"] for record in em])
    assert len(gains) < 999
    assert gains[-1] < 1e-4
    assert (gains[:-1] >= 1e-4).all()


def test_a_copy_goes_on_and_leaves_the_run_alone(make, x):
    first, straight = run(make(), x, epochs=2, tolerance=-1.0), run(make(), x, tolerance=-1.0)
    list(first)
    numbers = {name: p.detach().clone() for name, p in first.parameters().items()}
    second = first.copy(epochs=50)
    list(second)
    list(straight)
    assert [r["elbo"] for r in second.history] == [r["elbo"] for r in straight.history]
    assert_close(dict(second.parameters()), dict(straight.parameters()), rtol=0, atol=0)
    assert_close({n: p.detach() for n, p in first.parameters().items()}, numbers, rtol=0, atol=0)
    assert len(first.history) == 2


def test_maximise_reaches_parts_at_any_depth(x):
    part = GaussianMixture(D, 1)
    outer = nn.Sequential(nn.Sequential(nn.Linear(1, 1), part))
    maximise(lambda: outer, torch.ones(N, 1), x)
    assert_close(part.loc.detach(), x.mean(0, keepdim=True))


def test_a_story_with_other_latents_is_an_error():
    story = DMVAE(D, D, K, hidden=(4,))
    with pytest.raises((ValueError, LookupError), match=r"expected .*'z'"):
        pyro_moe.fit(story.model, story.guide, torch.randn(N, D), loss="em", progress=False)
