from functools import partial

import pytest
import torch
from scipy.stats import betabinom
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, SiteError, evaluation, models
from pyro_moe.evaluation import Novelty

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 12, 3, 4
LEVEL = 0.05


def as_it_is(story, *columns):
    data = columns[0] if len(columns) == 1 else columns
    return pyro_moe.fit(story.model, story.guide, data, epochs=0, initialize="keep", progress=False)


@pytest.fixture
def x():
    return torch.randn(N, D)


@pytest.fixture
def mixture(scatter, x):
    story = scatter(models.GMM(D, K))
    return as_it_is(story, x)


def log_density_of(fit, x):
    return fit.story.mixture.log_joint(x).logsumexp(-1).detach()


# What it is


def test_a_p_value_counts_the_reference_rows_that_are_no_likelier():
    novelty = Novelty(torch.tensor([-5.0, -3.0, -2.5, 0.0]), torch.tensor([-3.0, -3.0, -2.0, -1.0]))
    assert_close(novelty.p_value, torch.tensor([1, 3, 3, 5]) / 5.0)
    assert len(novelty) == 4


def test_the_density_of_a_mixture_is_exact(mixture, x):
    new = torch.randn(7, D)
    novelty = evaluation.novelty(mixture, new)
    assert_close(novelty.log_density, log_density_of(mixture, new))
    reference = log_density_of(mixture, x)
    assert_close(novelty.reference, reference.sort().values)
    as_low = (reference <= log_density_of(mixture, new).unsqueeze(-1)).sum(-1)
    assert_close(novelty.p_value, (1.0 + as_low) / (N + 1.0))


def test_the_density_is_the_importance_weighted_bound(scatter, x):
    fit = as_it_is(scatter(models.DMVAE(D, 2, K, hidden=(5,))), x)
    novelty = evaluation.novelty(fit, x, num_samples=5, seed=3)
    bound = evaluation.importance_weighted_bound(fit, x, num_samples=5, seed=3)
    assert_close(novelty.log_density, bound)


@pytest.mark.parametrize("kind", ["gmm", "vade", "dvmoe"])
def test_targets_have_no_part_in_it(scatter, x, kind):
    choices = {"z_dim": 2, "hidden": (5,)}
    story = {
        "gmm": lambda: models.GMMMoE(D, 1, K),
        "vade": lambda: models.VaDEMoE(D, 1, K, **choices),
        "dvmoe": lambda: models.DVMoE(D, 1, K, **choices),
    }[kind]()
    fit = as_it_is(scatter(story), x, torch.randn(N))
    novelty = evaluation.novelty(fit, x, num_samples=5)
    with_targets = evaluation.novelty(fit, (x, 1e3 * torch.randn(N)), num_samples=5)
    assert_close(with_targets.log_density, novelty.log_density)
    if kind == "gmm":
        assert_close(novelty.log_density, log_density_of(fit, x))
    else:
        of_x = models.VaDE if kind == "vade" else models.DMVAE
        programs = (partial(program, fit.story) for program in (of_x.model, of_x.guide))
        of_x = pyro_moe.fit(*programs, x, initialize="keep", epochs=0, progress=False)
        repeated = x.repeat(200, 1)  # 200 independent estimates of each row
        bounds = evaluation.importance_weighted_bound(of_x, repeated, num_samples=5)
        densities = evaluation.novelty(fit, repeated, num_samples=5, reference=x).log_density
        difference = (densities - bounds).reshape(200, N)
        assert (difference.mean(0).abs() < 4.5 * difference.std(0) / 200**0.5).all()


def test_the_rows_that_were_trained_on_are_the_reference_4096_at_the_most(mixture):
    many = as_it_is(mixture.story, torch.randn(5000, D))
    reference = evaluation.novelty(many, torch.zeros(1, D), num_samples=1).reference
    assert len(reference) == 4096
    known = log_density_of(many, many.data[0]).sort().values
    nearest = known[torch.searchsorted(known, reference - 1e-9)]
    assert_close(nearest, reference)
    assert len(evaluation.novelty(mixture, torch.zeros(1, D), num_samples=1).reference) == N


