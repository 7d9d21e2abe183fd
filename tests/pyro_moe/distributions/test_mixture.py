import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp
from torch.distributions import Categorical, MixtureSameFamily
from torch.testing import assert_close

from pyro_moe.distributions import choose, in_double, log_of
from pyro_moe.inference.handlers.assignment import one_hot_values
from pyro_moe.models import Mixture, Stacked

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-12, "atol": 1e-12}
N, K, M = 6, 3, 2
FAMILIES = ["normal", "independent", "full", "categorical"]
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def log_weights():
    return torch.randn(N, K)


@pytest.fixture
def make():
    def components(family, *batch):
        batch = batch or (N, K)
        if family == "normal":
            return dist.Normal(torch.randn(batch), torch.rand(batch) + 0.1)
        if family == "categorical":
            return dist.Categorical(logits=torch.randn(*batch, M))
        loc = 2.0 * torch.randn(*batch, M)
        if family == "independent":
            return dist.Normal(loc, torch.rand(*batch, M) + 0.1).to_event(1)
        factor = torch.eye(M) + torch.randn(*batch, M, M).tril(-1)
        return dist.MultivariateNormal(loc, scale_tril=factor)

    return components


# Mixture


@each_family
def test_log_prob_is_the_log_of_the_weighted_sum(make, log_weights, family):
    components = make(family)
    y = components.sample()[:, 0]
    each = np.stack([components.log_prob(y.unsqueeze(1)).numpy()[:, k] for k in range(K)], -1)
    weights = np.exp(log_weights.numpy())
    expected = logsumexp(each, axis=-1, b=weights / weights.sum(-1, keepdims=True))
    assert_close(Mixture(log_weights, components).log_prob(y), torch.as_tensor(expected), **EXACT)


@each_family
def test_without_zeros_it_is_the_mixture_of_torch(make, log_weights, family):
    components = make(family)
    got = Mixture(log_weights, components)
    expected = MixtureSameFamily(Categorical(logits=log_weights), components)
    y = components.sample()[:, 0]
    assert (got.batch_shape, got.event_shape) == (expected.batch_shape, expected.event_shape)
    assert_close(got.log_prob(y), expected.log_prob(y), **EXACT)
    if family != "categorical":
        assert_close(got.mean, expected.mean, **EXACT)
        assert_close(got.variance, expected.variance, **EXACT)


@each_family
def test_one_hot_weights_choose_one_component_exactly_however_far_the_point(make, family):
    components = make(family)
    one_hot = torch.eye(K)[torch.arange(N) % K].log().requires_grad_()
    y = components.sample()[:, 0] * (1 if family == "categorical" else 1e6)
    got = Mixture(one_hot, components).log_prob(y)
    expected = components.log_prob(y.unsqueeze(1))[torch.arange(N), torch.arange(N) % K]
    assert_close(got.detach(), expected, rtol=0, atol=0)
    got.sum().backward()
    assert not one_hot.grad.isnan().any()


@pytest.mark.parametrize("family", ["normal", "independent", "full"])
def test_moments_under_one_hot_weights_are_the_components(make, family):
    components, rows = make(family), torch.arange(N)
    mixture = Mixture(torch.eye(K)[rows % K].log(), components)
    assert_close(mixture.mean, components.mean[rows, rows % K], rtol=0, atol=0)
    assert_close(mixture.variance, components.variance[rows, rows % K], rtol=0, atol=0)
    draws = mixture.sample((2000,))
    error = (components.variance[rows, rows % K] / 2000).sqrt()
    assert ((draws.mean(0) - mixture.mean).abs() < 4.5 * error).all()


def test_mean_and_variance_by_hand():
    weights, locs, scales = torch.tensor([0.2, 0.8]), torch.tensor([-1.0, 4.0]), [0.5, 2.0]
    mixture = Mixture(weights.log(), dist.Normal(locs, torch.tensor(scales)))
    assert mixture.mean.item() == pytest.approx(0.2 * -1 + 0.8 * 4)
    within = 0.2 * 0.25 + 0.8 * 4
    between = 0.2 * 0.8 * (4 + 1) ** 2
    assert mixture.variance.item() == pytest.approx(within + between)


