"""Least squares: the prior of slopes, and columns that the rows of a component lack."""

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


def test_shrinkage_is_the_posterior_mean_of_a_prior_that_explains_the_variance_of_targets() -> None:
    """Of slopes N(0, v / (κ Σ s²)), with the noise of least squares, for each component."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(40, 6, generator=generator).double() * torch.arange(1.0, 7.0)
    t = u[:, :2] + torch.randn(40, 2, generator=generator)
    r = torch.rand(40, 3, generator=generator).double()
    found = weighted_least_squares(u, t, r, shrinkage=0.5)
    plain = weighted_least_squares(u, t, r)
    ones = torch.cat([u, torch.ones(40, 1)], -1).double()
    for k in range(3):
        w = r[:, k] / r[:, k].sum()
        noise = (w @ (t - ones @ plain[k]).square()).sum()
        v = (w @ (t - w @ t).square()).sum()
        prior = v / (0.5 * (w @ (u - w @ u).square()).sum())
        root = torch.cat(
            [r[:, k].sqrt()[:, None] * ones / noise.sqrt(), torch.eye(7)[:6] / prior**0.5]
        )
        right = torch.cat([r[:, k].sqrt()[:, None] * t / noise.sqrt(), torch.zeros(6, 2)])
        exact = torch.linalg.lstsq(root, right.double()).solution
        torch.testing.assert_close(found[k], exact, rtol=1e-6, atol=1e-6)


def test_shrinkage_vanishes_where_inputs_explain_targets() -> None:
    u, t, r, maps = two_components(5)
    found = weighted_least_squares(u[::2], t[::2], torch.ones(300, 1), shrinkage=1.0)[..., 0]
    torch.testing.assert_close(found[0, :-2], maps[0, :-1], rtol=0, atol=1e-9)
    constant = weighted_least_squares(u, torch.ones_like(t), r, shrinkage=1.0)
    torch.testing.assert_close(constant[:, :-1], torch.zeros_like(constant[:, :-1]))


def test_rows_of_others_do_not_determine_rare_columns_of_a_component() -> None:
    """Two rows in a hundred are wrong, and alone have a value in the last column."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(500, 20, generator=generator).double()
    slopes = torch.randn(20, 1, generator=generator).double()
    t = u @ slopes
    u[:, -1] = 0.0
    u[:10, -1] = 0.1
    t[:10] += 20.0
    plain, shrunk = (
        weighted_least_squares(u, t - u[:, -1:] * slopes[-1], torch.ones(500, 1), shrinkage=kappa)
        for kappa in (0.0, 1.0)
    )
    assert plain[0, -2].abs() > 100
    assert shrunk[0, -2].abs() < 20