def test_the_seed_decides_the_draws_and_the_reference_leaves_densities_as_they_are(scatter, x):
    fit = as_it_is(scatter(models.VAE(D, 2, hidden=(5,))), x)
    first = evaluation.novelty(fit, x, num_samples=3, seed=1)
    same = evaluation.novelty(fit, x, num_samples=3, seed=1, reference=x[:4])
    other = evaluation.novelty(fit, x, num_samples=3, seed=2)
    assert torch.equal(first.log_density, same.log_density)
    assert not torch.equal(first.log_density, other.log_density)
    assert len(same.reference) == 4


# What it is worth


def alarms_are_as_stated(novelty):
    """Whether the number of alarms is one that exchangeable rows have but once in ten thousand.

    That it is beta-binomial holds for any continuous score (Bates et al. 2023).
    """
    size = len(novelty.reference)
    lowest = int(LEVEL * (size + 1))
    expected = betabinom(len(novelty), lowest, size + 1 - lowest)
    alarms = int((novelty.p_value <= LEVEL).sum())
    return expected.ppf(5e-5) <= alarms <= expected.ppf(1 - 5e-5)


def clusters(num_rows, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(3, (num_rows,), generator=generator)
    locs = 3.0 * torch.randn(3, dim, generator=torch.Generator().manual_seed(0))
    return locs[chosen] + torch.randn(num_rows, dim, generator=generator)


@pytest.fixture
def overfitted():
    """A mixture with 199 parameters, fitted to 100 rows."""
    story = models.GMM(10, 3)
    x = clusters(100, 10, 1)
    return pyro_moe.fit(
        story.model, story.guide, x, loss="em", epochs=30, prior="none", progress=False
    )


@pytest.mark.parametrize("seed", range(3))
def test_with_held_out_rows_the_false_alarm_rate_is_as_stated(overfitted, seed):
    """However bad the story is."""
    new, held_out = clusters(4000, 10, 10 + seed), clusters(999, 10, 20 + seed)
    novelty = evaluation.novelty(overfitted, new, reference=held_out, num_samples=1)
    assert alarms_are_as_stated(novelty)


def test_with_rows_that_were_overfitted_it_is_not(overfitted):
    novelty = evaluation.novelty(overfitted, clusters(4000, 10, 10), num_samples=1)
    assert not alarms_are_as_stated(novelty)
    assert (novelty.p_value <= LEVEL).double().mean() > 0.2


def test_a_loose_bound_keeps_the_false_alarm_rate(scatter):
    story = scatter(models.DMVAE(2, 2, 3, hidden=(5,)))
    fit = as_it_is(story, clusters(50, 2, 1))
    novelty = evaluation.novelty(
        fit, clusters(4000, 2, 2), reference=clusters(999, 2, 3), num_samples=1
    )
    assert alarms_are_as_stated(novelty)


def test_rows_that_are_drawn_otherwise_raise_alarms():
    story = models.GMM(2, 3)
    x = clusters(2000, 2, 1)
    fit = pyro_moe.fit(
        story.model, story.guide, x, loss="em", epochs=30, prior="none", progress=False
    )
    novelty = evaluation.novelty(fit, clusters(2000, 2, 2) + 3.0, num_samples=1)
    assert not alarms_are_as_stated(novelty)
    assert (novelty.p_value <= LEVEL).double().mean() > 0.5


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's, where a float is too small
@pytest.mark.parametrize("distance", [1e2, 1e8, 1.7e308])
@pytest.mark.parametrize("kind", ["gmm", "dmvae"])
def test_far_rows_have_the_least_p_value_there_is(scatter, x, kind, distance):
    story = models.GMM(D, K) if kind == "gmm" else models.DMVAE(D, 2, K, hidden=(5,))
    fit = as_it_is(scatter(story), x)
    novelty = evaluation.novelty(fit, distance * torch.ones(2, D), num_samples=4)
    assert not novelty.log_density.isnan().any()
    assert_close(novelty.p_value, torch.full((2,), 1.0 / (N + 1.0)))


# What cannot be asked


@pytest.mark.parametrize("story", [models.ME, models.DeepMoE])
def test_a_gate_without_a_story_of_x_has_no_density(x, story):
    fit = as_it_is(story(D, 1, K), x, torch.randn(N))
    with pytest.raises(SiteError, match=r"site 'x' in the model; got sites \['c', 'y'\]"):
        evaluation.novelty(fit, x)


def test_reference_rows_are_of_the_kind_that_was_fitted(mixture, x):
    with pytest.raises(DataError, match="expected x with 3 columns, as fitted; got 2"):
        evaluation.novelty(mixture, x, reference=x[:, :2])
