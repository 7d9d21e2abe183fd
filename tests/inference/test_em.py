import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from torch import nn
from torch.testing import assert_close

import pyro_moe
from pyro_moe.distributions import choose
from pyro_moe.inference import EM, MarginalELBO
from pyro_moe.inference import em as module
from pyro_moe.inference.em import maximize
from pyro_moe.inference.prior import FLAT, WEAK, Prior
from pyro_moe.inference.traces import enumerated_traces, row_log_weights
from pyro_moe.models import (
    DMVAE,
    GMM,
    ME,
    DeepMoE,
    GaussianMixture,
    GMMMoE,
    HierarchicalME,
)

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 120, 2, 3
SKLEARN = {"full": "full", "diagonal": "diag", "tied": "tied"}
each_covariance = pytest.mark.parametrize("covariance", SKLEARN)


@pytest.fixture
def x():
    """Three clusters, ten standard deviations apart."""
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    return centers[torch.arange(N) % K] + torch.randn(N, D) * torch.tensor([1.0, 0.7])


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


def test_the_e_step_is_that_of_model_and_guide_whatever_the_blocks(make, x, monkeypatch):
    story = make()
    expected = row_log_weights(*enumerated_traces(story.model, story.guide, x)).detach()
    for rows in (N, 50):
        monkeypatch.setattr(module, "ROWS", rows)
        em = run(story, x)
        assert_close(em.log_joint(), expected, rtol=1e-10, atol=1e-12)
        responsibilities, evidence, joint = em.e_step()
        assert_close(responsibilities, expected.softmax(0).T)
        assert_close(evidence, expected.logsumexp(0).sum())
        assert_close(joint, expected.sum())


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
        weights_init=story.mixture.logits.softmax(-1).detach().numpy(),
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
        {"loss": "marginal", "epochs": 120, "batch_size": N, "learning_rate": 0.2},
    ]:
        choices |= {"prior": "none", "progress": False}
        fitted = pyro_moe.fit(story.model, story.guide, x, **choices)
        mixture = fitted.story.mixture
        assert log_likelihood(fitted.story, x) == pytest.approx(expected, abs=1e-3)
        got = mixture.responsibilities(x).probs.detach()
        means = mixture.normals.mean.detach()
        order = torch.cdist(torch.as_tensor(reference.means_), means).argmin(-1)
        assert_close(got[:, order], torch.as_tensor(probs), rtol=0, atol=1e-2)


def test_the_marginal_elbo_of_the_result_is_the_likelihood(x):
    story = GMM(D, K)
    choices = {"loss": "em", "epochs": 5, "prior": "none", "progress": False}
    fitted = pyro_moe.fit(story.model, story.guide, x, **choices)
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


def test_an_interruption_amid_the_m_step_goes_back_to_the_last_iteration(regressions, monkeypatch):
    """Mixture and experts are maximized one after the other, and Ctrl-C may come between."""
    _, x, y = regressions
    story = GMMMoE(1, 1, 2)
    choices = {"loss": "em", "prior": "none", "progress": False}
    experts, calls = type(story.experts), []
    maximize_experts = experts.maximize

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        maximize_experts(*args)

    monkeypatch.setattr(experts, "maximize", interrupted)
    stopped = pyro_moe.fit(story.model, story.guide, (x, y), epochs=4, **choices)
    assert stopped.interrupted
    first = pyro_moe.fit(story.model, story.guide, (x, y), epochs=1, **choices)
    assert_close(stopped.parameters(), first.parameters(), rtol=0, atol=0)
    through = pyro_moe.fit(story.model, story.guide, (x, y), epochs=4, **choices)
    resumed = stopped.resume(progress=False)
    assert [r["elbo"] for r in resumed.history] == [r["elbo"] for r in through.history]


def test_maximize_reaches_parts_at_any_depth(x):
    part = GaussianMixture(D, 1)
    outer = nn.Sequential(nn.Sequential(nn.Linear(1, 1), part))
    maximize(lambda: outer, torch.ones(N, 1), x)
    assert_close(part.loc.detach(), x.mean(0, keepdim=True))


