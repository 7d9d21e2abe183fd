"""The M-step of affine maps with Student-t residuals: reweighted least squares."""

from dataclasses import dataclass

import torch

from .blocks import Column, Derived, computed, totals
from .least_squares import weighted_least_squares
from .newton import ascend

LARGEST = 10.0  # logarithm of ν, beyond which densities do not differ
NEWTON_STEPS = 2
TOLERANCE = 1e-9  # relative, above the rounding errors of log Γ
LONGEST = 2.0  # step of log ν

Sums = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class StudentTMaps:
    """K affine maps to P targets with Student-t residuals.

    Attributes:
        coefficients: Slopes, and the intercept last, shape (K, P, C + 1).
        scale: σ, shape (K, P).
        log_excess_df: log(ν - ν₀), shape (K, 1).
    """

    coefficients: torch.Tensor
    scale: torch.Tensor
    log_excess_df: torch.Tensor


def student_t_step(
    u: Column,
    targets: Column,
    weights: torch.Tensor,
    start: StudentTMaps,
    *,
    least_df: float,
    least_scale: float,
    intercept: bool = True,
) -> StudentTMaps:
    r"""Increase the likelihood of K affine maps with Student-t residuals of weighted rows.

    .. math:: \sum_n r_n \log \mathrm{t}_\nu(t_n \mid \langle a, u_n \rangle, \sigma), \quad
              w_n = r_n \frac{\nu + 1}{\nu + \delta_n^2}, \quad
              \delta_n = \frac{t_n - \langle a, u_n \rangle}{\sigma}

    The weights w give a by least squares, and σ² as the mean of squared residuals. Newton's method
    then increases the likelihood in log ν. Each part increases it.

    Args:
        u: Inputs, shape (N, C).
        targets: t, shape (N, P).
        weights: r, shape (N, K).
        start: The maps from which the step goes.
        least_df: The lower end of ν, ν₀.
        least_scale: The lower end of σ.
        intercept: Whether there is one.

    Returns:
        Other maps.

    References:
        Kent, Tyler, Vardi (1994), *A curious likelihood identity for the multivariate
        t-distribution*.
    """
    u, targets = computed(u, targets)
    number, size = start.scale.shape

    def residuals(u_b: torch.Tensor, t_b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        loc = u_b.double() @ a[..., :-1].flatten(0, 1).mT + a[..., -1].flatten()
        return t_b.double().unsqueeze(1) - loc.view(-1, number, size)

    df = least_df + start.log_excess_df.exp()

    def reweighted(u_b: torch.Tensor, t_b: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        squares = (residuals(u_b, t_b, start.coefficients) / start.scale).square()
        return (r.double().unsqueeze(-1) * (df + 1.0) / (df + squares)).flatten(1)

    w = Derived(reweighted, u, targets, weights)
    found = weighted_least_squares(u, targets, w, intercept=intercept)  # (K P, C + 1, P)
    own = torch.arange(size, device=found.device).repeat(number)
    a = found[torch.arange(number * size, device=found.device), :, own].view_as(start.coefficients)

    def squares(u_b: torch.Tensor, t_b: torch.Tensor, w_b: torch.Tensor) -> Sums:
        w_b = w_b.view(-1, number, size)
        return (w_b * residuals(u_b, t_b, a).square()).sum(0), w_b.sum(0)

    square, count = totals(squares, u, targets, w)
    scale = (square / count.clamp_min(1e-300)).sqrt().clamp_min(least_scale)

    def derivatives(point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        excess = point.clamp(-LARGEST, LARGEST).exp()

        def terms(u_b: torch.Tensor, t_b: torch.Tensor, r: torch.Tensor) -> Sums:
            delta = (residuals(u_b, t_b, a) / scale).square()
            each = log_density_of_df(least_df + excess, delta)
            return tuple((r.double().unsqueeze(-1) * part).sum((0, -1)) for part in each)

        value, first, second = totals(terms, u, targets, weights)
        at_end = (point[:, 0].abs() >= LARGEST) & (first * point[:, 0] > 0)
        slope = (first * excess[:, 0]).masked_fill(at_end, 0.0)
        bend = (second * excess[:, 0].square() + slope).abs()
        bend = torch.maximum(bend, slope.abs() / LONGEST).clamp_min(1e-12)
        return value, slope.unsqueeze(-1), bend[:, None, None]

    log_excess = ascend(derivatives, start.log_excess_df, steps=NEWTON_STEPS, tolerance=TOLERANCE)
    return StudentTMaps(a, scale, log_excess.clamp(-LARGEST, LARGEST))


def log_density_of_df(df: torch.Tensor, delta: torch.Tensor) -> Sums:
    r"""The log-density of Student's t as a function of ν, and its two derivatives in ν.

    .. math:: \log \Gamma\big(\tfrac{\nu + 1}{2}\big) - \log \Gamma\big(\tfrac{\nu}{2}\big)
              - \tfrac12 \log \nu - \tfrac{\nu + 1}{2} \log(1 + \delta / \nu)

    Args:
        df: ν, of a shape that broadcasts with δ.
        delta: Squared residuals in units of σ², δ.

    Example:
        >>> df = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        >>> value, first, second = log_density_of_df(df, torch.tensor(2.0))
        >>> torch.isclose(torch.autograd.grad(value, df, create_graph=True)[0], first).item()
        True
    """
    half, more = 0.5 * df, 0.5 * (df + 1.0)
    tail, spread = torch.log1p(delta / df), delta / (df * (df + delta))
    value = torch.lgamma(more) - torch.lgamma(half) - 0.5 * df.log() - more * tail
    first = 0.5 * (torch.digamma(more) - torch.digamma(half) - 1.0 / df - tail) + more * spread
    trigamma = torch.polygamma(1, more) - torch.polygamma(1, half)
    bend = spread * (df.square() + 2.0 * df + delta) / (df * (df + delta))
    second = 0.25 * trigamma + 0.5 * (1.0 / df.square() + spread - bend)
    return value, first, second
