"""Least squares of wide tables: rows of another component do not determine a coefficient."""

import torch

from pyro_moe.models.m_steps.least_squares import WIDE, weighted_least_squares


def two_components(width: int) -> tuple[torch.Tensor, ...]:
    """Inputs, targets, responsibilities, coefficients; the last column is zero in component 0."""
    generator = torch.Generator().manual_seed(0)
    component = torch.arange(600) % 2
    u = torch.randn(600, width, generator=generator).double()
    u[:, -1] *= component
    maps = torch.randn(2, width, generator=generator).double()
    t = (u * maps[component]).sum(-1, keepdim=True)
    r = torch.nn.functional.one_hot(component).double().clamp(1e-9, 1 - 1e-9)
    return u, t, r, maps


def test_a_column_that_a_component_does_not_see_has_no_coefficient_in_wide_tables() -> None:
    u, t, r, maps = two_components(WIDE + 1)
    found = weighted_least_squares(u, t, r)[..., 0]
    assert found[0, -2].abs() < 0.1
    torch.testing.assert_close(found[0, :-2], maps[0, :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, :-1], maps[1], rtol=0, atol=1e-5)


def test_narrow_tables_have_their_maximum() -> None:
    u, t, r, _ = two_components(5)
    found = weighted_least_squares(u, t, r)[..., 0]
    both = torch.cat([u, torch.ones(len(u), 1)], -1).double()
    for coefficients, weights in zip(found, r.T, strict=True):
        root = weights.sqrt().unsqueeze(-1)
        exact = torch.linalg.lstsq(root * both, root * t, driver="gelsd").solution[:, 0]
        torch.testing.assert_close(coefficients, exact, rtol=0, atol=1e-6)
