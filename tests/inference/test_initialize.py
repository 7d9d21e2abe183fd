import sys
from copy import deepcopy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError
from pyro_moe.inference import (
    EM,
    SVI,
    AssignedELBO,
    MarginalELBO,
    Reconstruction,
    SiteError,
)
from pyro_moe.inference.handlers import annotated
from pyro_moe.inference.initialize import (
    corrected,
    latent_means,
    phases,
    target_log_likelihoods,
)
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.prior import FLAT, Prior
from pyro_moe.inference.starts import clustering
from pyro_moe.inference.starts.clustering import (
    cluster,
    neighbor_embedding,
    typical,
    unit_variance,
)
from pyro_moe.models import DMVAE, GMM, ME, VAE, DVMoE, GMMMoE, HierarchicalME, VaDE, VaDEMoE

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 60, 2, 3


@pytest.fixture
def labels():
    return torch.arange(N) % K


@pytest.fixture
def x(labels):
    """Three clusters, thirty standard deviations apart."""
    centers = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0]])
    return centers[labels] + torch.randn(N, D)


@pytest.fixture
def responsibilities(labels):
    return torch.eye(K)[labels] * 0.97 + 0.01


def svi(story, x, loss="marginal"):
    elbo, treatment = objective(loss)
    settings = {"batch_size": 20, "learning_rate": 1e-2, "temperature": 1.0, "seed": 0}
    return SVI(story.model, story.guide, (x,), elbo, treatment, epochs=3, **settings)


def names(training, start, num_components=K):
    found = []
    for name, run in phases(training, start, epochs=2, num_components=num_components):
        found.append(name)
        list(run)
    return found


STORIES = {
    "gmm": lambda: GMM(D, K),
    "vae": lambda: VAE(D, 1, hidden=(4,)),
    "vade": lambda: VaDE(D, 1, K, hidden=(4,)),
    "dmvae": lambda: DMVAE(D, 1, K, hidden=(4,)),
}


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("start", ["random", "keep"])
def test_random_and_keep_go_to_training_at_once(x, name, start):
    training = svi(STORIES[name](), x)
    assert list(phases(training, start, epochs=2, num_components=K)) == [("training", training)]


@pytest.mark.parametrize("name", ["vade", "dmvae"])
@pytest.mark.parametrize("start", ["autoencoder", "tsne", "responsibilities"])
def test_a_story_with_codes_is_reconstructed_then_assigned_then_trained(
    monkeypatch, x, responsibilities, name, start
):
    monkeypatch.setattr(clustering, "neighbor_embedding", lambda points, method, seed: points)
    start = responsibilities if start == "responsibilities" else start
    assert names(svi(STORIES[name](), x), start) == ["autoencoder", "assigned", "training"]


def test_a_story_without_codes_is_assigned_then_trained(x, responsibilities):
    assert names(svi(GMM(D, K), x), responsibilities) == ["assigned", "training"]


def test_em_takes_responsibilities_as_its_first_m_step(x, responsibilities):
    story, expected = GMM(D, K), GMM(D, K)
    training = EM(story.model, story.guide, (x,), 3, 0)
    assert names(training, responsibilities) == ["training"]
    expected.mixture.maximize(x, responsibilities)
    first = expected.mixture.log_joint(x).logsumexp(-1).mean().item()
    assert training.history[0]["elbo"] == pytest.approx(first, rel=1e-9)


def test_each_phase_has_its_objective_and_its_epochs(x, responsibilities):
    training = svi(DMVAE(D, 1, K, hidden=(4,)), x)
    runs = dict(phases(training, responsibilities, epochs=11, num_components=K))
    assert [type(run.elbo) for run in runs.values()] == [Reconstruction, AssignedELBO, MarginalELBO]
    assert [run.epochs for run in runs.values()] == [11, 3, 3]  # 11 / 5, rounded up
    assert_close(runs["assigned"].annotations.labels, responsibilities)
    assert runs["training"] is training


def test_phases_change_the_same_story(x, responsibilities):
    story = DMVAE(D, 1, K, hidden=(4,))
    runs = dict(phases(svi(story, x), responsibilities, epochs=1, num_components=K))
    assert all(run.model.__self__ is story for run in runs.values())
    assert all(run.store is runs["training"].store for run in runs.values())


def test_before_it_is_assigned_the_prior_has_the_moments_of_the_codes(x, responsibilities):
    story = DMVAE(D, 1, K, hidden=(4,))
    for name, _ in phases(svi(story, x), responsibilities, epochs=1, num_components=K):
        if name == "assigned":
            break
    expected = DMVAE(D, 1, K, hidden=(4,)).prior
    expected.maximize(story.encoder(x).mean.detach(), responsibilities)
    assert_close(story.prior.state_dict(), expected.state_dict())


