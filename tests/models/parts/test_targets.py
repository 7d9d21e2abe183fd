import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

from pyro_moe.models import choose, observe_target
from pyro_moe.models.parts.targets import known_rows, log_likelihoods

pytestmark = pytest.mark.usefixtures("double")
N, D, K, M = 8, 3, 4, 2


@pytest.fixture
def experts():
    return dist.Normal(torch.randn(N, K, M), 0.5).to_event(1)


@pytest.fixture
def y():
    return torch.randn(N, M)


@pytest.fixture
def holes(y):
    """y with a hole in rows 1 and 4, the latter in one column only."""
    y[1], y[4, 0] = torch.nan, torch.nan
    return y


KNOWN = torch.tensor([n not in (1, 4) for n in range(N)])


def test_a_one_hot_c_chooses_its_expert(experts, y):
    k = torch.arange(N) % K
    chosen, rows = choose(torch.eye(K)[k], experts), torch.arange(N)
    expected = experts.log_prob(y.unsqueeze(1))[rows, k]
    assert_close(chosen.log_prob(y), expected, rtol=0, atol=0)
    assert_close(chosen.mean, experts.mean[rows, k], rtol=0, atol=0)


def test_a_relaxed_c_mixes_its_experts_and_has_a_finite_gradient(experts, y):
    c = torch.rand(N, K).softmax(-1)
    c[0] = torch.tensor([0.5, 0.5, 0.0, 0.0])
    c.requires_grad_()
    mixed = choose(c, experts).log_prob(y)
    expected = (c.detach() * experts.log_prob(y.unsqueeze(1)).exp()).sum(-1).log()
    assert_close(mixed.detach(), expected)
    mixed.sum().backward()
    assert c.grad.isfinite().all()


def test_all_values_of_c_at_once_give_every_expert_of_every_row(experts, y):
    chosen = choose(torch.eye(K).unsqueeze(1), experts)
    assert_close(chosen.log_prob(y), experts.log_prob(y.unsqueeze(1)).T, rtol=0, atol=0)


def test_log_likelihoods_are_each_experts_and_zero_where_y_is_missing(experts, holes):
    got = log_likelihoods(experts, holes)
    expected = experts.log_prob(holes.nan_to_num().unsqueeze(1))
    assert got.shape == (N, K)
    assert_close(got[KNOWN], expected[KNOWN], rtol=0, atol=0)
    assert_close(got[~KNOWN], torch.zeros(2, K), rtol=0, atol=0)


def site(p, y):
    trace = poutine.trace(lambda: observe_target(p, y)).get_trace()
    trace.compute_log_prob()
    return trace.nodes["y"]


def test_a_row_with_a_hole_is_not_observed(holes):
    p = dist.Normal(torch.randn(N, M), 0.5).to_event(1)
    got = site(p, holes)
    assert got["is_observed"]
    assert_close(got["log_prob"], p.log_prob(holes.nan_to_num()).where(KNOWN, torch.tensor(0.0)))


def test_missing_rows_have_no_gradient(holes):
    loc = torch.randn(N, M, requires_grad=True)
    site(dist.Normal(loc, 0.5).to_event(1), holes)["log_prob"].sum().backward()
    assert_close(loc.grad.abs().sum(-1) > 0, KNOWN)


def test_without_targets_they_are_drawn():
    p = dist.Normal(torch.zeros(N, M), 0.5).to_event(1)
    got = site(p, None)
    assert not got["is_observed"]
    assert got["value"].shape == (N, M)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("event", [(), (1,)])
def test_one_column_may_come_as_a_vector_or_as_a_matrix(shape, event):
    experts = dist.Normal(torch.randn(N, K, *event), 0.5).to_event(len(event))
    y = torch.randn(N)
    expected = dist.Normal(experts.mean.reshape(N, K), 0.5).log_prob(y.unsqueeze(-1))
    assert_close(log_likelihoods(experts, y.reshape(shape)), expected, rtol=0, atol=0)


def test_y_of_the_wrong_width_is_an_error(experts):
    with pytest.raises(ValueError, match="expected y with 2 columns; got 3"):
        log_likelihoods(experts, torch.randn(N, 3))
    with pytest.raises(ValueError, match="expected y with 1 columns; got 2"):
        observe_target(dist.Categorical(torch.ones(N, 3)), torch.zeros(N, 2))


@pytest.mark.parametrize("columns", [(), (M,)])
def test_known_rows_are_those_without_a_hole(columns):
    y, x = torch.randn(N, *columns), torch.arange(N)
    y[2] = torch.nan
    known, rows = known_rows(y, x)
    assert rows.tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert_close(known, y[rows])
