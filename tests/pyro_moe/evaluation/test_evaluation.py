import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, Rows, SiteError, evaluation
from pyro_moe.inference import MarginalELBO
from pyro_moe.inference.context import reproducible
from pyro_moe.models import DMVAE, GMM, MLP, VAE, VaDE

pytestmark = pytest.mark.usefixtures("double")
N, D, L, K = 12, 3, 2, 4
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def as_it_is(model, guide, *columns):
    """A fit whose parameters are those of the programs given."""
    data = columns[0] if len(columns) == 1 else columns
    return pyro_moe.fit(model, guide, data, epochs=0, initialize="keep", progress=False)


def nothing(*columns):
    pass


STORIES = {
    "gmm": lambda: GMM(D, K),
    "vae": lambda: VAE(D, L, hidden=(5,)),
    "vade": lambda: VaDE(D, L, K, hidden=(5,)),
    "dmvae": lambda: DMVAE(D, L, K, hidden=(5,), weights="learned"),
}


@pytest.fixture
def x():
    return torch.randn(N, D)


@pytest.fixture
def fitted(scatter, x):
    """A function from the name of a story to a fit of it, away from its symmetric start."""

    def make(name):
        story = scatter(STORIES[name]())
        return as_it_is(story.model, story.guide, x)

    return make


# The gate


def test_an_amortized_gate_is_exact(fitted, x):
    fit = fitted("dmvae")
    g, error = evaluation.gate(fit, x, return_error=True)
    assert_close(g, fit.story.gate(x).probs.detach(), **CLOSE)
    assert_close(error, torch.zeros(N, K), **EXACT)


def test_the_gate_of_a_mixture_is_its_responsibilities(fitted, x):
    fit = fitted("gmm")
    g, error = evaluation.gate(fit, x, return_error=True)
    assert_close(g, fit.story.mixture.responsibilities(x).probs.detach(), **CLOSE)
    assert_close(error, torch.zeros(N, K), **EXACT)


def test_without_c_in_the_guide_the_gate_is_the_models_posterior(scatter, x):
    story = scatter(GMM(D, K))
    fit = as_it_is(story.model, nothing, x)
    g, error = evaluation.gate(fit, x, return_error=True)
    assert_close(g, story.mixture.responsibilities(x).probs.detach(), **CLOSE)
    assert_close(error, torch.zeros(N, K), rtol=0, atol=1e-15)


def test_without_c_in_the_guide_the_models_posterior_is_averaged_over_z(scatter, x):
    """VaDE's guide is E_q(z|x) p(c|z) with its c, and must be without."""
    story = spread(scatter)

    def only_z(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", story.encoder(x))

    with_c = evaluation.gate(as_it_is(story.model, story.guide, x), x, num_samples=1024)
    fit = as_it_is(story.model, only_z, x)
    g, error = evaluation.gate(fit, x, num_samples=256, return_error=True)
    assert_close(g.sum(-1), torch.ones(N), **CLOSE)
    assert (error > 0).all()
    # Eight replicates: a reported error has seven degrees of freedom, and so t has heavy tails.
    assert ((g - with_c).abs() < 8 * error + 1e-4).all()


def spread(scatter, z_dim=L, **choices):
    """A VaDE whose q(z|x) reaches over several components."""
    story = scatter(VaDE(D, z_dim, K, hidden=(5,), **choices), scale=0.4)
    story.encoder.initial_scale = 0.7
    return story


def test_vades_gate_agrees_with_random_samples(scatter, x):
    story = spread(scatter, covariance="diagonal")
    fit, x = as_it_is(story.model, story.guide, x), x[5:10]
    with torch.no_grad():
        z = story.encoder(x).sample((100_000,))
        samples = story.prior.responsibilities(z).probs
    expected, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    assert (samples.std(0) > 0.03).all()  # there is something to average
    g = evaluation.gate(fit, x, num_samples=4096)
    assert ((g - expected).abs() < 4.5 * error).all()


@pytest.fixture
def one_dimensional(scatter, x):
    """A VaDE over one z, and its gate by a fine grid of z."""
    story = spread(scatter, z_dim=1)
    with torch.no_grad():
        q = story.encoder(x)
        t = torch.linspace(-9, 9, 20_001)
        z = q.mean + q.base_dist.scale * t[:, None, None]
        weights = torch.softmax(-(t**2) / 2, 0)
        exact = torch.einsum("s,snk->nk", weights, story.prior.responsibilities(z).probs)
    return as_it_is(story.model, story.guide, x), exact


def errors(fit, x, exact, num_samples, seeds=12):
    """True and reported errors, shape (seeds, N, K) each."""
    runs = [
        evaluation.gate(fit, x, num_samples=num_samples, seed=seed, return_error=True)
        for seed in range(seeds)
    ]
    return torch.stack([g - exact for g, _ in runs]), torch.stack([e for _, e in runs])


@pytest.mark.parametrize("num_samples", [64, 512])
def test_vades_gate_reports_its_error(one_dimensional, x, num_samples):
    fit, exact = one_dimensional
    true, reported = errors(fit, x, exact, num_samples)
    assert (true.abs() < 5 * reported).double().mean() > 0.95
    assert 0.7 < (true.square().mean() / reported.square().mean()).sqrt() < 1.4


def test_vades_gate_has_less_error_than_random_samples(one_dimensional, x):
    fit, exact = one_dimensional
    with torch.no_grad():
        probs = fit.story.prior.responsibilities(fit.story.encoder(x).sample((20_000,))).probs
    random = (probs.var(0).mean() / 64).sqrt()
    assert errors(fit, x, exact, 64)[0].square().mean().sqrt() < random / 2


def test_the_error_of_vades_gate_falls_faster_than_that_of_random_samples(one_dimensional, x):
    """Eight times the points: 1/√8 of the error at random, near 1/8 or better with these."""
    fit, exact = one_dimensional
    few, many = (errors(fit, x, exact, s)[0].square().mean().sqrt() for s in (64, 512))
    assert few / many > 1.6 * math.sqrt(8)


def test_the_seed_decides_the_points_of_the_gate(fitted, x):
    fit = fitted("vade")
    first, same, other = (evaluation.gate(fit, x, seed=seed) for seed in (1, 1, 2))
    assert_close(first, same, **EXACT)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["gmm", "vade", "dmvae"])
