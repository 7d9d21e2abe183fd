import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
from torch.testing import assert_close

from pyro_moe.distributions import MAX_LOG_ODDS, RelaxedOneHotCategorical
from pyro_moe.inference.context import running
from pyro_moe.inference.handlers import CategoricalKL, EnumerateInParallel, Relax, annotated
from pyro_moe.inference.objectives import (
    PRIOR_SHARE,
    AssignedELBO,
    MarginalELBO,
    MeanFieldELBO,
    Reconstruction,
    objective,
)
from pyro_moe.models import DMVAE, GMM, VaDE

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-9, "atol": 1e-10}
N, D, L, K = 7, 3, 2, 4

each_covariance = pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
each_story = pytest.mark.parametrize("story_type", [DMVAE, VaDE])


@pytest.fixture
def x():
    return 2.0 * torch.randn(N, D)


@pytest.fixture
def make(scatter):
    def story(story_type, **choices):
        return scatter(story_type(D, L, K, weights="learned", hidden=(5,), **choices))

    return story


def components(prior):
    """N(mu_k, Sigma_k) from the raw parameters, batch shape (K,)."""
    factor = torch.diag_embed(prior.log_scale.exp())
    if prior.covariance != "diagonal":
        factor = factor @ (prior.correlation.tril(-1) + torch.eye(prior.dim))
    return MultivariateNormal(prior.loc, factor @ factor.mT)


def hand_terms(story, x, seed=0):
    """log p(x|z) - log q(z|x), (N,); log pi_k + log N_k(z), (N, K); log q(c=k), (N, K)."""
    torch.manual_seed(seed)
    noise = torch.normal(torch.zeros(len(x), L), torch.ones(len(x), L))
    loc, log_scale = story.encoder.network(x).chunk(2, -1)
    z = loc + 0.1 * log_scale.exp() * noise
    log_q = Normal(loc, 0.1 * log_scale.exp()).log_prob(z).sum(-1)
    log_p = Normal(story.decoder.network(z), story.decoder.log_scale.exp()).log_prob(x).sum(-1)
    joint = story.prior.logits.log_softmax(-1) + components(story.prior).log_prob(z[:, None])
    gate = story.gate.network(x) if isinstance(story, DMVAE) else joint
    return log_p - log_q, joint, gate.log_softmax(-1)


def gradients_of(loss, story):
    parameters = dict(story.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def without_c(story):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", story.encoder(x))

    return guide


# The marginal ELBO


@each_covariance
@each_story
def test_marginal_elbo_and_gradients_equal_a_hand_summed_model(
    make, x, loss_and_gradients, story_type, covariance
):
    story = make(story_type, covariance=covariance)
    got = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    rest, joint, log_q = hand_terms(story, x)
    expected = -(rest + (log_q.exp() * (joint - log_q)).sum(-1)).sum()
    assert_close(got, (expected.item(), gradients_of(expected, story)), **EXACT)


@each_covariance
@each_story
def test_marginal_elbo_and_gradients_equal_trace_enum(
    make, x, loss_and_gradients, story_type, covariance
):
    story = make(story_type, covariance=covariance)
    elbo, treat = objective(TraceEnum_ELBO(max_plate_nesting=1))
    model, guide = treat(story.model, story.guide, 1.0)
    got = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    assert_close(got, loss_and_gradients(elbo, model, guide, story, x), **EXACT)


@each_story
def test_without_c_in_the_guide_the_sum_over_c_is_under_the_logarithm(
    make, x, loss_and_gradients, story_type
):
    story = make(story_type)
    guide = without_c(story)
    got = loss_and_gradients(MarginalELBO(), story.model, guide, story, x)
    rest, joint, _ = hand_terms(story, x)
    expected = -(rest + joint.logsumexp(-1)).sum()
    assert_close(got, (expected.item(), gradients_of(expected, story)), **EXACT)
    enum = TraceEnum_ELBO(max_plate_nesting=1)
    model = EnumerateInParallel()(story.model)
    assert_close(got, loss_and_gradients(enum, model, guide, story, x), **EXACT)


@each_covariance
def test_vade_is_a_vae_whose_prior_is_the_mixture(make, x, loss_and_gradients, covariance):
    story = make(VaDE, covariance=covariance)

    def model(x):
        pyro.module("vae", story)
        weights = dist.Categorical(logits=story.prior.logits)
        with pyro.plate("data", len(x)):
            prior = dist.MixtureSameFamily(weights, story.prior.normals)
            z = pyro.sample("z", prior)
            pyro.sample("x", story.decoder(z), obs=x)

    got = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    vae = loss_and_gradients(Trace_ELBO(), model, without_c(story), story, x)
    assert_close(got, vae, **EXACT)


def test_the_marginal_elbo_of_vade_is_at_least_that_of_any_other_guide_of_c(make, x):
    story = make(VaDE)
    rest, joint, log_q = hand_terms(story, x)
    other = (joint + torch.randn(N, K)).log_softmax(-1)
    best = (rest + (log_q.exp() * (joint - log_q)).sum(-1)).sum()
    torch.manual_seed(0)
    assert_close(-MarginalELBO().loss(story.model, story.guide, x), best.item(), **EXACT)
    assert (rest + (other.exp() * (joint - other)).sum(-1)).sum() < best


@pytest.mark.parametrize("elbo", [MarginalELBO(), AssignedELBO()])
@pytest.mark.parametrize("per_row", [True, False])
def test_what_only_the_model_draws_adds_nothing(make, x, loss_and_gradients, elbo, per_row):
    story = make(DMVAE)
    arguments = (x, torch.rand(N, K).softmax(-1)) if isinstance(elbo, AssignedELBO) else (x,)

    def model(x):
        pyro.module("dmvae", story)
        y = dist.Normal(story.decoder.log_scale.sum(), 1e-3)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=story.prior.logits))
            z = pyro.sample(
                "z",
                dist.MultivariateNormal(c @ story.prior.loc, scale_tril=story.prior.cholesky(c)),
            )
            pyro.sample("x", story.decoder(z), obs=x)
            if per_row:
                pyro.sample("y", y)
        if not per_row:
            pyro.sample("y", y)

    names = ("labels",)[: len(arguments) - 1]
    model, own, guide = (annotated(each, names) for each in (model, story.model, story.guide))
    got = loss_and_gradients(elbo, model, guide, story, *arguments)
    assert_close(got, loss_and_gradients(elbo, own, guide, story, *arguments))


