import pytest
import torch
from torch.testing import assert_close

from pyro_moe.models import GaussianMixture
from pyro_moe.models.m_steps import blocks as module
from pyro_moe.models.m_steps.blocks import blocks, weighted_products
from pyro_moe.models.m_steps.least_squares import weighted_least_squares

pytestmark = pytest.mark.usefixtures("double")
N, K, P = 40, 3, 2


@pytest.mark.parametrize("width", [1, 5, module.WIDE, module.WIDE + 3])
@pytest.mark.parametrize("each", [False, True])
def test_products_are_the_sums_over_rows(width, each):
    u, v, r = torch.randn(K, width, N), torch.randn(K, P, N), torch.rand(N, K)
    r[::3, 1] = 0.0
    if not each:
        u, v = u[:1].expand(K, -1, -1), v[:1].expand(K, -1, -1)
    expected = torch.einsum("nk,kcn,kpn->kcp", r, u, v)
    got = weighted_products(u if each else u[0], v if each else v[0], r)
    assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_component_of_tiny_weights_counts_all_the_same():
    u, r = torch.randn(module.WIDE, N), torch.rand(N, 1)
    expected = 1e-15 * weighted_products(u, u, r)
    assert_close(weighted_products(u, u, 1e-15 * r), expected, rtol=1e-12, atol=0)


def test_blocks_have_every_row_once_and_in_order():
    x, y = torch.arange(3.0 * module.ROWS + 1), torch.zeros(3 * module.ROWS + 1, 2)
    parts = list(blocks(x, y))
    assert len(parts) == 4
    assert_close(torch.cat([part for part, _ in parts]), x, rtol=0, atol=0)
    assert all(len(one) == len(other) for one, other in parts)


def test_m_steps_do_not_depend_on_the_blocks(monkeypatch):
    x, t, r = 1e4 + torch.randn(N, 2), torch.randn(N, P), torch.rand(N, K)
    whole, parts = GaussianMixture(2, K), GaussianMixture(2, K)
    whole.maximize(x, r)
    coefficients = weighted_least_squares(x, t, r)
    monkeypatch.setattr(module, "ROWS", 7)
    parts.maximize(x, r)
    assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-9, atol=1e-9)
    assert_close(weighted_least_squares(x, t, r), coefficients, rtol=1e-6, atol=1e-6)