def test_rows_of_the_gate_sum_to_one(fitted, x, name):
    g = evaluation.gate(fitted(name), x)
    assert g.shape == (N, K)
    assert (g >= 0).all()
    assert_close(g.sum(-1), torch.ones(N), **CLOSE)


@pytest.mark.parametrize("name", ["gmm", "vade", "dmvae"])
@pytest.mark.parametrize("distance", [1e3, 1e8])
def test_far_rows_have_a_gate(fitted, x, name, distance):
    g, error = evaluation.gate(fitted(name), distance * x, return_error=True)
    assert g.isfinite().all()
    assert error.isfinite().all()
    assert_close(g.sum(-1), torch.ones(N), **CLOSE)


@pytest.mark.parametrize("num_samples", [0, 4, 12])
def test_points_of_the_gate_come_in_eights(fitted, x, num_samples):
    with pytest.raises(ValueError, match=f"to be a multiple of 8; got {num_samples}"):
        evaluation.gate(fitted("vade"), x, num_samples=num_samples)


LATENTS = {
    "normal": lambda n: dist.Normal(torch.zeros(n), 1.0),
    "lognormal": lambda n: dist.LogNormal(torch.zeros(n), 1.0),
    "normal of two": lambda n: dist.Normal(torch.zeros(n, 2), 1.0).to_event(1),
    "lognormal of two": lambda n: dist.LogNormal(torch.zeros(n, 2), 1.0).to_event(1),
    "full covariance": lambda n: dist.MultivariateNormal(torch.zeros(n, 2), torch.eye(2)),
    "laplace": lambda n: dist.Laplace(torch.zeros(n), 1.0),
}


@pytest.mark.parametrize("name", LATENTS)
def test_the_gate_averages_over_any_family_of_z(x, name):
    def both(x, observed=True):
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", LATENTS[name](len(x)))
            first = z[..., 0] if LATENTS[name](1).event_shape else z
            logits = torch.stack((first + shift, -first), -1)
            pyro.sample("c", dist.OneHotCategorical(logits=logits))
            if observed:
                pyro.sample("x", dist.Normal(torch.zeros(D), 1.0).to_event(1), obs=x)

    def guide(x):
        both(x, observed=False)

    fit = as_it_is(both, guide, x)
    g = evaluation.gate(fit, x, num_samples=4096)[:, 0]
    z = LATENTS[name](50_000).sample().reshape(50_000, -1)[:, 0]
    samples = torch.sigmoid(2 * z)
    # The families without quasi-random points have the error of 4,096 random ones.
    error = samples.std() * (1 / 50_000 + 1 / 4096) ** 0.5
    assert ((g - samples.mean()).abs() < 4.5 * error).all()