def test_a_story_with_other_latents_is_an_error():
    story = DMVAE(D, D, K, hidden=(4,))
    with pytest.raises((ValueError, LookupError), match=r"expected .*'z'"):
        pyro_moe.fit(
            story.model, story.guide, torch.randn(N, D), loss="em", prior="none", progress=False
        )


# Mixtures of experts


@pytest.fixture
def regressions():
    """Rows of two linear regressions, the choice a logistic regression: the parameters, x, y.

    The parameters are the gate's weight and bias, then slopes, intercepts and log noise.
    """
    truth = torch.tensor([3.0, -0.5, 2.0, -1.0, 0.5, 3.0, math.log(0.3), math.log(0.6)])
    x = torch.randn(800, 1)
    first = torch.bernoulli((truth[0] * x[:, 0] + truth[1]).sigmoid()).bool()
    slope, intercept, log_noise = (torch.where(first, *truth[i : i + 2]) for i in (2, 4, 6))
    return truth, x, slope * x[:, 0] + intercept + log_noise.exp() * torch.randn(800)


def regression_loss(parameters, x, y):
    """The negative log-likelihood of two gated linear regressions, in the units of the data."""
    weight, bias, slope, intercept, log_noise = (
        *parameters[:2],
        *parameters[2:].reshape(3, 2),
    )
    logit = weight * x + bias
    log_gate = torch.cat([nn.functional.logsigmoid(logit), nn.functional.logsigmoid(-logit)], -1)
    each = torch.distributions.Normal(slope * x + intercept, log_noise.exp())
    return -(log_gate + each.log_prob(y.unsqueeze(-1))).logsumexp(-1).sum()


def regression_parameters(story):
    """The parameters of `regression_loss`, read off what the fitted story says of x at 0 and 1."""
    x = torch.tensor([[0.0], [1.0]])
    with torch.no_grad():
        p, log_gate = story.experts(x), story.gate(x).logits.log_softmax(-1)
    means, noise = p.mean[..., 0], p.variance[0, :, 0].sqrt()
    order = (means[1] - means[0]).argsort(descending=True)
    logits = log_gate[:, order[0]] - log_gate[:, order[1]]
    return torch.cat(
        [
            torch.stack([logits[1] - logits[0], logits[0]]),
            (means[1] - means[0])[order],
            means[0, order],
            noise[order].log(),
        ]
    )


def test_em_recovers_the_parameters_of_a_mixture_of_linear_regressions(regressions):
    truth, x, y = regressions
    story = ME(1, 1, 2)
    fitted = pyro_moe.fit(
        story.model,
        story.guide,
        (x, y),
        loss="em",
        epochs=200,
        seed=1,
        prior="none",
        progress=False,
    )
    found = regression_parameters(fitted.story).requires_grad_()
    loss = regression_loss(found, x, y)
    assert fitted.history[-1]["elbo"] == pytest.approx(-loss.item() / 800, abs=1e-5)
    information = torch.autograd.functional.hessian(lambda p: regression_loss(p, x, y), found)
    error = information.inverse().diagonal().sqrt()
    assert ((found - truth).abs() < 4.0 * error).all()
    # the ridge of the gate keeps its weight a little below the likeliest one
    likeliest = torch.linalg.solve(information, torch.autograd.grad(loss, found)[0])
    assert (likeliest.abs() < 0.2 * error).all()


def targets(x):
    """Targets that follow another rule in each half of the plane, some of them missing."""
    y = torch.where(x[:, :1] > 0, x, -2.0 * x) + 0.3 * torch.randn_like(x)
    y[::7, 1] = torch.nan
    return y


def penalized(story, log_joint):
    """The likelihood with the rows of the prior, less the penalty of the gate."""
    w = story.gate.maps.weight / math.sqrt(D)
    log_prior = 1e-3 / N * log_joint.sum() - 0.5e-4 * w.square().sum()
    return (log_joint.logsumexp(0).sum() + log_prior).item() / N