def test_weights_are_normalized(make, log_weights):
    components = make("normal")
    y = torch.randn(N)
    shifted = Mixture(log_weights + 7.0, components)
    assert_close(shifted.log_prob(y), Mixture(log_weights, components).log_prob(y), **EXACT)
    assert_close(shifted.mixture_distribution.probs, log_weights.softmax(-1), **EXACT)


@each_family
def test_one_hot_weights_broadcast_over_shared_components(make, family):
    components = make(family)
    mixture = Mixture(torch.eye(K).unsqueeze(1).log(), components)
    y = components.sample()[:, 0]
    assert mixture.batch_shape == (K, N)
    assert_close(mixture.log_prob(y), components.log_prob(y.unsqueeze(1)).T, rtol=0, atol=0)
    assert mixture.sample((5,)).shape == (5, K, N, *components.event_shape)
    if family != "categorical":
        assert_close(mixture.mean, components.mean.transpose(0, 1), **EXACT)


@pytest.mark.parametrize("family", ["normal", "independent", "full"])
def test_samples_have_the_mean_and_the_variance(make, log_weights, family):
    mixture, num = Mixture(log_weights, make(family)), 20_000
    draws = mixture.sample((num,))
    assert draws.shape == (num, N, *mixture.event_shape)
    centered = draws - mixture.mean
    assert (centered.mean(0).abs() < 4.5 * (mixture.variance / num).sqrt()).all()
    squares = centered.square()
    error = squares.std(0) / math.sqrt(num)
    assert ((squares.mean(0) - mixture.variance).abs() < 4.5 * error).all()


def test_samples_of_classes_have_the_mixed_frequencies(make, log_weights):
    components, num = make("categorical"), 20_000
    expected = (log_weights.softmax(-1).unsqueeze(-1) * components.probs).sum(1)[:, 1]
    frequency = (Mixture(log_weights, components).sample((num,)) == 1).double().mean(0)
    assert ((frequency - expected).abs() < 4.5 * (expected * (1 - expected) / num).sqrt()).all()


@pytest.mark.parametrize("batch", [(K,), (1, K)])
def test_rows_that_share_components_have_samples_of_their_own(make, batch):
    mixture = Mixture(torch.zeros(100, K), make("independent", *batch))
    assert mixture.batch_shape == (100,)
    assert len(mixture.sample().unique(dim=0)) == 100


def test_expand_repeats_the_distribution(make):
    mixture = Mixture(torch.randn(K), make("independent", K))
    larger, y = mixture.expand(torch.Size((4, N))), torch.randn(4, N, M)
    assert larger.batch_shape == (4, N)
    assert_close(larger.log_prob(y), mixture.log_prob(y), **EXACT)
    assert len(larger.sample().flatten(0, 1).unique(dim=0)) == 4 * N


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_points_have_a_finite_log_density_and_gradient(dtype):
    components = dist.Normal(torch.tensor([[-1.0, 1.0]], dtype=dtype), 0.01)
    y = torch.tensor([-1e6, 0.0, 1e6], dtype=dtype, requires_grad=True)
    log_prob = Mixture(torch.zeros(3, 2, dtype=dtype), components).log_prob(y)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert y.grad.isfinite().all()
    assert log_prob[0] < -1e12


def test_a_mixture_of_mixtures_is_flat(make):
    inner, outer = torch.randn(N, K, 2).log_softmax(-1), torch.randn(N, K).log_softmax(-1)
    leaves = make("independent", N, K, 2)
    nested = Mixture(outer, Mixture(inner, leaves))
    flat = Mixture(
        (outer.unsqueeze(-1) + inner).flatten(1),
        dist.Normal(leaves.mean.flatten(1, 2), leaves.variance.sqrt().flatten(1, 2)).to_event(1),
    )
    y = torch.randn(N, M)
    assert_close(nested.log_prob(y), flat.log_prob(y), **EXACT)
    assert_close(nested.mean, flat.mean, **EXACT)
    assert_close(nested.variance, flat.variance, **EXACT)
    assert nested.sample((5,)).shape == (5, N, M)