def test_latent_means_are_those_of_the_encoder_whatever_the_batches(x):
    story = VaDE(D, 1, K, hidden=(4,))
    run = svi(story, x)
    assert_close(latent_means(run), story.encoder(x).mean.detach())
    assert_close(latent_means(run, rows_at_once=7), latent_means(run))


def test_latent_means_of_a_guide_without_z_are_none(x):
    assert latent_means(svi(GMM(D, K), x)) is None


def test_latent_means_leave_the_callers_randomness(x):
    run = svi(DMVAE(D, 1, K, hidden=(4,)), x)
    before = torch.get_rng_state()
    latent_means(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_story_without_z_has_x_for_codes(x):
    assert names(svi(GMM(D, K), x), "autoencoder") == ["assigned", "training"]


def test_a_clustering_of_a_story_without_c_is_an_error(x):
    with pytest.raises(SiteError, match=r"expected a site 'c' in the model .*'autoencoder'"):
        names(svi(VAE(D, 1, hidden=(4,)), x), "autoencoder", num_components=None)


def test_cluster_finds_groups_that_are_far_apart(x, labels):
    r = cluster(x, K, seed=0)
    assert r.shape == (N, K)
    assert_close(r.sum(-1), torch.ones(N))
    for k in range(K):
        assert len(set(r[labels == k].argmax(-1).tolist())) == 1
    assert len(set(r.argmax(-1).tolist())) == K
    assert_close(cluster(x, K, seed=0), r)


def test_cluster_may_embed_its_points_first(monkeypatch, x):
    seen = []

    def embedding(points, method, seed):
        seen.append((points.shape, seed))
        return points[:, :1]

    monkeypatch.setattr(clustering, "neighbor_embedding", embedding)
    assert cluster(x, K, embedding="tsne", seed=5).shape == (N, K)
    assert seen == [((N, D), 5)]


def test_without_umap_the_error_says_what_to_install(monkeypatch, x):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"umap-learn .*pip install 'pyro-moe\[umap\]'"):
        neighbor_embedding(x.numpy(), "umap", seed=0)


def test_a_fit_from_responsibilities_starts_with_their_components(x, responsibilities, labels):
    story = GMM(D, K)
    fitted = pyro_moe.fit(
        story.model,
        story.guide,
        x,
        initialize=responsibilities,
        initial_epochs=1,
        epochs=1,
        learning_rate=0.0,
        prior="none",
        progress=False,
    )
    assert [record["phase"] for record in fitted.history] == ["assigned", "training"]
    assert_close(fitted.story.mixture.responsibilities(x).probs.argmax(-1), labels)


def test_parts_without_an_m_step_do_not_matter(x, responsibilities):
    loc = torch.nn.Linear(K, D, bias=False)

    def model(x):
        pyro.module("loc", loc)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.ones(K)))
            pyro.sample("x", dist.Normal(loc(c), 1.0).to_event(1), obs=x)

    elbo, treatment = objective("marginal")
    run = SVI(model, lambda x: None, (x,), elbo, treatment, 1, 20, 1e-2, 1.0, 0)
    assert names(run, responsibilities) == ["assigned", "training"]


def test_the_typical_mixture_is_the_one_that_most_agree_with(labels, x):
    points = unit_variance(x.double()).numpy()
    r = typical(points, K, seed=0)
    assert r.shape == (N, K)
    np.testing.assert_allclose(r.sum(1), 1.0)
    shifted = typical(points + 3.0, K, seed=0)
    assert adjusted_rand_score(r.argmax(1), shifted.argmax(1)) == 1.0
    assert adjusted_rand_score(r.argmax(1), labels) > 0.99


def test_many_points_are_clustered_by_a_mixture_of_some(monkeypatch, labels, x):
    monkeypatch.setattr(clustering, "MIXTURE_ROWS", N // 2)
    r = typical(unit_variance(x.double()).numpy(), K, seed=0)
    assert adjusted_rand_score(r.argmax(1), labels) > 0.99


def test_tsne_keeps_groups_apart_that_are_far_apart(x, labels):
    r = cluster(x, K, embedding="tsne", seed=0)
    for k in range(K):
        assert len(set(r[labels == k].argmax(-1).tolist())) == 1
    assert len(set(r.argmax(-1).tolist())) == K


# Targets


@pytest.fixture
def y(x, labels):
    """Another affine map of x in each cluster, and next to no noise."""
    slope, offset = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0.0, 50.0, 5.0])
    return slope[labels] * x[:, 0] + offset[labels] + 0.1 * torch.randn(N)


def run_of(story, *data):
    run = svi(story, data[0])
    run.data = data
    return run


