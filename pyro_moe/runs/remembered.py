"""What a run folder says of the training rows: the file ``training.safetensors``."""

import re
from dataclasses import replace

import torch
from safetensors.torch import load, save

from pyro_moe import files
from pyro_moe.evaluation.novelty import training_log_densities
from pyro_moe.fitted import Fit, Training
from pyro_moe.fitted.training import fingerprint


def remember(fit: Fit, before: bytes | None = None) -> bytes:
    """A summary of a fit's training rows, as the content of a file.

    Args:
        fit: The fit.
        before: The summary in a run of the same parameters. It is kept if it is one of the same
            rows, since log-densities of deep stories take time.
    """
    training = fit.restored
    if training is None or training.sampled:
        columns = (*fit.data, *fit.annotations.columns)
        found = fingerprint(columns) if training is None else training.fingerprint
        if before is not None and remembered(before).fingerprint == found:
            return before
        weights = fit.annotations.weights
        training = replace(
            fit.training,
            fingerprint=found,
            log_densities=_log_densities(fit),
            total=None if weights is None else float(weights.double().sum()),
        )
    tensors = {"mean": training.mean, "log_densities": training.log_densities}
    for end in ("low", "high"):
        tensors |= {f"{end}.{i}": value for i, value in enumerate(getattr(training, end))}
    kept = {
        name: value.detach().cpu().clone() for name, value in tensors.items() if value is not None
    }
    rows = f"{training.num_rows} {training.fingerprint}"
    rows += "" if training.total is None else f" {training.total}"
    return save(kept, metadata={"rows": rows})  # one entry, as several are in no order


def _log_densities(fit: Fit) -> torch.Tensor | None:
    try:
        return training_log_densities(fit)
    except Exception:  # x is no site, or a story that needs y: it is saved all the same
        return None


def remembered(content: bytes) -> Training:
    """The summary of a run's training rows.

    Raises:
        ValueError: If it is not what `remember` writes.
        SafetensorError: If it is not in this format.
    """
    tensors = load(content)
    count = sum(name.startswith("low.") for name in tensors)
    names = {f"{end}.{i}" for end in ("low", "high") for i in range(count)} | {"mean"}
    if count == 0 or tensors.keys() - {"log_densities"} != names:
        raise ValueError(f"expected the ends and the mean of the rows; got {sorted(tensors)}")
    low, high = (tuple(tensors[f"{end}.{i}"] for i in range(count)) for end in ("low", "high"))
    mean, densities = tensors["mean"], tensors.get("log_densities")
    _check(low, high, mean, densities)
    rows = re.fullmatch(
        r"([1-9][0-9]{0,17}) ([0-9a-f]{64})(?: ([0-9][0-9.e+-]{0,30}))?",
        files.metadata(content).get("rows", ""),
    )
    if rows is None:
        raise ValueError("expected the number and the fingerprint of the rows; got others")
    total = None if rows[3] is None else float(rows[3])
    return Training(int(rows[1]), low, high, mean, rows[2], densities, total=total)


def _check(
    low: tuple[torch.Tensor, ...],
    high: tuple[torch.Tensor, ...],
    mean: torch.Tensor,
    densities: torch.Tensor | None,
) -> None:
    if mean.dim() != 1 or mean.shape != low[0].shape or not mean.isfinite().all():
        raise ValueError(f"expected the mean of each column of x; got shape {tuple(mean.shape)}")
    for one, other in zip(low, high, strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype) or bool((one != one).any()):
            raise ValueError("expected ends of the same columns; got others")
        if one is low[0] and not bool((one <= other).all()):
            raise ValueError("expected ends in order; got a high end below the low one")
    if densities is not None and (densities.dim() != 1 or bool(densities.isnan().any())):
        raise ValueError("expected log-densities without NaN; got others")