# Bounds


@pytest.mark.parametrize("name", STORIES)
def test_the_elbo_of_rows_averages_to_the_objective(fitted, x, name):
    fit = fitted(name)
    with reproducible(3):
        loss = MarginalELBO().loss(fit.story.model, fit.story.guide, x)
    rows = evaluation.elbo(fit, x, num_samples=1, seed=3)
    assert rows.shape == (N,)
    assert rows.mean().item() == pytest.approx(-loss / N, rel=1e-12)


def test_the_elbo_averages_over_samples(fitted, x):
    fit = fitted("dmvae")
    with reproducible(3):
        loss = MarginalELBO(num_particles=5).loss(fit.story.model, fit.story.guide, x)
    rows = evaluation.elbo(fit, x, num_samples=5, seed=3)
    assert rows.mean().item() == pytest.approx(-loss / N, rel=1e-12)


@pytest.mark.parametrize("bound", [evaluation.elbo, evaluation.importance_weighted_bound])
def test_bounds_of_a_mixture_are_its_likelihood(fitted, x, bound):
    fit = fitted("gmm")
    expected = fit.story.mixture.log_joint(x).logsumexp(-1).detach()
    assert_close(bound(fit, x), expected, **CLOSE)


def test_with_one_sample_the_importance_weighted_bound_is_the_elbo(fitted, x):
    """Where there is no c; with c it is tighter, for it needs no q(c|x)."""
    fit, same = fitted("vae"), {"num_samples": 1, "seed": 4}
    bound = evaluation.importance_weighted_bound(fit, x, **same)
    assert_close(bound, evaluation.elbo(fit, x, **same), **CLOSE)
    fit = fitted("dmvae")
    bound = evaluation.importance_weighted_bound(fit, x, **same)
    assert (bound > evaluation.elbo(fit, x, **same)).all()


def linear_gaussian(guide_shift, guide_scale):
    """z ~ N(0, 1), x ~ N(a z + b, s²), and a guide that many steps are off the posterior.

    Returns model, guide, the log evidence and the gap KL(q(z|x) ‖ p(z|x)) of any row.
    """
    a, b, s = torch.tensor([1.0, -0.5, 0.3]), torch.tensor([0.2, 0.0, -1.0]), 0.8
    precision = 1 + (a @ a) / s**2

    def model(x):
        slope = pyro.param("slope", a)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * slope + b, s).to_event(1), obs=x)

    def guide(x):
        loc = ((x - b) @ a / s**2 / precision).unsqueeze(-1)
        scale = precision**-0.5
        with pyro.plate("data", len(x)):
            q = dist.Normal(loc + guide_shift, guide_scale * scale)
            pyro.sample("z", q.to_event(1))

    evidence = dist.MultivariateNormal(b, torch.outer(a, a) + s**2 * torch.eye(3)).log_prob
    shift = guide_shift * precision**0.5
    gap = 0.5 * (guide_scale**2 + shift**2 - 1) - math.log(guide_scale)
    return model, guide, evidence, gap


@pytest.mark.parametrize("num_samples", [1, 7])
@pytest.mark.parametrize("bound", [evaluation.elbo, evaluation.importance_weighted_bound])
def test_at_the_posterior_both_bounds_are_the_log_evidence(x, bound, num_samples):
    model, guide, evidence, _ = linear_gaussian(0.0, 1.0)
    fit = as_it_is(model, guide, x)
    assert_close(bound(fit, x, num_samples=num_samples), evidence(x), **CLOSE)