@pytest.mark.parametrize("c_in_guide", [True, False])
def test_a_scale_on_both_programs_scales_the_marginal_elbo(make, x, loss_and_gradients, c_in_guide):
    story = make(VaDE)
    guide = story.guide if c_in_guide else without_c(story)
    scaled = (poutine.scale(program, scale=0.3) for program in (story.model, guide))
    loss, gradients = loss_and_gradients(MarginalELBO(), *scaled, story, x)
    whole = loss_and_gradients(MarginalELBO(), story.model, guide, story, x)
    expected = (0.3 * whole[0], {name: 0.3 * g for name, g in whole[1].items()})
    assert_close((loss, gradients), expected, **EXACT)


def test_particles_are_averaged(make, x):
    story = make(DMVAE)
    torch.manual_seed(0)
    single = [MarginalELBO().loss(story.model, story.guide, x) for _ in range(3)]
    torch.manual_seed(0)
    averaged = MarginalELBO(num_particles=3).loss(story.model, story.guide, x)
    assert averaged == pytest.approx(sum(single) / 3, rel=1e-12)
    assert single[0] != single[1]


def test_a_latent_that_is_not_reparameterized_is_an_error_that_names_it(x):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("count", dist.Poisson(1.0))

    with pytest.raises(ValueError, match=r"got Poisson at site 'count'"):
        MarginalELBO().loss(guide, guide, x)


def test_a_pyro_svi_takes_the_marginal_elbo(make, x, loss_and_gradients):
    story = make(DMVAE)
    before = {name: p.detach().clone() for name, p in story.named_parameters()}
    loss, gradients = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    story.zero_grad()
    pyro.clear_param_store()
    torch.manual_seed(0)
    optimizer = pyro.optim.SGD({"lr": 1e-3})
    svi = pyro.infer.SVI(story.model, story.guide, optimizer, loss=MarginalELBO())
    assert svi.step(x) == pytest.approx(loss, rel=1e-12)
    expected = {name: value - 1e-3 * gradients[name] for name, value in before.items()}
    assert_close({name: p.detach() for name, p in story.named_parameters()}, expected, **EXACT)


# Evidence


def linear_gaussian(x_dim=D):
    """x | z ~ N(W z + b, S): W, b and the covariance S."""
    return torch.randn(x_dim, L), torch.randn(x_dim), torch.diag(torch.rand(x_dim) + 0.1)


