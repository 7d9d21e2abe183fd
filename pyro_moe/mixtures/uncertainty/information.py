"""The observed information of a mixture, in the units of the data, and the end of a fit by it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_moe.fitting import information
from pyro_moe.inference.context import learning
from pyro_moe.inference.em import EM

STEPS = 20
CLOSE = 1e-16

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
    """

    observed: torch.Tensor
    gradient: torch.Tensor
    lift: torch.Tensor
    fixed: torch.Tensor

    def undetermined(self, tolerance: float = 1e-9) -> torch.Tensor:
        """Which parameters are fixed, or in a direction without a maximum, shape (P,)."""
        diagonal = self.observed.diagonal()
        flags = self.fixed | (diagonal <= 0)
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
    none = torch.zeros(len(observed), dtype=torch.bool, device=observed.device)
    return Information(
        0.5 * (observed + observed.mT),
        lift.mT @ gradient,
        lift,
        none if fixed is None else fixed.to(none),
    )


def scores(run: EM, parameters: Parameters, lift: torch.Tensor) -> torch.Tensor:
    """The derivatives of each row's log-likelihood in θ, shape (N, P)."""
    learned = list(run.parameters().values())
    with learning():
        rows = run.log_likelihoods()
        each = torch.stack([derivative(row, learned) for row in rows])
    return each @ lift


def polish(run: EM, parameters: Parameters, fixed: torch.Tensor | None = None) -> float:
    r"""Go from the end of EM to the maximum by Newton's method.

    EM comes near a maximum and then converges linearly. Steps that do not increase the objective
    are halved.

    Args:
        run: A run, whose parameters are changed in place.
        parameters: θ as a function of the parameters of the run.
        fixed: Which of them are at a limit, where they stay.

    Returns:
        The increase of the objective that is still expected, in nats.
    """
    learned = list(run.parameters().values())
    expected = torch.inf
    for _ in range(STEPS):
        found = informed(run, parameters, fixed)
        covariance = found.covariance()
        step = covariance.nan_to_num(0.0) @ found.gradient
        expected = 0.5 * float(found.gradient @ step)
        rises = bool((covariance.diagonal().nan_to_num(1.0) > 0).all()) and expected >= 0
        if not rises or expected < CLOSE:
            return abs(expected)
        if not move(run, learned, found.lift @ step):
            return expected
    return expected


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