def test_what_only_the_model_draws_is_averaged_over():
    """The prior for a guide: with x = 0, z and x - z standard normal, log E N(0 | z, 1)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(1)), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.zeros(8000, 1)
    fit = as_it_is(model, lambda x: None, x[:5])
    evidence = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
    weights = {s: evaluation.importance_weighted_bound(fit, x, num_samples=s).exp() for s in (1, 9)}
    for each in weights.values():
        assert abs(each.mean() - evidence.exp()) < 4.5 * each.std() / len(x) ** 0.5
    assert weights[9].var() / weights[1].var() == pytest.approx(1 / 9, rel=0.15)


@pytest.fixture
def suboptimal():
    """A guide off the posterior, and one row 16,000 times, for as many independent estimates."""
    model, guide, evidence, gap = linear_gaussian(0.3, 1.2)
    x = torch.tensor([[0.5, 1.0, -0.7]]).expand(16_000, 3)
    return as_it_is(model, guide, x[:10]), x, evidence(x[:1]), gap


def test_off_the_posterior_the_elbo_is_short_by_the_divergence(suboptimal):
    fit, x, evidence, gap = suboptimal
    rows = evaluation.elbo(fit, x, num_samples=4)
    assert abs(rows.mean() - (evidence - gap)) < 4.5 * rows.std() / len(rows) ** 0.5


def test_the_importance_weighted_bound_closes_on_the_log_evidence_from_below(suboptimal):
    fit, x, evidence, gap = suboptimal
    rows = {
        s: evaluation.importance_weighted_bound(fit, x, num_samples=s, seed=s) for s in (1, 4, 16)
    }
    means = [evidence - gap, *(each.mean() for each in rows.values()), evidence]
    errors = [0.0, *(each.std() / len(x) ** 0.5 for each in rows.values()), 0.0]
    assert abs(means[1] - means[0]) < 4.5 * errors[1]  # S = 1 is the ELBO
    for s in range(1, 4):
        assert means[s + 1] - means[s] > 3 * math.hypot(errors[s], errors[s + 1])


def test_the_gap_of_the_importance_weighted_bound_is_the_variance_of_its_weights(suboptimal):
    """It tends to Var(w) / 2S, with w = p(z|x) / q(z|x); in closed form for two normals."""
    fit, x, evidence, _ = suboptimal
    rows = evaluation.importance_weighted_bound(fit, x, num_samples=64)
    a, s = torch.tensor([1.0, -0.5, 0.3]), 0.8
    shift, scale = 0.3 * (1 + (a @ a) / s**2).sqrt(), 1.2
    second_moment = scale**2 / math.sqrt(2 * scale**2 - 1)
    second_moment = second_moment * (shift**2 / (2 * scale**2 - 1)).exp()
    expected = (second_moment - 1) / 128
    assert abs(evidence - rows.mean() - expected) < 4.5 * rows.std() / len(x) ** 0.5 + expected**2


# Codes, reconstructions and samples


@pytest.mark.parametrize("name", ["vae", "vade", "dmvae"])
def test_codes_are_the_means_of_the_encoder(fitted, x, name):
    fit = fitted(name)
    assert_close(evaluation.encode(fit, x), fit.story.encoder(x).mean.detach(), **EXACT)


@pytest.mark.parametrize("name", ["vae", "vade", "dmvae"])
def test_reconstructions_are_the_means_of_the_decoder_at_the_codes(fitted, x, name):
    fit = fitted(name)
    expected = fit.story.decoder(fit.story.encoder(x).mean).mean.detach()
    assert_close(evaluation.reconstruct(fit, x), expected, **EXACT)


def within(samples, mean, covariance):
    """Whether moments of samples are those expected, within their standard errors."""
    num = len(samples)
    assert (abs(samples.mean(0) - mean) < 4.5 * (covariance.diagonal() / num).sqrt()).all()
    residual = samples - mean
    products = residual.unsqueeze(-1) * residual.unsqueeze(-2)
    assert (abs(products.mean(0) - covariance) < 4.5 * products.std(0) / num**0.5).all()


@pytest.mark.parametrize("component", range(K))
def test_samples_of_a_component_have_its_moments(fitted, component):
    fit = fitted("gmm")
    samples = evaluation.sample(fit, 20_000, component=component, seed=component)
    p = dist.MultivariateNormal(
        torch.eye(K)[component] @ fit.story.mixture.loc,
        scale_tril=fit.story.mixture.cholesky(torch.eye(K)[component]),
    )
    within(samples, p.mean.detach(), p.covariance_matrix.detach())


def test_samples_of_the_story_have_the_moments_of_the_mixture(fitted):
    fit = fitted("gmm")
    weights = fit.story.mixture.logits.softmax(-1).detach()
    p = fit.story.mixture.normals
    mean = weights @ p.mean.detach()
    between = (p.mean - mean).detach()
    covariance = torch.einsum("k,kij->ij", weights, p.covariance_matrix.detach())
    within(evaluation.sample(fit, 20_000), mean, covariance + between.T @ (weights * between.T).T)


def test_samples_of_a_mixture_without_noise_are_its_means(fitted):
    fit = fitted("gmm")
    samples = evaluation.sample(fit, 5, component=2, noise=False)
    assert_close(samples, fit.story.mixture.loc[2].detach().expand(5, D), **CLOSE)


def test_samples_are_numbers_also_where_rows_share_the_factors_of_few_components():
    story = GMM(6, 2)
    fit = as_it_is(story.model, story.guide, torch.randn(5, 6))
    assert not evaluation.sample(fit, 5, noise=False).requires_grad


def test_samples_of_a_component_are_decoded_from_its_codes(scatter, x):
    """Affine decoders have exact moments: p(x|c=k) = N(A μ_k + a, A Σ_k A' + S)."""
    story = scatter(DMVAE(D, L, K, decoder=MLP(L, (), D)))
    fit = as_it_is(story.model, story.guide, x)
    p = dist.MultivariateNormal(
        torch.eye(K)[1] @ story.prior.loc, scale_tril=story.prior.cholesky(torch.eye(K)[1])
    )
    (layer,) = story.decoder.network
    mean = layer(p.mean).detach()
    covariance = (layer.weight @ p.covariance_matrix @ layer.weight.T).detach()
    smooth = evaluation.sample(fit, 20_000, component=1, noise=False)
    within(smooth, mean, covariance)
    noise = (2 * story.decoder.log_scale).exp().diag().detach()
    within(evaluation.sample(fit, 20_000, component=1), mean, covariance + noise)


def test_samples_need_no_data_of_their_number(fitted):
    assert evaluation.sample(fitted("vae"), 3 * N).shape == (3 * N, D)
    assert evaluation.sample(fitted("vae"), 1).shape == (1, D)


def test_the_seed_decides_the_samples(fitted):
    fit = fitted("vade")
    first, same, other = (evaluation.sample(fit, 5, seed=seed) for seed in (1, 1, 2))
    assert_close(first, same, **EXACT)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("component", [-1, K])
def test_a_component_that_is_none_is_an_error(fitted, component):
    with pytest.raises(ValueError, match=rf"component from 0 to 3; got {component}"):
        evaluation.sample(fitted("gmm"), 5, component=component)


# Scores


def test_scores_of_a_worked_example():
    """Clusters against labels: [[2, 1], [0, 3]]."""
    scores = evaluation.clustering_scores([0, 0, 0, 1, 1, 1], [5, 5, 7, 7, 7, 7])
    assert scores["accuracy"] == pytest.approx(5 / 6)
    # Pairs: 4 in one cell of 15; 6 in one cluster, 7 in one label.
    assert scores["ari"] == pytest.approx((4 - 6 * 7 / 15) / ((6 + 7) / 2 - 6 * 7 / 15))
    joint = {(0, 5): 2 / 6, (0, 7): 1 / 6, (1, 7): 3 / 6}
    cluster, label = {0: 1 / 2, 1: 1 / 2}, {5: 1 / 3, 7: 2 / 3}
    information = sum(p * math.log(p / cluster[i] / label[j]) for (i, j), p in joint.items())
    entropies = [-sum(p * math.log(p) for p in each.values()) for each in (cluster, label)]
    assert scores["nmi"] == pytest.approx(2 * information / sum(entropies))


@pytest.fixture
def clusters_and_labels():
    labels = torch.randint(4, (200,))
    return torch.where(torch.rand(200) < 0.7, labels, torch.randint(4, (200,))), labels


def test_scores_do_not_depend_on_the_numbers_of_clusters(clusters_and_labels):
    clusters, labels = clusters_and_labels
    expected = evaluation.clustering_scores(clusters, labels)
    for permutation in (torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 2, 0])):
        permuted = evaluation.clustering_scores(permutation[clusters], labels)
        assert permuted == pytest.approx(expected, rel=1e-12)