EXPERTS = {
    "me": lambda: ME(D, 1, K),
    "hierarchical": lambda: HierarchicalME(D, 1, (K, 2)),
    "gmm": lambda: GMMMoE(D, 1, K),
    "vade": lambda: VaDEMoE(D, 1, K, 1, hidden=(4,)),
    "vade on codes": lambda: VaDEMoE(D, 1, K, 1, hidden=(4,), context="z"),
    "dvmoe": lambda: DVMoE(D, 1, K, 1, hidden=(4,)),
    "dvmoe on codes": lambda: DVMoE(D, 1, K, 1, hidden=(4,), context="z"),
}
each_experts = pytest.mark.parametrize("name", EXPERTS)


@pytest.fixture
def story(name, x, y):
    made = EXPERTS[name]()
    with torch.no_grad():
        made.adapt(x, y)
    return made


@each_experts
def test_target_log_likelihoods_are_each_experts_and_zero_where_y_is_missing(story, x, y):
    missing = torch.arange(N) % 7 == 0
    run = run_of(story, x, y.masked_fill(missing, torch.nan))
    p = getattr(story, "expert_distributions", story.experts)(x)
    expected = p.log_prob(y.reshape(N, 1, 1)).detach()
    expected[missing] = 0.0
    assert_close(target_log_likelihoods(run), expected)
    assert_close(target_log_likelihoods(run, rows_at_once=7), expected)


def test_target_log_likelihoods_of_classes_are_log_probabilities(x, labels):
    story = ME(D, K, K, experts="categorical")
    expected = story.experts(x).logits.detach()[torch.arange(N), :, labels]
    assert_close(target_log_likelihoods(run_of(story, x, labels)), expected)


def test_without_targets_there_are_no_log_likelihoods(x):
    assert target_log_likelihoods(run_of(ME(D, 1, K), x)) is None


def test_targets_that_do_not_depend_on_c_have_no_log_likelihoods(x, y, responsibilities):
    def model(x, y):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.ones(K)))
            pyro.sample("x", dist.Normal(c @ torch.ones(K, D), 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(x[:, 0], 1.0), obs=y)

    elbo, treatment = objective("marginal")
    run = SVI(model, lambda x, y: None, (x, y), elbo, treatment, 1, 20, 1e-2, 1.0, 0)
    assert target_log_likelihoods(run) is None
    assert corrected(run, responsibilities, x) is responsibilities


def test_a_clustering_without_targets_is_returned_as_it_is(x, responsibilities):
    story, expected = GMM(D, K), GMM(D, K)
    assert corrected(run_of(story, x), responsibilities, x) is responsibilities
    expected.mixture.maximize(x, responsibilities)
    assert_close(story.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("iterations", [1, 3])
def test_corrections_are_em_on_the_experts_and_on_what_a_cluster_says_of_a_component(
    x, y, responsibilities, iterations
):
    story, y = ME(D, 1, K), y + 5.0 * torch.randn(N)
    story.adapt(x, y)
    expected = deepcopy(story)
    got = corrected(run_of(story, x, y), responsibilities, x, iterations=iterations)
    r, confusion = responsibilities, 0.9 * torch.eye(K) + 0.1 / K
    weights, background, share = r, None, 0.05
    for _ in range(iterations):
        expected.m_step(weights, x, x, y)
        density = expected.experts(x).log_prob(y.reshape(N, 1, 1)).exp().detach()
        if background is None:
            background = density.mean(-1, keepdim=True)
        # of each row the cluster j, the component k, and whether its expert explains it
        explained, unexplained = (
            responsibilities.unsqueeze(-1) * confusion * part.unsqueeze(1)
            for part in ((1 - share) * density, share * background.expand(N, K))
        )
        total = (explained + unexplained).sum((1, 2), keepdim=True)
        joint = (explained + unexplained) / total
        r, confusion = joint.sum(1), joint.sum(0) / joint.sum((0, 2)).unsqueeze(-1)
        weights = (explained / total).sum(1)
        share = 1 - weights.sum(-1).mean()
        weights = torch.where(weights < 1e-3, 0.0, weights)
    assert_close(got, r)
    assert_close(story.state_dict(), expected.state_dict())


@pytest.fixture
def wrong():
    """Rows (x, y) of three rules for the same x, their labels, and labels wrong for a tenth."""
    labels, x = torch.arange(150) % K, torch.randn(150, D)
    slope = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -3.0]])
    y = (slope[labels] * x).sum(-1) + torch.tensor([0.0, 3.0, -3.0])[labels]
    given = labels.clone()
    given[::10] = (given[::10] + 1) % K
    return x, y + 0.05 * torch.randn(150), labels, 0.98 * torch.eye(K)[given] + 0.02 / K