@pytest.mark.parametrize("experts", ["normal", "student-t"])
def test_the_penalized_likelihood_of_an_me_never_falls(experts):
    x, story = torch.randn(N, D), ME(D, D, K, experts=experts)
    y = targets(x)
    story.adapt(x, y)
    em = EM(story.model, story.guide, (x, y), epochs=25, seed=0, prior=WEAK, tolerance=-1.0)
    before, scores = penalized(story, em.log_joint()), []
    for record in em:  # whose objective is that before its M-step
        scores.append(before)
        assert record["objective"] == pytest.approx(before)
        before = penalized(story, em.log_joint())
    assert (np.diff(scores) > -1e-6).all()  # but for the ridge of least squares
    assert scores[-1] > scores[0] + 0.1


@pytest.mark.parametrize("prior", [FLAT, WEAK, Prior(1.0, 2.0, 0.1)])
def test_the_objective_of_an_me_never_falls_whatever_the_prior(prior):
    x, story = torch.randn(N, D), ME(D, D, K)
    story.adapt(x, targets(x))
    em = EM(story.model, story.guide, (x, targets(x)), 25, 0, prior, tolerance=-1.0)
    objectives = [record["objective"] for record in em]
    assert (np.diff(objectives) > -1e-6).all()
    assert objectives[-1] > objectives[0] + 0.1


def test_the_objective_of_a_tree_never_falls():
    """The weights of lower gates count once, with the ridge of the experts that they belong to."""
    x, story = torch.randn(60, D), HierarchicalME(D, D, (2, 2))
    story.adapt(x, targets(x))
    em = EM(story.model, story.guide, (x, targets(x)), 6, 0, Prior(1e-3, 0.0, 1.0), tolerance=-1.0)
    assert (np.diff([record["objective"] for record in em]) > -1e-6).all()
    joint, w = em.log_joint(), story.gate.maps.weight / math.sqrt(D)
    weights = [p for name, p in story.experts.named_parameters() if name.endswith("weight")]
    log_prior = 1e-3 / 60 * joint.sum() - 0.5 * w.square().sum()
    log_prior = log_prior - 0.5e-3 * sum(p.square().sum() for p in weights)
    expected = (joint.logsumexp(0).sum() + log_prior).item() / 60
    assert next(iter(em.copy(epochs=7)))["objective"] == pytest.approx(expected)


def test_without_targets_rows_without_an_effect_change_nothing(make, x):
    first, second = make(), make()
    runs = [run(first, x, prior=Prior(0.1)), run(second, x, prior=Prior(0.1, 5.0))]
    objectives = [[record["objective"] for record in em] for em in runs]
    assert objectives[0] == objectives[1]


@each_covariance
@pytest.mark.parametrize("experts", ["normal", "poisson"])
def test_the_likelihood_of_a_gmm_gated_me_never_falls(covariance, experts):
    x = torch.randn(N, D) * torch.tensor([1.0, 3.0])
    y = targets(x)
    y = (y.abs() * 2).round() if experts == "poisson" else y
    story = GMMMoE(D, D, K, covariance=covariance, experts=experts, shrinkage=0.0)
    with torch.no_grad():
        story.adapt(x, y)
    elbos = [r["elbo"] for r in EM(story.model, story.guide, (x, y), 25, 0, tolerance=-1.0)]
    assert (np.diff(elbos) > -1e-6).all()  # but for the ridge
    assert elbos[-1] > elbos[0] + 0.1


