import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_moe.distributions import condition
from pyro_moe.distributions.mixture import Mixture

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 16, 4, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture
def rows():
    """N rows and which of their entries are known: every pattern of the four columns."""
    patterns = torch.arange(N).unsqueeze(-1) // 2 ** torch.arange(D) % 2 == 1
    return torch.randn(N, D), patterns


@pytest.fixture
def normals():
    """K normals for each row, which differ."""
    factors = torch.randn(K, 1, D, D)
    covariance = factors @ factors.mT + 0.1 * torch.eye(D)
    return dist.MultivariateNormal(torch.randn(K, N, D), covariance)


def by_blocks(loc, covariance, row, known):
    """Log-density, mean and covariance as in Bishop (2006), eqs. 2.81 and 2.82."""
    mean, rest = loc.clone(), torch.zeros_like(covariance)
    hidden = ~known
    gain = covariance[hidden][:, known] @ covariance[known][:, known].inverse()
    mean[known] = row[known]
    mean[hidden] += gain @ (row - loc)[known]
    block = covariance[hidden][:, hidden] - gain @ covariance[known][:, hidden]
    rest[hidden.nonzero(), hidden.nonzero().T] = block
    marginal = torch.distributions.MultivariateNormal(loc[known], covariance[known][:, known])
    log_prob = marginal.log_prob(row[known]) if known.any() else torch.tensor(0.0)
    return log_prob, mean, rest


def test_a_normal_given_some_of_its_columns(rows, normals):
    x, known = rows
    given = condition(normals, x, known)
    for k in range(K):
        for n in range(N):
            covariance = normals.covariance_matrix[k, n]
            log_prob, mean, rest = by_blocks(normals.mean[k, n], covariance, x[n], known[n])
            assert_close(given.log_prob[k, n], log_prob, **CLOSE)
            assert_close(given.mean[k, n], mean, **CLOSE)
            assert_close(given.variance[k, n], rest.diagonal(), **CLOSE)


def test_draws_of_a_normal_become_draws_of_the_conditional(rows, normals):
    """They are moved by a linear map, whose image of the covariance is the conditional one."""
    x, known = rows
    complete = condition(normals, x, known).complete
    offset = complete(torch.zeros(K, N, D))
    steps = torch.eye(D)[:, None, None].expand(D, K, N, D)
    linear = (complete(steps) - offset).movedim(0, -1)
    assert_close(condition(normals, x, known).mean, complete(normals.mean), **CLOSE)
    for k in range(K):
        for n in range(N):
            covariance = normals.covariance_matrix[k, n]
            _, _, rest = by_blocks(normals.mean[k, n], covariance, x[n], known[n])
            assert_close(linear[k, n] @ covariance @ linear[k, n].T, rest, **CLOSE)


def test_independent_columns_know_nothing_of_each_other(rows):
    x, known = rows
    p = dist.StudentT(5.0, torch.randn(K, N, D), torch.rand(D) + 0.5)
    given = condition(p.to_event(1), x, known)
    assert_close(given.log_prob, (known * p.log_prob(x)).sum(-1), **CLOSE)
    assert_close(given.mean, torch.where(known, x, p.mean), **CLOSE)
    assert_close(given.variance, torch.where(known, 0.0, p.variance), **CLOSE)
    draws = p.sample((5,))
    assert torch.equal(given.complete(draws), torch.where(known, x, draws))


def test_a_diagonal_covariance_is_independence(rows):
    x, known = rows
    loc, scale = torch.randn(N, D), torch.rand(D) + 0.5
    one = condition(dist.Normal(loc, scale).to_event(1), x, known)
    factor = torch.zeros(D, 1)
    for p in (
        dist.MultivariateNormal(loc, torch.diag(scale**2)),
        dist.LowRankMultivariateNormal(loc, factor, scale**2),
    ):
        other = condition(p, x, known)
        assert_close(other.log_prob, one.log_prob, **CLOSE)
        assert_close(other.mean, one.mean, **CLOSE)
        assert_close(other.variance, one.variance, **CLOSE)


def test_a_nearly_singular_covariance_in_single_precision():
    """Two columns that are almost the same: one tells the other."""
    covariance = torch.tensor([[1.0, 1.0 - 1e-7], [1.0 - 1e-7, 1.0]], dtype=torch.float32)
    p = dist.MultivariateNormal(
        torch.zeros(1, 2, dtype=torch.float32), covariance, validate_args=False
    )
    given = condition(p, torch.tensor([[1.5, 0.0]]).float(), torch.tensor([[True, False]]))
    assert_close(given.mean, torch.tensor([[1.5, 1.5]]).double())
    assert given.variance[0, 1] < 1e-6


def test_other_distributions_are_refused(rows):
    x, known = rows
    mixture = Mixture(torch.zeros(2), dist.Normal(torch.zeros(N, 2, D), 1.0).to_event(1))
    expected = "columns of x that are independent given the latent variables, or normal; got Mix"
    with pytest.raises(ValueError, match=expected):
        condition(mixture, x, known)
