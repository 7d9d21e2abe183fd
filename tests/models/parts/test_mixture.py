import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.special import softmax
from scipy.stats import multivariate_normal
from torch.testing import assert_close

from pyro_moe.models import GaussianMixture

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-9, "atol": 1e-12}
N, L, K = 40, 3, 4
COVARIANCES = ["full", "diagonal", "tied"]
each_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


@pytest.fixture
def make(scatter):
    def mixture(covariance="full", num_components=K, dim=L):
        return scatter(
            GaussianMixture(dim, num_components, covariance=covariance, weights="learned")
        )

    return mixture


def moments(mixture):
    """Weights, means and covariances from the raw parameters, in numpy."""
    raw = {name: value.detach().double().numpy() for name, value in mixture.named_parameters()}
    weights = np.exp(raw["logits"]) / np.exp(raw["logits"]).sum()
    covariances = []
    for k in range(mixture.num_components):
        j = 0 if mixture.covariance == "tied" else k
        factor = np.diag(np.exp(raw["log_scale"][j]))
        if mixture.covariance != "diagonal":
            factor = factor @ (np.eye(mixture.dim) + np.tril(raw["correlation"][j], -1))
        covariances.append(factor @ factor.T)
    return weights, raw["loc"], np.array(covariances)


# Densities


def test_with_more_columns_than_components_each_row_has_its_component_all_the_same(make):
    """Rows share the K factors there, instead of having one each."""
    mixture, z = make(dim=6), torch.randn(N, 6)
    k = torch.arange(N) % K
    chosen = dist.MultivariateNormal(
        torch.eye(K)[k] @ mixture.loc, scale_tril=mixture.cholesky(torch.eye(K)[k])
    )
    one_by_one = torch.stack(
        [
            dist.MultivariateNormal(
                torch.eye(K)[i] @ mixture.loc, scale_tril=mixture.cholesky(torch.eye(K)[i])
            ).log_prob(z[j])
            for j, i in enumerate(k)
        ]
    )
    assert chosen.batch_shape == (N,)
    assert_close(chosen.log_prob(z), one_by_one, **EXACT)
    assert_close(chosen.mean, mixture.loc[k])
    gradients = [
        torch.autograd.grad(log_prob.sum(), list(mixture.parameters()), allow_unused=True)[1:]
        for log_prob in (chosen.log_prob(z), one_by_one)
    ]
    assert_close(*gradients)


def test_a_relaxed_c_that_is_rounded_to_one_hot_has_the_gradient_of_one_that_is_nearly(make):
    mixture, z = make(dim=6), torch.randn(N, 6)
    rounded = torch.eye(K)[torch.arange(N) % K].requires_grad_()
    nearly = rounded.detach().clamp(1e-9, 1.0).requires_grad_()
    gradients = [
        torch.autograd.grad(
            dist.MultivariateNormal(c @ mixture.loc, scale_tril=mixture.cholesky(c))
            .log_prob(z)
            .sum(),
            c,
        )[0]
        for c in (rounded, nearly)
    ]
    assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_draws_of_rows_that_share_factors_are_of_their_component(make):
    mixture, num_draws = make(dim=6), 4000
    k = torch.arange(num_draws) % K
    draws = dist.MultivariateNormal(
        torch.eye(K)[k] @ mixture.loc, scale_tril=mixture.cholesky(torch.eye(K)[k])
    ).sample()
    for i in range(K):
        normal = dist.MultivariateNormal(
            torch.eye(K)[i] @ mixture.loc, scale_tril=mixture.cholesky(torch.eye(K)[i])
        )
        u = torch.linalg.solve_triangular(
            normal.scale_tril.detach(), (draws[k == i] - normal.loc.detach()).T, upper=False
        )
        error = (K / num_draws) ** 0.5
        assert (u.mean(1).abs() < 4.5 * error).all()
        assert ((u @ u.T) * K / num_draws - torch.eye(6)).abs().max() < 5 * 2**0.5 * error


