"""Several mixtures of experts of one kind, which are evaluated and updated together."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..m_steps.newton import MAX_SIZE
from .experts import (
    BernoulliExperts,
    BinomialExperts,
    CategoricalExperts,
    JointExperts,
    LocationScale,
    NormalExperts,
    PoissonExperts,
    StudentTExperts,
)
from .gates import SoftmaxGate
from .networks import AffineMaps
from .targets import log_likelihoods

BY_COMPONENT = (
    NormalExperts,
    CategoricalExperts,
    BernoulliExperts,
    BinomialExperts,
    PoissonExperts,
    StudentTExperts,
)


class SideBySide(nn.Module):
    r"""S mixtures of K experts, whose parameters are parts of the same tensors.

    On a table of few rows most of the time of EM is spent on calling operations. One call then
    serves all mixtures. The given mixtures stay as they are until `put`.

    Args:
        mixtures: Stories with a gate and experts for which `stands_alone` is true, and with the
            same units.
    """

    def __init__(self, mixtures: Sequence[Any]) -> None:
        super().__init__()
        self.number = len(mixtures)
        self.gate: Any = _joined([each.gate for each in mixtures])
        self.experts: Any = _joined([each.experts for each in mixtures])

    def log_joint(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Log p(y, c=k|x) of each row in each mixture, shape (N, S, K)."""
        log_gate = self.gate.maps(x).log_softmax(-1)
        if y is None:
            return log_gate
        return log_gate + log_likelihoods(self.experts(x), y).view_as(log_gate)

    def m_step(
        self, responsibilities: torch.Tensor, points: torch.Tensor, *data: torch.Tensor
    ) -> None:
        """Update all gates and experts by their M-steps.

        Args:
            responsibilities: r, shape (N, S, K).
            points: Not used.
            *data: x, shape (N, D), or x and y.
        """
        x, *targets = data
        self.gate.maximize(x, responsibilities)
        for y in targets:
            self.experts.maximize(x, y, responsibilities.flatten(1))

    def penalties(self) -> torch.Tensor:
        """The penalty λ |w|² of the gate and the experts of each mixture, shape (S,)."""
        terms = [
            self.gate.ridge * _squares(self.gate.maps) / max(self.gate.maps.weight.shape[-1], 1)
        ]
        for part in _parts(self.experts):
            if not isinstance(part, LocationScale):  # which have none
                terms.append(part.ridge * _squares(part.network))
        return torch.stack([each.reshape(self.number, -1).sum(-1) for each in terms]).sum(0)

    def put(self, number: int, mixture: Any) -> None:
        """Set the parameters of a mixture to those of its number here."""
        for part, joined in ((mixture.gate, self.gate), (mixture.experts, self.experts)):
            pairs = zip(part.parameters(), joined.parameters(), strict=True)
            for value, values in pairs:
                value.data.copy_(values.detach().chunk(self.number)[number])


def stands_alone(gate: nn.Module, experts: nn.Module) -> bool:
    """Whether an M-step updates each gate and each expert as if there were no other."""
    if type(gate) is not SoftmaxGate or not _is_small(gate.maps):
        return False
    return all(_by_component(part) for part in _parts(experts))


def _parts(experts: Any) -> list[Any]:
    return list(experts.parts) if type(experts) is JointExperts else [experts]


def _by_component(experts: Any) -> bool:
    if type(experts) not in BY_COMPONENT or not _is_small(experts.network):
        return False
    return len(getattr(experts, "log_scale", experts.network.weight)) == len(experts.network.weight)


def _is_small(maps: Any) -> bool:
    return type(maps) is AffineMaps and maps.intercept and maps.weight[0].numel() <= MAX_SIZE // 2


def _squares(maps: Any) -> torch.Tensor:
    return maps.weight.detach().square().flatten(1).sum(-1)


def _joined(parts: Sequence[nn.Module]) -> nn.Module:
    """A module with the parameters of all parts, one after the other."""
    joined = copy.deepcopy(parts[0])
    for name, value in joined.named_parameters():
        value.data = torch.cat([part.get_parameter(name).detach() for part in parts])
    return joined