def test_the_accuracy_is_that_of_the_best_permutation(clusters_and_labels):
    clusters, labels = clusters_and_labels
    permutations = torch.tensor(
        [[a, b, c, 6 - a - b - c] for a in range(4) for b in range(4) for c in range(4)]
    )
    permutations = permutations[(permutations.sort().values == torch.arange(4)).all(-1)]
    assert len(permutations) == 24
    best = (permutations[:, clusters] == labels).double().mean(-1).max().item()
    assert evaluation.clustering_scores(clusters, labels)["accuracy"] == pytest.approx(best)


def test_the_largest_entry_of_a_gate_decides(clusters_and_labels):
    clusters, labels = clusters_and_labels
    g = (3 * torch.eye(4)[clusters] + torch.rand(200, 4)).softmax(-1)
    expected = evaluation.clustering_scores(clusters, labels)
    assert evaluation.clustering_scores(g, labels) == expected
    assert evaluation.clustering_scores(g.numpy(), labels.tolist()) == expected


def test_of_more_clusters_than_labels_each_label_gets_one():
    scores = evaluation.clustering_scores([0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 1, 1])
    assert scores["accuracy"] == pytest.approx(5 / 6)


def test_of_fewer_clusters_than_labels_each_cluster_gets_one():
    scores = evaluation.clustering_scores([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 2, 2])
    assert scores["accuracy"] == pytest.approx(5 / 6)