@pytest.mark.parametrize("name", ["me", "hierarchical", "gmm", "vade", "dvmoe"])
def test_rows_in_a_wrong_cluster_are_put_right_by_their_targets(story, wrong):
    x, y, labels, given = wrong
    with torch.no_grad():
        story.adapt(x, y)
    points = x if isinstance(story, GMMMoE) else x[:, :1]
    got = corrected(run_of(story, x, y), given, points)
    assert_close(got.sum(-1), torch.ones(150))
    assert (got.argmax(-1) != labels).double().mean() < 0.03  # a few rows fit two rules
    assert (given.argmax(-1) != labels).double().mean() == 0.1


def test_no_expert_becomes_the_one_for_rows_that_others_refuse():
    """A tenth of the rows in a wrong cluster, and coefficients that few rows tell: 20 of them."""
    torch.manual_seed(1)
    labels = torch.arange(180) % K
    x = torch.randn(180, 20) * (torch.rand(180, 20) < 0.3) + torch.randn(K, 20)[labels]
    y = (torch.randn(K, 20)[labels] * x).sum(-1) + 3 * torch.randn(K)[labels]
    wrong = torch.rand(180) < 0.1
    given = 0.98 * torch.eye(K)[torch.where(wrong, (labels + 1) % K, labels)] + 0.02 / K
    story = ME(20, 1, K)
    with torch.no_grad():
        story.adapt(x, y)
    got = corrected(run_of(story, x, y), given, x)
    assert (got.argmax(-1) == labels).all()
    assert (story.experts.log_scale.exp() < story.experts.min_scale).all()  # there is no noise


def test_rows_without_a_target_stay_where_the_clustering_puts_them(wrong):
    x, y, labels, given = wrong
    missing = torch.arange(150) % 20 == 0
    story = GMMMoE(D, 1, K)
    with torch.no_grad():
        story.adapt(x, y)
    got = corrected(run_of(story, x, y.masked_fill(missing, torch.nan)), given, x).argmax(-1)
    assert_close(got[missing], given[missing].argmax(-1))
    assert (got[~missing] != labels[~missing]).double().mean() < 0.03


@each_experts
def test_a_fit_from_a_clustering_of_x_alone_needs_no_targets(story, x, responsibilities):
    assert names(run_of(story, x), responsibilities)[-2:] == ["assigned", "training"]


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_codes_that_are_all_the_same_are_not_embedded(method):
    with pytest.raises(DataError, match="expected rows whose codes differ; got one code for all"):
        neighbor_embedding(torch.ones(N, D).numpy(), method, seed=0)


# The prior


@pytest.mark.parametrize("name", ["me", "gmm", "vade", "dvmoe"])
def test_many_rows_of_the_prior_start_all_experts_at_one_model(story, x, y, responsibilities):
    """Without them, an expert of few rows starts at a scale from which no gradient leads back."""
    run = run_of(story, x, y.unsqueeze(-1))
    run.elbo, _ = objective("marginal", prior=Prior(rows=1e9), num_rows=N)
    codes = latent_means(run)
    corrected(run, responsibilities, x if codes is None else codes)
    p = getattr(story, "expert_distributions", story.experts)(x)
    inputs = torch.cat([x, torch.ones(N, 1)], 1).double()
    residuals = y.double() - inputs @ torch.linalg.lstsq(inputs, y.double()).solution
    sigma = residuals.square().mean().sqrt().item()
    mean = (y.double() - residuals).reshape(N, 1, 1).expand(N, K, 1)
    assert_close(p.mean.double(), mean, rtol=0, atol=1e-2 * sigma)
    assert_close(p.variance.sqrt().double(), torch.full_like(mean, sigma), rtol=1e-2, atol=0)


def test_the_assigned_phase_has_the_prior_of_the_training(x, y, responsibilities):
    run = run_of(DVMoE(D, 1, K, 1, hidden=(4,)), x, y)
    run.elbo, _ = objective("marginal", prior=Prior(rows=7.0, networks=2.0), num_rows=N)
    phase = dict(phases(run, responsibilities, epochs=0, num_components=K))["assigned"]
    known = annotated(run.model, phase.annotations.names)

    def loss(elbo):
        torch.manual_seed(0)
        if elbo is phase.elbo:
            guide = annotated(run.guide, phase.annotations.names)
            return elbo.loss(known, guide, x, y, *phase.annotations.columns)
        return elbo.loss(run.model, run.guide, x, y)

    def difference(elbo):
        of_prior = loss(elbo)
        elbo.prior, prior = FLAT, elbo.prior
        without, elbo.prior = loss(elbo), prior
        return of_prior - without

    assert difference(phase.elbo) == pytest.approx(difference(run.elbo), rel=1e-4)
    assert difference(phase.elbo) > 1.0
