"""The observed information of a mixture, in the units of the data, and the end of a fit by it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_moe.fitting import information
from pyro_moe.inference.context import learning
from pyro_moe.inference.em import EM

STEPS = 30
CLOSE = 1e-16
FLAT, CONVEX = 1e-12, -1e-7  # curvatures of a direction, as shares of those of its parameters
LEAST = 1e-4  # curvature in standard units, of a standard error of 100 of them

Parameters = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Information:
    r"""Derivatives of the objective ℓ at a point, in named parameters θ.

    .. math:: A = -\frac{\partial^2 \ell}{\partial \theta \, \partial \theta^\top}

    Attributes:
        observed: A, shape (P, P).
        gradient: Shape (P,).
        lift: The change of the story's parameters with θ, shape (Q, P). There are more of them
            than of θ, because a constant may be added to all logits of a softmax.
        fixed: Which θ are at a limit, or do not change with the story's parameters, shape (P,).
    """

    observed: torch.Tensor
    gradient: torch.Tensor
    lift: torch.Tensor
    fixed: torch.Tensor

    @property
    def curvature(self) -> torch.Tensor:
        """The curvature along each parameter in standard units, shape (P,)."""
        return self.observed.diagonal() / self.lift.norm(dim=0).square()

    def ascent(self) -> tuple[torch.Tensor, float, bool]:
        r"""A step that increases the objective, also away from a saddle, shape (P,).

        .. math:: \Delta = \sum_j \frac{v_j v_j^\top g}{|\lambda_j|}

        with the eigenvalues and eigenvectors of A. It is Newton's where all eigenvalues are
        positive (Dauphin et al. 2014). Along the others it is as long as a standard error at
        least, because the gradient of a saddle is zero.

        Returns:
            The step, the increase in nats that its part by Newton promises, and whether there is
            another part.
        """
        chosen, step = (~self.fixed).nonzero().flatten(), torch.zeros_like(self.gradient)
        part, gradient = self.observed[chosen][:, chosen], self.gradient[chosen]
        if not len(chosen):
            return step, 0.0, False
        if not part.isfinite().all() or not gradient.isfinite().all():
            return step, torch.inf, False
        units = self.lift[:, chosen].norm(dim=0)  # θ of no curvature has that of others at least
        curvature = self.curvature[chosen].abs()
        scale = curvature.clamp_min(1e-8 * curvature.max()).clamp_min(1e-200).sqrt() * units
        values, vectors = torch.linalg.eigh(part / scale / scale.unsqueeze(-1))
        slopes, convex = vectors.mT @ (gradient / scale), values < CONVEX
        lengths = torch.where(values.abs() > FLAT, slopes / values.abs(), 0.0)
        promised = 0.5 * float(slopes @ torch.where(convex, 0.0, lengths))
        leap = torch.where(slopes < 0, -1.0, 1.0) * lengths.abs().clamp_min(1.0)
        lengths = torch.where(convex, leap, lengths)
        step[chosen] = vectors @ lengths / scale
        return step, promised, bool(convex.any())

    def undetermined(self, tolerance: float = FLAT) -> torch.Tensor:
        """Which parameters are fixed, or in a direction without a maximum, shape (P,)."""
        diagonal = self.observed.diagonal()
        flags = self.fixed | (self.curvature < LEAST)
        chosen = (~flags).nonzero().flatten()
        scale = diagonal[chosen].sqrt()
        part = self.observed[chosen][:, chosen] / scale / scale.unsqueeze(-1)
        values, vectors = torch.linalg.eigh(part)
        flat = values < tolerance
        flags[chosen] |= vectors[:, flat].square().sum(-1) > 0.05
        return flags

    def covariance(self) -> torch.Tensor:
        """The inverse of A on the parameters that are determined, NaN for the others."""
        chosen = (~self.undetermined()).nonzero().flatten()
        found = torch.full_like(self.observed, torch.nan)
        if len(chosen):
            part = self.observed[chosen][:, chosen]
            scale = part.diagonal().sqrt()
            inverse = torch.linalg.inv(part / scale / scale.unsqueeze(-1))
            inverse = 0.5 * (inverse + inverse.mT) / scale / scale.unsqueeze(-1)
            found[chosen.unsqueeze(-1), chosen] = inverse
        return found


def informed(run: EM, parameters: Parameters, fixed: torch.Tensor | None = None) -> Information:
    """The information at the present parameters of a run, with its prior.

    Args:
        run: A run of EM, whose parameters need not be at the maximum.
        parameters: θ as a function of the parameters of the run.
        fixed: Which of them are at a limit; none if None.
    """
    learned = list(run.parameters().values())
    with learning():
        gradient = flat(torch.autograd.grad(run.log_posterior(), learned))
        jacobian = torch.stack([derivative(each, learned) for each in parameters()])
    scale = jacobian.norm(dim=1).clamp_min(1e-300)
    lift = torch.linalg.pinv(jacobian / scale.unsqueeze(-1), rtol=1e-12) / scale
    observed = lift.mT @ information(run).double() @ lift
    still = ~jacobian.any(dim=1)  # as degrees of freedom beyond their limits
    return Information(
        0.5 * (observed + observed.mT),
        lift.mT @ gradient,
        lift,
        still if fixed is None else still | fixed.to(still),
    )


def polish(run: EM, parameters: Parameters, fixed: torch.Tensor | None = None) -> float:
    r"""Go from the end of EM to the maximum by Newton's method.

    EM comes near a maximum and then converges linearly, or is stopped near a saddle. Steps that do
    not increase the objective are halved.

    Args:
        run: A run, whose parameters are changed in place.
        parameters: θ as a function of the parameters of the run.
        fixed: Which of them are at a limit, where they stay.

    Returns:
        The increase of the objective that is still expected, in nats; infinite at a saddle.
    """
    learned = list(run.parameters().values())
    expected, saddle = torch.inf, False
    for _ in range(STEPS):
        found = informed(run, parameters, fixed)
        step, expected, saddle = found.ascent()
        if expected < CLOSE and not saddle:
            break
        if not move(run, learned, found.lift @ step):
            saddle = False  # but for rounding errors
            break
    return torch.inf if saddle else expected


def move(run: EM, learned: list[torch.Tensor], step: torch.Tensor) -> bool:
    """Add a step to the parameters, halved until the objective increases; False if it does not."""
    before = [value.detach().clone() for value in learned]
    pieces = step.split([value.numel() for value in learned])
    with torch.no_grad():
        start = run.log_posterior()
        for halvings in range(12):
            for value, old, piece in zip(learned, before, pieces, strict=True):
                value.copy_(old + 0.5**halvings * piece.reshape(old.shape))
            if run.log_posterior() >= start:
                return True
        for value, old in zip(learned, before, strict=True):
            value.copy_(old)
    return False


def derivative(value: torch.Tensor, learned: list[torch.Tensor]) -> torch.Tensor:
    """The gradient of a scalar in all parameters, shape (Q,)."""
    return flat(
        torch.autograd.grad(
            value, learned, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def flat(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Tensors as one vector in double precision."""
    return torch.cat([part.detach().double().flatten() for part in parts])