def test_one_cluster_has_scores():
    scores = evaluation.clustering_scores(torch.ones(4, 1), [0, 0, 1, 1])
    assert scores == pytest.approx({"accuracy": 0.5, "nmi": 0.0, "ari": 0.0})


def test_one_cluster_of_one_label_is_right():
    scores = evaluation.clustering_scores(torch.ones(4, 1), [0, 0, 0, 0])
    assert scores["accuracy"] == 1.0


def test_every_row_wants_a_label():
    with pytest.raises(DataError, match=r"expected 3 labels; got shape \(2,\)"):
        evaluation.clustering_scores([0, 1, 1], [0, 1])


# Whatever was fitted


@pytest.mark.parametrize(
    ("ask", "name", "message"),
    [
        (evaluation.gate, "vae", r"site 'c' in the guide or the model; got sites \['x', 'z'\]"),
        (evaluation.encode, "gmm", r"site 'z' in the guide; got sites \['c'\]"),
        (evaluation.reconstruct, "gmm", r"site 'z' in the guide; got sites \['c'\]"),
        (
            lambda fit, x: evaluation.sample(fit, 5, component=0),
            "vae",
            r"site 'c' in the model; got sites \['x', 'z'\]",
        ),
    ],
)
def test_a_site_that_is_missing_is_named(fitted, x, ask, name, message):
    with pytest.raises(SiteError, match=f"expected a {message}"):
        ask(fitted(name), x)


@pytest.mark.parametrize("ask", [evaluation.reconstruct, lambda fit, x: evaluation.sample(fit, 5)])
def test_a_model_without_x_is_told_so(x, ask):
    def model(x):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1], 1.0).to_event(1))

    with pytest.raises(SiteError, match=r"site 'x' in the model; got sites \['y', 'z'\]"):
        ask(as_it_is(model, guide, x), x)


ROWS = {
    "gate": evaluation.gate,
    "encode": evaluation.encode,
    "reconstruct": evaluation.reconstruct,
    "elbo": evaluation.elbo,
    "importance_weighted_bound": evaluation.importance_weighted_bound,
}
each_reading = pytest.mark.parametrize("read", ROWS.values(), ids=ROWS.keys())


@each_reading
def test_rows_of_another_width_are_an_error(fitted, read):
    with pytest.raises(DataError, match="expected x with 3 columns, as fitted; got 2"):
        read(fitted("dmvae"), torch.zeros(5, 2))


@each_reading
def test_rows_that_are_not_finite_are_an_error(fitted, x, read):
    x[7, 1] = math.nan
    with pytest.raises(DataError, match="expected finite values in x; got nan in row 7"):
        read(fitted("dmvae"), x)


@each_reading
def test_rows_may_be_of_any_kind_and_type(fitted, x, read):
    fit, x = fitted("dmvae"), x.float()  # the fit is in double precision
    expected = read(fit, x)
    assert expected.dtype == torch.float64
    assert_close(read(fit, x.numpy()), expected, **EXACT)
    assert_close(read(fit, Rows(x, labels=torch.zeros(N, dtype=torch.long))), expected, **EXACT)


@each_reading
def test_reading_needs_no_gradient_and_leaves_the_generator_alone(fitted, x, read):
    fit, state = fitted("dmvae"), torch.get_rng_state()
    pyro.clear_param_store()
    result = read(fit, x)
    assert not result.requires_grad
    assert_close(torch.get_rng_state(), state, **EXACT)
    assert len(pyro.get_param_store()) == 0