@each_covariance
def test_component_at_one_hot_c_is_the_normal_of_that_component(make, covariance):
    mixture, z = make(covariance), torch.randn(N, L)
    _, locs, covariances = moments(mixture)
    for k in range(K):
        got = dist.MultivariateNormal(
            torch.eye(K)[k] @ mixture.loc, scale_tril=mixture.cholesky(torch.eye(K)[k])
        ).log_prob(z)
        expected = multivariate_normal(locs[k], covariances[k]).logpdf(z.numpy())
        assert_close(got.detach(), torch.as_tensor(expected), **EXACT)


@each_covariance
def test_log_joint_is_log_weight_plus_log_density(make, covariance):
    mixture, z = make(covariance), torch.randn(N, L)
    expected = np.stack(
        [
            np.log(weight) + multivariate_normal(loc, cov).logpdf(z.numpy())
            for weight, loc, cov in zip(*moments(mixture), strict=True)
        ],
        axis=-1,
    )
    assert_close(mixture.log_joint(z).detach(), torch.as_tensor(expected), **EXACT)
    posterior = torch.as_tensor(softmax(expected, axis=-1))
    assert_close(mixture.responsibilities(z).probs.detach(), posterior, **EXACT)


@each_covariance
def test_log_joint_takes_any_batch_of_points(make, covariance):
    mixture, z = make(covariance), torch.randn(2, 5, L)
    assert_close(mixture.log_joint(z).reshape(10, K), mixture.log_joint(z.reshape(10, L)))


@each_covariance
def test_scale_tril_is_a_cholesky_factor_at_any_parameters(make, covariance, scatter):
    factor = scatter(make(covariance), scale=5.0).scale_tril.detach()
    assert factor.shape == (1 if covariance == "tied" else K, L, L)
    assert_close(factor, factor.tril())
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert factor.tril(-1).any() == (covariance != "diagonal")


@each_covariance
def test_inside_the_simplex_means_and_cholesky_factors_are_interpolated(make, covariance):
    mixture, c = make(covariance), torch.rand(N, K).softmax(-1)
    _, locs, covariances = moments(mixture)
    factors = np.linalg.cholesky(covariances)
    factor = np.einsum("nk,kij->nij", c.numpy(), factors)
    loc = c.numpy() @ locs
    z = np.random.default_rng(0).normal(size=(N, L))
    expected = [
        multivariate_normal(m, f @ f.T).logpdf(row)
        for m, f, row in zip(loc, factor, z, strict=True)
    ]
    got = (
        dist.MultivariateNormal(c @ mixture.loc, scale_tril=mixture.cholesky(c))
        .log_prob(torch.as_tensor(z))
        .detach()
    )
    assert_close(got, torch.as_tensor(np.array(expected)), **EXACT)


def test_one_component_is_responsible_for_everything(make):
    assert_close(make(num_components=1).responsibilities(torch.randn(N, L)).probs, torch.ones(N, 1))


def exact_responsibilities(mixture, point):
    """Bayes' rule in 60 digits, from the parameters as they are."""
    with mpmath.workdps(60):
        logits = [mpmath.mpf(v) for v in mixture.logits.double().tolist()]
        terms = []
        for k in range(mixture.num_components):
            j = 0 if mixture.covariance == "tied" else k
            scale = [mpmath.exp(mpmath.mpf(v)) for v in mixture.log_scale[j].double().tolist()]
            shift = [
                mpmath.mpf(a) - mpmath.mpf(b)
                for a, b in zip(
                    point.double().tolist(), mixture.loc[k].double().tolist(), strict=True
                )
            ]
            solved = []  # (I + strictly lower) u = shift / scale, row by row
            for i in range(mixture.dim):
                row = (
                    [0.0] * mixture.dim
                    if mixture.covariance == "diagonal"
                    else mixture.correlation[j, i].double().tolist()
                )
                known = mpmath.fsum(mpmath.mpf(row[m]) * solved[m] for m in range(i))
                solved.append(shift[i] / scale[i] - known)
            quadratic = mpmath.fsum(u * u for u in solved)
            terms.append(logits[k] - quadratic / 2 - mpmath.fsum(mpmath.log(s) for s in scale))
        top = max(terms)
        weights = [mpmath.exp(t - top) for t in terms]
        return [float(w / mpmath.fsum(weights)) for w in weights]


