"""What a run folder says of the training rows: the file ``training.safetensors``."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pyro_moe.evaluation.novelty import training_log_densities
from pyro_moe.fitted import Fit, Training
from pyro_moe.fitted.training import fingerprint

FILE = "training.safetensors"


def remember(fit: Fit, folder: Path, *, same_parameters: bool = False) -> None:
    """Write a summary of a fit's training rows.

    Args:
        fit: The fit.
        folder: The run folder.
        same_parameters: Whether the folder already had these parameters. The summary is then kept
            if it is one of the same rows, since log-densities of deep stories take time.
    """
    training = fit.restored
    if training is None:
        rows = fingerprint(fit.data)
        if same_parameters and _is_of(folder, rows):
            return
        training = replace(fit.training, fingerprint=rows, log_densities=_log_densities(fit))
    if training.num_rows is None:  # the fit is restored from a folder that lacks the file
        Path(folder, FILE).unlink(missing_ok=True)
        return
    tensors = {"mean": training.mean, "log_densities": training.log_densities}
    for end in ("low", "high"):
        tensors |= {f"{end}.{i}": value for i, value in enumerate(getattr(training, end))}
    kept = {
        name: value.detach().cpu().clone() for name, value in tensors.items() if value is not None
    }
    facts = {"num_rows": str(training.num_rows), "fingerprint": training.fingerprint}
    save_file(kept, Path(folder, FILE), metadata=facts)


def _is_of(folder: Path, rows: str) -> bool:
    """Whether a folder has a summary of the rows with this fingerprint."""
    try:
        return remembered(folder).fingerprint == rows
    except SafetensorError:  # a damaged file, to be written anew
        return False


def _log_densities(fit: Fit) -> torch.Tensor | None:
    try:
        return training_log_densities(fit)
    except Exception:  # x is no site, or a story that needs y: it is saved all the same
        return None


def remembers(folder: Path) -> bool:
    """Whether a folder has a summary of its training rows."""
    return Path(folder, FILE).exists()


def remembered(folder: Path) -> Training:
    """The summary of a folder's training rows, empty if the folder lacks it."""
    if not remembers(folder):
        return Training()
    tensors = load_file(Path(folder, FILE))
    with safe_open(Path(folder, FILE), framework="pt") as file:
        facts = file.metadata()
    ends = {
        end: tuple(tensors[f"{end}.{i}"] for i in range(sum(n.startswith(end) for n in tensors)))
        for end in ("low", "high")
    }
    return Training(
        int(facts["num_rows"]),
        **ends,
        mean=tensors["mean"],
        fingerprint=facts["fingerprint"],
        log_densities=tensors.get("log_densities"),
    )