@each_reading
def test_targets_beside_x_are_no_obstacle_to_a_fit_of_x_alone(fitted, x, read):
    """Rows (x, y) of a data set whose x was fitted, as in `fit(..., train.x)` then `gate(test)`."""
    fit = fitted("dmvae")
    assert_close(read(fit, Rows(x, y=torch.zeros(N))), read(fit, x), **EXACT)


def test_targets_that_were_fitted_are_asked_for_by_a_bound_and_not_by_a_gate(x):
    def model(x, y):
        loc = pyro.param("loc", torch.zeros(2, D))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(c @ loc, 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(c[..., 0], 1.0), obs=y)

    fit = as_it_is(model, nothing, x, x[:, 0])
    assert evaluation.elbo(fit, (x, x[:, 0])).isfinite().all()
    assert_close(evaluation.gate(fit, (x, x[:, 0])), evaluation.gate(fit, x))
    with pytest.raises(DataError, match=r"expected .*y"):
        evaluation.elbo(fit, x)


# Batches


EXACTLY = {
    "gate of a mixture": ("gmm", evaluation.gate),
    "gate of a DMVAE": ("dmvae", evaluation.gate),
    "codes": ("vade", evaluation.encode),
    "reconstructions": ("dmvae", evaluation.reconstruct),
    "elbo": ("gmm", partial(evaluation.elbo, num_samples=1)),
    "importance-weighted bound": (
        "gmm",
        partial(evaluation.importance_weighted_bound, num_samples=2),
    ),
}


@pytest.mark.parametrize("case", EXACTLY)
def test_how_rows_are_split_makes_no_difference(fitted, case):
    name, read = EXACTLY[case]
    fit, x = fitted(name), torch.randn(4099, D)
    whole = read(fit, x)
    assert len(whole) == len(x)
    parts = [read(fit, part) for part in x.split([1, 1022, 2, 3000, 72, 2])]
    assert_close(whole, torch.cat(parts), **CLOSE)
    for row in (0, 1024, 4095, 4096, 4098):
        assert_close(whole[row : row + 1], read(fit, x[row : row + 1]), **CLOSE)


def test_rows_of_all_batches_have_estimates_of_their_own(fitted):
    """In later batches, too: the mean of their bounds is that of the first."""
    fit = fitted("vae")
    x = torch.zeros(8192, D)
    first, second = evaluation.elbo(fit, x, num_samples=1).split(4096)
    error = (first.var() / 4096 + second.var() / 4096).sqrt()
    assert abs(first.mean() - second.mean()) < 4.5 * error
    assert not torch.equal(first, second)


# Means of a guide


def test_codes_of_a_story_from_scratch_are_read_by_their_site(x):
    def model(x):
        slope = pyro.param("slope", torch.ones(D))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * slope, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(x[:, :1].exp(), 2.0).to_event(1))

    fit = as_it_is(model, guide, x)
    assert_close(evaluation.encode(fit, x), x[:, :1].exp() / 2, **CLOSE)
    assert_close(evaluation.reconstruct(fit, x), (x[:, :1].exp() / 2).expand(N, D), **CLOSE)


def test_the_fitted_programs_are_callable_as_pyro_programs(fitted, x):
    fit = fitted("dmvae")
    trace = poutine.trace(fit.guide).get_trace(x)
    assert_close(trace.nodes["z"]["fn"].mean, fit.story.encoder(x).mean, **EXACT)
    replayed = poutine.trace(poutine.replay(fit.model, trace=trace)).get_trace(x)
    assert_close(replayed.nodes["z"]["value"], trace.nodes["z"]["value"], **EXACT)


# Latent variables that rows share


def test_samples_are_of_the_posterior_of_what_rows_share():
    """Each data set has one value of it, drawn from the guide and not from the prior."""

    def model(x):
        m = pyro.sample("m", dist.Normal(-100.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, torch.tensor([0.1])).to_event(1), obs=x)

    def guide(x):
        pyro.sample("m", dist.Normal(torch.tensor(5.0), 2.0))

    fit = pyro_moe.fit(model, guide, torch.zeros(3, 1), epochs=0, initialize="keep", progress=False)
    means = []
    for seed in range(200):
        made = evaluation.sample(fit, 50, seed=seed)
        assert made.std().item() == pytest.approx(0.1, rel=5 / 10)
        means.append(made.mean())
    means = torch.stack(means)
    assert abs(means.mean().item() - 5.0) < 4 * 2.0 / 200**0.5
    assert means.std().item() == pytest.approx(2.0, rel=4 / 400**0.5)