@each_covariance
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1.0, 1e3, 1e6])
def test_responsibilities_of_far_points_are_exact(make, covariance, dtype, distance):
    mixture = make(covariance).to(dtype)
    direction = torch.randn(10, L)
    z = (distance * direction / direction.norm(dim=-1, keepdim=True)).to(dtype)
    got = mixture.responsibilities(z).probs.detach().double()
    expected = torch.tensor([exact_responsibilities(mixture, point) for point in z])
    assert_close(got, expected, rtol=0, atol=1e-6)
    assert_close(got.sum(-1), torch.ones(10), rtol=0, atol=1e-6)


def test_far_points_have_a_finite_log_density_and_gradient(make):
    mixture = make()
    z = (1e6 * torch.randn(N, L)).requires_grad_()
    mixture.responsibilities(z).logits[:, 0].sum().backward()
    assert z.grad.isfinite().all()
    assert mixture.loc.grad.isfinite().all()


# The M-step


def hand_maximized(z, r, covariance):
    """Weighted moments with the documented ridge, in numpy."""
    counts = r.sum(0)
    locs = (r.T @ z) / counts[:, None]
    covs = np.array(
        [np.cov(z.T, aweights=r[:, k], ddof=0).reshape(L, L) for k in range(r.shape[1])]
    )
    if covariance == "tied":
        covs = np.broadcast_to(np.einsum("k,kij->ij", counts / counts.sum(), covs), covs.shape)
    if covariance == "diagonal":
        covs = covs * np.eye(L)
    return counts / counts.sum(), locs, covs


@each_covariance
def test_maximize_takes_the_weighted_moments(make, covariance):
    mixture, z, r = make(covariance), 3.0 * torch.randn(N, L), torch.rand(N, K).softmax(-1)
    mixture.maximize(z, r)
    for got, expected in zip(
        moments(mixture), hand_maximized(z.numpy(), r.numpy(), covariance), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=3e-5)  # but for the ridge


@each_covariance
def test_maximize_finds_the_likeliest_parameters(make, covariance):
    mixture, z, r = make(covariance), torch.randn(N, L), torch.rand(N, K).softmax(-1)
    mixture.maximize(z, r)
    score = (r * mixture.log_joint(z)).sum()
    score.backward()
    for name, p in mixture.named_parameters():
        assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=1e-3, msg=name)


@each_covariance
def test_maximize_with_labels_recovers_each_groups_moments(make, covariance):
    mixture, z = make(covariance, num_components=2), torch.randn(N, L)
    labels = torch.arange(N) % 4 == 0
    z[labels] += 10.0
    mixture.maximize(z, torch.stack([~labels, labels], -1).double())
    weights, locs, _ = moments(mixture)
    np.testing.assert_allclose(weights, [0.75, 0.25], rtol=1e-12)
    np.testing.assert_allclose(locs[0], z[~labels].mean(0), rtol=1e-12)
    np.testing.assert_allclose(locs[1], z[labels].mean(0), rtol=1e-12)


@each_covariance
def test_an_empty_component_takes_the_moments_of_all_points_and_no_weight(make, covariance):
    mixture, z = make(covariance, num_components=3), torch.randn(N, L)
    r = torch.rand(N, 2).softmax(-1)
    mixture.maximize(z, torch.cat([r, torch.zeros(N, 1)], -1))
    weights, locs, covs = moments(mixture)
    expected = hand_maximized(z.numpy(), np.c_[r.numpy(), np.full(N, 1e-300)], covariance)
    np.testing.assert_allclose(locs[2], z.mean(0), atol=1e-12)
    np.testing.assert_allclose(covs, expected[2], rtol=1e-4, atol=1e-5)
    assert weights[2] < 1e-30
    assert mixture.log_joint(z).isfinite().all()


