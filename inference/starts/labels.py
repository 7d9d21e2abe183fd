"""Starts that agree with the rows whose component is known."""

import torch

from ..handlers import Annotations
from ..traces import is_labeled


def with_labels(responsibilities: torch.Tensor, annotations: Annotations) -> torch.Tensor:
    """The responsibilities (N, K), as given in rows whose component is known."""
    if annotations.labels is None:
        return responsibilities
    labels = annotations.labels.to(responsibilities)
    return torch.where(is_labeled(labels).unsqueeze(-1), labels, responsibilities)


def matched(responsibilities: torch.Tensor, annotations: Annotations) -> torch.Tensor:
    """A clustering (N, K) with its clusters in the order that agrees best with the known rows."""
    if annotations.labels is None:
        return responsibilities
    from scipy.optimize import linear_sum_assignment

    labels = annotations.labels.to(responsibilities).nan_to_num(0.0)
    _, order = linear_sum_assignment((labels.T @ responsibilities).cpu().numpy(), maximize=True)
    return responsibilities[:, torch.as_tensor(order, device=responsibilities.device)]