def posterior(x, weights, bias, noise, loc, covariance):
    """The exact p(z|x) for z ~ N(loc, covariance)."""
    precision = covariance.inverse() + weights.T @ noise.inverse() @ weights
    spread = precision.inverse()
    mean = (loc @ covariance.inverse() + (x - bias) @ noise.inverse() @ weights) @ spread
    return dist.MultivariateNormal(mean, (spread + spread.T) / 2)


@pytest.fixture
def linear_story(x):
    """A model, its exact posterior as the guide, and the log evidence of x."""
    W, b, S = linear_gaussian()
    zero, eye = torch.zeros(L), torch.eye(L)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(zero, eye))
            pyro.sample("x", dist.MultivariateNormal(z @ W.T + b, S), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x, W, b, S, zero, eye))

    return model, guide, MultivariateNormal(b, W @ W.T + S).log_prob(x).sum().item()


@pytest.mark.parametrize("elbo", [MarginalELBO(), Trace_ELBO()])
def test_elbo_of_a_linear_gaussian_story_is_the_log_evidence_at_the_optimum(x, linear_story, elbo):
    model, guide, evidence = linear_story
    assert -elbo.loss(model, guide, x) == pytest.approx(evidence, rel=1e-10)


def test_with_an_analytic_kl_it_is_the_log_evidence_in_the_mean(x, linear_story):
    model, guide, evidence = linear_story
    draws = torch.tensor([-TraceMeanField_ELBO().loss(model, guide, x) for _ in range(400)])
    assert abs(draws.mean() - evidence) < 4.5 * draws.std() / 20


def test_elbo_of_a_mixture_of_linear_gaussians_is_the_log_evidence_at_the_optimum(x):
    W, b, S = linear_gaussian()
    weights, locs = torch.rand(K).log_softmax(0), 2.0 * torch.randn(K, L)
    spread = torch.diag(torch.rand(L) + 0.5)
    evidence = MultivariateNormal(locs @ W.T + b, W @ spread @ W.T + S).log_prob(x[:, None])

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=weights))
            z = pyro.sample("z", dist.MultivariateNormal(c @ locs, spread))
            pyro.sample("x", dist.MultivariateNormal(z @ W.T + b, S), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=weights + evidence))
            pyro.sample("z", posterior(x, W, b, S, c @ locs, spread))

    expected = (weights + evidence).logsumexp(-1).sum().item()
    assert -MarginalELBO().loss(model, guide, x) == pytest.approx(expected, rel=1e-10)


def test_a_latent_outside_the_plate_counts_once(x):
    features, y = x[:, :L], x[:, 2]
    noise = torch.tensor([[0.3]])
    everything = posterior(
        y, features, torch.zeros(N), 0.3 * torch.eye(N), torch.zeros(L), torch.eye(L)
    )

    def model(y):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(L), torch.eye(L)))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(features @ w, noise.sqrt()[0, 0]), obs=y)

    def guide(y):
        pyro.sample("w", everything)

    covariance = features @ features.T + 0.3 * torch.eye(N)
    evidence = MultivariateNormal(torch.zeros(N), covariance).log_prob(y).item()
    assert -MarginalELBO().loss(model, guide, y) == pytest.approx(evidence, rel=1e-10)


# As the temperature falls


def draws_of(loss, temperature, story, x, num_draws):
    elbo, treat = objective(loss)
    return losses(elbo, *treat(story.model, story.guide, temperature), x, num_draws)


def losses(elbo, model, guide, x, num_draws):
    with running({"params": {}, "constraints": {}}):
        return -torch.tensor([elbo.loss(model, guide, x) for _ in range(num_draws)]) / len(x)


def agree(a, b, standard_errors=4.5):
    error = math.sqrt(a.var() / len(a) + b.var() / len(b))
    return abs(a.mean() - b.mean()) < standard_errors * error


def gumbel_kl(q, p):
    r"""KL of relaxed one-hot variables, which depends on no temperature.

    With r = p / q it is K E[log sum_k r_k D_k] - sum_k log r_k for D ~ Dirichlet(1, ..., 1),
    and the expectation is a divided difference of u^(K-1) log u (Hermite and Genocchi).
    """
    r = (p.log() - q.log()).exp()
    num = len(r)
    others = (r[:, None] - r[None, :]) + torch.eye(num)
    mean = (r ** (num - 1) * r.log() / others.prod(1)).sum()
    mean = mean - sum(1 / j for j in range(1, num))
    return num * mean - r.log().sum()