# Stacked


@pytest.fixture
def both():
    return [dist.Normal(torch.randn(N), 0.5), dist.Laplace(torch.randn(N), 2.0)]


def test_stacked_densities_are_each_ones_at_one_value_or_at_its_own(both):
    stacked, y, values = Stacked(both), torch.randn(N), torch.randn(N, 2)
    assert stacked.batch_shape == (N, 2)
    expected = torch.stack([p.log_prob(y) for p in both], -1)
    assert_close(stacked.log_prob(y.unsqueeze(-1)), expected, rtol=0, atol=0)
    expected = torch.stack([p.log_prob(v) for p, v in zip(both, values.T, strict=True)], -1)
    assert_close(stacked.log_prob(values), expected, rtol=0, atol=0)


def test_stacked_moments_and_samples_are_each_ones(both):
    stacked = Stacked(both)
    assert_close(stacked.mean, torch.stack([p.mean for p in both], -1), rtol=0, atol=0)
    assert_close(stacked.variance, torch.stack([p.variance for p in both], -1), rtol=0, atol=0)
    draws = stacked.sample((10_000,))
    assert draws.shape == (10_000, N, 2)
    assert ((draws.mean(0) - stacked.mean).abs() < 4.5 * (stacked.variance / 1e4).sqrt()).all()


def test_stacked_distributions_of_vectors_keep_their_events_last(make):
    first, second = make("independent", N), make("full", N)
    stacked, y = Stacked([first, second]), torch.randn(N, M)
    assert (stacked.batch_shape, stacked.event_shape) == ((N, 2), (M,))
    expected = torch.stack([first.log_prob(y), second.log_prob(y)], -1)
    assert_close(stacked.log_prob(y.unsqueeze(1)), expected, rtol=0, atol=0)
    assert_close(stacked.mean[:, 1], second.mean, rtol=0, atol=0)
    assert stacked.sample((5,)).shape == (5, N, 2, M)


def test_stacked_expand_repeats_each_one(both):
    stacked, y = Stacked(both), torch.randn(4, N, 2)
    larger = stacked.expand(torch.Size((4, N, 2)))
    assert larger.batch_shape == (4, N, 2)
    assert_close(larger.log_prob(y), stacked.log_prob(y), rtol=0, atol=0)


def test_a_mixture_of_different_families_is_a_density(both):
    grid = torch.linspace(-60.0, 60.0, 60_001).unsqueeze(-1)
    density = Mixture(torch.randn(N, 2), Stacked(both)).log_prob(grid).exp()
    assert_close(torch.trapezoid(density, grid, dim=0), torch.ones(N), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dist.Normal(torch.zeros(5), 1.0), r"got batch and event shapes \(6,\), \(\) and \(5,\)"),
        (dist.Normal(torch.zeros(N, 1), 1.0).to_event(1), r"\(6,\), \(\) and \(6,\), \(1,\)"),
    ],
)
def test_distributions_of_different_shapes_do_not_stack(other, message):
    with pytest.raises(ValueError, match="expected distributions of equal shapes; .*" + message):
        Stacked([dist.Normal(torch.zeros(N), 1.0), other])


@each_family
@pytest.mark.parametrize("batch", [(N, K), (K,)])
def test_all_values_of_c_at_once_select_the_components_as_any_other_c_does(make, family, batch):
    components, values = make(family, *batch), one_hot_values(dist.OneHotCategorical(torch.ones(K)))
    y = make(family).sample()[:, 0]
    general = Mixture(log_of(values), components).expand((K, N))
    for chosen in (choose(values, components), choose(values, components).expand((K, N))):
        assert isinstance(chosen, Mixture)
        assert chosen.is_choice
        assert_close(chosen.log_prob(y), general.log_prob(y), **EXACT)
        assert_close(in_double(chosen).log_prob(y), general.log_prob(y), **EXACT)
        other = choose(values.clone(), components).log_prob(y)
        assert_close(chosen.log_prob(y), other.expand(K, N), **EXACT)
    drawn = general.sample()  # another value for each k
    assert_close(choose(values, components).log_prob(drawn), general.log_prob(drawn), **EXACT)