@pytest.mark.parametrize("story_type", [ME, GMMMoE])
def test_em_and_svi_agree_at_the_optimum_from_the_same_start(regressions, story_type):
    _, x, y = regressions
    x, y = x[:300], y[:300]
    start = 0.1 + 0.8 * (x[:, 0] > 0)
    choices = {"shrinkage": 0.0} if story_type is GMMMoE else {}
    story = story_type(1, 1, 2, **choices)
    with torch.no_grad():
        story.adapt(x, y.unsqueeze(-1))
    story.m_step(torch.stack([start, 1 - start], -1), x, x, y)
    losses = []
    for settings in [
        {"loss": "em", "epochs": 300},
        {"loss": "marginal", "epochs": 300, "batch_size": 300, "learning_rate": 0.3},
    ]:
        fitted = pyro_moe.fit(
            story.model,
            story.guide,
            (x, y),
            initialize="keep",
            prior="none",
            progress=False,
            **settings,
        )
        losses.append(MarginalELBO().loss(fitted.model, fitted.guide, x[:300], y[:300]) / 300)
    # EM stops at a gain of 1e-7, which falls by a third or more each time; the gate's ridge, 1e-4,
    # costs the likelihood its square
    assert losses[0] == pytest.approx(losses[1], abs=3e-6)


@pytest.mark.parametrize("story_type", [ME, GMMMoE])
def test_maximize_takes_the_m_step_of_a_story_that_has_one(story_type):
    x, r = torch.randn(N, D), torch.rand(N, K).softmax(-1)
    y = targets(x)
    story, expected = (story_type(D, D, K) for _ in range(2))
    expected.load_state_dict(story.state_dict())
    maximize(story.model, r, x, x, y)
    expected.m_step(r, x, x, y)
    assert_close(story.state_dict(), expected.state_dict(), rtol=0, atol=0)
    known = ~y.isnan().any(-1)
    root = r[known, 0].sqrt().unsqueeze(-1).numpy()
    design = np.c_[x[known].numpy(), np.ones(known.sum())]
    solution = np.linalg.lstsq(design * root, y[known].numpy() * root, rcond=None)[0]
    fitted = story.experts(x[known]).mean[:, 0].detach().numpy()
    np.testing.assert_allclose(fitted, design @ solution, atol=1e-5)


def test_a_gate_without_an_m_step_is_an_error_that_names_its_parameter():
    story, x = DeepMoE(D, D, K, hidden=(4,)), torch.randn(N, D)
    choices = {"loss": "em", "prior": "weak", "progress": False}
    with pytest.raises(ValueError, match=r"expected parts with a method 'maximize' .*'.*gate"):
        pyro_moe.fit(story.model, story.guide, (x, x), **choices)


class Doubled(ME):
    """An edited model: the targets count twice. Its log joint density is that of another class."""

    def model(self, x, y=None):
        pyro.module("moe", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=self.gate(x).logits))
            with pyro.poutine.scale(scale=2.0):
                pyro.sample("y", choose(c, self.experts(x)), obs=y)


class Forgotten(Doubled):
    """The same with a log joint density of its own that was not edited."""

    def model(self, x, y=None):
        super().model(x, y)

    def log_joint(self, x, y=None):
        return super().log_joint(x, y)


@pytest.mark.parametrize("kind", [ME, Doubled, Forgotten])
def test_the_storys_own_joint_density_is_used_where_it_is_the_models(kind):
    x, story = torch.randn(N, D), kind(D, D, K)
    y = targets(x).nan_to_num(0.0)
    story.adapt(x, y)
    em = EM(story.model, story.guide, (x, y), 3, 0)
    with torch.no_grad():
        gate, experts = story.gate(x).logits, story.experts(x).log_prob(y.unsqueeze(1))
    expected = gate + (1.0 if kind is ME else 2.0) * experts
    assert_close(em.log_joint().T, expected, rtol=1e-10, atol=1e-10)
    assert bool(em.direct) is (kind is ME)
    assert_close(em.log_joint((x, None)).T, gate, rtol=1e-10, atol=1e-10)
    assert em.copy(epochs=4).direct is em.direct


@pytest.mark.parametrize("story_type", [ME, GMMMoE])
def test_the_joint_density_of_a_story_is_that_of_its_traces(story_type, scatter):
    x = torch.randn(N, D)
    y = targets(x)  # some of them missing
    story = scatter(story_type(D, D, K))
    for columns in [(x, y), (x, None)]:
        traces = enumerated_traces(story.model, story.guide, *columns)
        expected = row_log_weights(*traces).T
        assert_close(story.log_joint(*columns), expected, rtol=1e-10, atol=1e-10)