def test_as_temperature_falls_categorical_kl_tends_to_the_marginal_elbo(make):
    story, x = make(DMVAE), torch.randn(1, D).expand(400, D)
    marginal = draws_of("marginal", 1.0, story, x, 60)
    assert agree(draws_of("categorical-kl", 1e-3, story, x, 60), marginal)
    assert not agree(draws_of("categorical-kl", 1.0, story, x, 60), marginal)


def test_as_temperature_falls_relaxed_stays_below_the_marginal_elbo_by_a_gap_of_kls(make):
    story, row = make(DMVAE), torch.randn(1, D)
    marginal = draws_of("marginal", 1.0, story, row.expand(400, D), 60)
    relax = Relax(0.01)  # one temperature for both, and log-odds as they are
    programs = relax(story.model), relax(story.guide)
    relaxed = losses(Trace_ELBO(), *programs, row.expand(400, D), 60)
    q, p = story.gate(row).probs[0].detach(), story.prior.logits.softmax(-1).detach()
    gap = gumbel_kl(q, p) - (q * (q / p).log()).sum()
    assert gap > 0.1
    assert agree(relaxed + gap, marginal)


def test_categorical_kl_of_vade_is_looser_than_its_marginal_elbo_even_when_cold(make):
    story, x = make(VaDE), torch.randn(1, D).expand(400, D)
    with torch.no_grad():
        story.encoder.network[-1][-1].bias[L:] += 2.0  # a wide q(z|x)
        story.decoder.log_scale += 5.0  # and little noise from log p(x|z)
    cold = draws_of("categorical-kl", 1e-3, story, x, 60)
    marginal = draws_of("marginal", 1.0, story, x, 60)
    error = math.sqrt(cold.var() / 60 + marginal.var() / 60)
    assert cold.mean() < marginal.mean() - 4.5 * error


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_relaxed_kl_is_the_same_at_every_temperature_and_more_than_the_categoricals(temperature):
    q, p = torch.tensor([0.7, 0.2, 0.06, 0.04]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    relaxed_q, relaxed_p = (
        dist.RelaxedOneHotCategorical(torch.tensor(temperature), probs) for probs in (q, p)
    )
    c = relaxed_q.sample((40_000,))
    draws = relaxed_q.log_prob(c) - relaxed_p.log_prob(c)
    expected = gumbel_kl(q, p)
    assert abs(draws.mean() - expected) < 4.5 * draws.std() / 200
    assert expected > (q * (q / p).log()).sum()


# Starts


@each_story
def test_assigned_elbo_equals_a_hand_computation(make, x, loss_and_gradients, story_type):
    story, r = make(story_type), torch.rand(N, K).softmax(-1)
    model, guide = (annotated(each, ("labels",)) for each in (story.model, story.guide))
    got = loss_and_gradients(AssignedELBO(), model, guide, story, x, r)
    rest, joint, log_q = hand_terms(story, x)
    expected = -(rest + (r * (joint + log_q)).sum(-1)).sum()
    assert_close(got, (expected.item(), gradients_of(expected, story)), **EXACT)


def test_assigned_elbo_without_c_in_the_guide_teaches_the_model_alone(make, x):
    story, r = make(VaDE), torch.rand(N, K).softmax(-1)
    torch.manual_seed(0)
    model, guide = (annotated(each, ("labels",)) for each in (story.model, without_c(story)))
    loss = AssignedELBO().loss(model, guide, x, r)
    rest, joint, _ = hand_terms(story, x)
    expected = -(rest + (r * joint).sum(-1)).sum()
    assert loss == pytest.approx(expected.item(), rel=1e-10)


@each_story
def test_reconstruction_is_the_likelihood_at_the_mean_of_z(make, x, loss_and_gradients, story_type):
    story = make(story_type)
    got = loss_and_gradients(Reconstruction(), story.model, story.guide, story, x)
    mean, _ = story.encoder.network(x).chunk(2, -1)
    log_p = Normal(story.decoder.network(mean), story.decoder.log_scale.exp()).log_prob(x)
    expected = -log_p.sum()
    assert_close(got, (expected.item(), gradients_of(expected, story)), **EXACT)


def test_reconstruction_has_no_noise(make, x):
    story = make(DMVAE)
    first, second = (Reconstruction().loss(story.model, story.guide, x) for _ in range(2))
    assert first == second


# Names


@pytest.mark.parametrize(
    ("loss", "elbo", "family", "of_prior", "bound"),
    [
        ("categorical-kl", TraceMeanField_ELBO, CategoricalKL, 0.25, None),
        ("relaxed", Trace_ELBO, RelaxedOneHotCategorical, PRIOR_SHARE * 0.25, MAX_LOG_ODDS),
        (Trace_ELBO(), Trace_ELBO, RelaxedOneHotCategorical, PRIOR_SHARE * 0.25, MAX_LOG_ODDS),
    ],
)
def test_relaxed_objectives_relax_c_at_the_temperatures(loss, elbo, family, of_prior, bound):
    found, treat = objective(loss)
    story = GMM(D, K)
    model, guide = treat(story.model, story.guide, 0.25)
    p, q = (poutine.trace(each).get_trace(torch.randn(N, D)).nodes["c"] for each in (model, guide))
    assert isinstance(found, elbo)
    assert isinstance(p["fn"], family)
    assert isinstance(q["fn"], family)
    assert p["fn"].temperature.item() == pytest.approx(of_prior)
    assert q["fn"].temperature.item() == pytest.approx(0.25)
    assert (p["fn"].max_log_odds, q["fn"].max_log_odds) == (None, bound)


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(
    ("loss", "of_pyro", "family"),
    [("relaxed", Trace_ELBO, VaDE), ("categorical-kl", TraceMeanField_ELBO, DMVAE)],
)
def test_relaxed_objectives_are_those_of_pyro(
    make, x, loss_and_gradients, loss, of_pyro, family, num_particles
):
    elbo, treat = objective(loss)
    elbo.num_particles = num_particles
    story = make(family)
    programs = treat(story.model, story.guide, 0.5)
    expected = loss_and_gradients(of_pyro(num_particles), *programs, story, x)
    torch.manual_seed(0)
    value = elbo.differentiable_loss(*programs, x)
    found = torch.autograd.grad(value, tuple(story.parameters()), materialize_grads=True)
    names = [name for name, _ in story.named_parameters()]
    assert_close((value.item(), dict(zip(names, found, strict=True))), expected)


def test_the_mean_field_elbo_is_that_of_pyro_in_any_plate_and_with_auxiliary_sites():
    """A draw stands for a divergence without a closed form."""
    location = torch.tensor(0.3, requires_grad=True)

    def model(x):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=len(x)), poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.LogNormal(weight, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("weight", dist.Normal(location, 0.5))
        with pyro.plate("data", 10, subsample_size=len(x)), poutine.mask(mask=x > 0):
            free = pyro.sample("free", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Gamma(location.exp() + free.exp(), 1.0))

    x, found = torch.tensor([0.5, -1.0, 2.0]), []
    for elbo in (MeanFieldELBO(2), TraceMeanField_ELBO(2)):
        torch.manual_seed(0)
        loss = elbo.differentiable_loss(model, guide, x)
        found.append((loss.item(), torch.autograd.grad(loss, location)[0]))
    assert_close(found[0], found[1])


@pytest.mark.parametrize("loss", ["marginal", MarginalELBO(3), Reconstruction()])
def test_objectives_of_this_library_take_programs_as_they_are(loss):
    _, treat = objective(loss)
    assert treat(objective, losses, 1.0) == (objective, losses)


def test_an_elbo_object_is_used_as_given():
    elbo = MarginalELBO(3)
    assert objective(elbo)[0] is elbo


@pytest.mark.parametrize("loss", ["elbo", None])
def test_an_unknown_loss_is_an_error_with_the_choices(loss):
    with pytest.raises(ValueError, match=rf"expected loss in .*'marginal'.*; got {loss!r}"):
        objective(loss)


def test_marginal_elbo_of_a_gmm_is_its_log_likelihood(x, scatter, loss_and_gradients):
    story = scatter(GMM(D, K))
    got = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    mixture = MixtureSameFamily(Categorical(logits=story.mixture.logits), components(story.mixture))
    expected = -mixture.log_prob(x).sum()
    assert_close(got, (expected.item(), gradients_of(expected, story)), **EXACT)


def test_loss_has_no_gradient_and_gradients_add_up(make, x):
    story = make(DMVAE)
    weight = next(story.parameters())
    Reconstruction().loss(story.model, story.guide, x)
    assert weight.grad is None or not weight.grad.any()
    Reconstruction().loss_and_grads(story.model, story.guide, x)
    once = nn.utils.parameters_to_vector(p.grad for p in story.encoder.parameters()).clone()
    Reconstruction().loss_and_grads(story.model, story.guide, x)
    twice = nn.utils.parameters_to_vector(p.grad for p in story.encoder.parameters())
    assert_close(twice, 2 * once, **EXACT)