def test_maximize_does_not_depend_on_the_units_of_the_columns(make):
    mixture, other = make(num_components=2), make(num_components=2)
    z, r = torch.randn(N, L), torch.rand(N, 2).softmax(-1)
    units = torch.tensor([1.0, 1e-12, 1e5])
    mixture.maximize(z, r)
    other.maximize(z * units, r)
    assert_close(
        other.responsibilities(z * units).probs,
        mixture.responsibilities(z).probs,
        rtol=1e-5,
        atol=0,
    )


def test_components_that_shrink_onto_one_point_keep_a_positive_covariance(make):
    mixture = make(num_components=2).float()
    z = torch.tensor([[0.0] * L] * 5 + [[1.0] * L] * 5, dtype=torch.float32)
    mixture.maximize(z, torch.eye(2).repeat_interleave(5, 0))
    assert mixture.log_joint(z).isfinite().all()
    assert_close(mixture.responsibilities(z).probs.argmax(-1), torch.arange(10) // 5)


@each_covariance
def test_points_that_are_all_the_same_leave_a_density(make, covariance):
    mixture = make(covariance).float()
    z = torch.ones(N, L, dtype=torch.float32)
    mixture.maximize(z, torch.full((N, K), 1.0 / K))
    assert mixture.log_joint(z).isfinite().all()


def test_maximize_in_single_precision_is_computed_in_double(make):
    mixture, z = make().float(), torch.randn(N, L, dtype=torch.float32) + 1e4
    r = torch.rand(N, K).softmax(-1)
    mixture.maximize(z, r)
    expected = hand_maximized(z.double().numpy(), r.numpy(), "full")[2]
    np.testing.assert_allclose(moments(mixture)[2], expected, rtol=1e-3, atol=1e-4)


def test_uniform_weights_are_neither_learned_nor_maximized():
    mixture = GaussianMixture(L, 2, weights="uniform")
    mixture.maximize(torch.randn(N, L), torch.tensor([0.9, 0.1]).expand(N, 2))
    assert "logits" not in dict(mixture.named_parameters())
    assert_close(mixture.logits.softmax(-1), torch.tensor([0.5, 0.5]))


# Starts


@each_covariance
def test_it_starts_with_equal_weights_and_unit_covariances(covariance):
    mixture = GaussianMixture(L, K, covariance=covariance, weights="learned")
    weights, _, covs = moments(mixture)
    np.testing.assert_allclose(weights, 1 / K)
    np.testing.assert_allclose(covs, np.broadcast_to(np.eye(L), (K, L, L)))


def test_reset_draws_standard_normal_means():
    loc = GaussianMixture(100, 200).loc.detach()
    assert abs(loc.mean()) < 4.5 / 20_000**0.5
    assert abs(loc.var() - 1) < 4.5 * (2 / 20_000) ** 0.5


@each_covariance
def test_spread_over_starts_at_distant_rows_with_the_covariance_of_all(make, covariance):
    mixture = make(covariance)
    x = torch.cat([torch.randn(N, L) + 100.0 * torch.randn(L) for _ in range(K)])
    with torch.no_grad():
        mixture.spread_over(x)
    weights, locs, covs = moments(mixture)
    expected = hand_maximized(x.numpy(), np.full((len(x), K), 1 / K), covariance)[2]
    rows = [int((x - torch.as_tensor(loc)).norm(dim=-1).argmin()) for loc in locs]
    np.testing.assert_allclose(locs, x[rows])
    assert sorted(row // N for row in rows) == list(range(K))  # one in each group
    np.testing.assert_allclose(covs, expected, rtol=1e-3, atol=0.1)
    np.testing.assert_allclose(weights, 1 / K)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_components": 0}, "expected num_components of at least 1; got 0"),
        ({"covariance": "round"}, r"expected covariance in .*'tied'.*; got 'round'"),
        ({"weights": "heavy"}, r"expected weights in .*'learned'.*; got 'heavy'"),
    ],
)
def test_a_choice_that_is_none_is_an_error(choices, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**{"dim": 2, "num_components": 3, **choices})
