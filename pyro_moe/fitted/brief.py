"""A fit in a few lines of text."""

from collections.abc import Sequence
from typing import Any

MOST_NAMES = 6


def brief(fit: Any) -> str:
    """What was fitted, to which rows, and how training ended.

    Args:
        fit: A fit.
    """
    x = _columns("x", fit.columns, fit.x_dim)
    found = [x]
    if fit.has_target:
        found.append(_columns("y", fit.targets, fit.example[1].shape[1:].numel()))
    lines = [f"Fit of {_story(fit)} to {_rows(fit)}: {', '.join(found)}", _training(fit)]
    if fit.stopped is not None:
        lines.append(f"stopped: {fit.stopped}")
    if fit.restored is not None:
        sampled = fit.restored.sampled
        lines.append(f"{'keeps a sample of' if sampled else 'restored without'} its training rows")
    return "\n  ".join(lines)


def weights_in_words(fit: Any) -> str | None:
    """What the training rows count as, or None if each counts as one.

    Args:
        fit: A fit.
    """
    if fit.weight_type == "sampling":
        return f"sampling weights of {fit.num_rows:,} rows, with a mean of one"
    if fit.total == fit.num_rows:
        return None
    return f"replication weights of {fit.num_rows:,} rows, with the sum {fit.total:,.10g}"


def _rows(fit: Any) -> str:
    words = weights_in_words(fit)
    return f"{fit.total:,.10g} rows" + ("" if words is None else f" ({words})")


def _story(fit: Any) -> str:
    if fit.story is None:
        return getattr(fit.programs.model, "__name__", type(fit.programs.model).__name__)
    name, number = type(fit.story).__name__, getattr(fit.story, "num_components", None)
    return name if number is None else f"{name} with num_components={number}"


def _columns(name: str, names: Sequence[str] | None, number: int) -> str:
    if names is None:
        return f"{name} ({number} column{'s' if number > 1 else ''})"
    shown = [repr(each) for each in names[:MOST_NAMES]]
    more = [f"{number - MOST_NAMES:,} more"] if number > MOST_NAMES else []
    return f"{name} ({', '.join(shown + more)})"


def _training(fit: Any) -> str:
    if not fit.history:
        return "not trained"
    seconds = sum(record["seconds"] for record in fit.history)
    last = fit.history[-1]
    epochs = "iterations" if fit.settings.get("loss") == "em" else "epochs"
    parts = [
        f"{fit.settings.get('loss')}, {len(fit.history):,} {epochs} in {seconds:.3g} seconds",
        f"ELBO {last['elbo']:.5g} nats per row",
    ]
    if fit.held_out_elbo is not None:
        parts.append(f"{fit.held_out_elbo:.5g} of held-out rows")
    return "; ".join(parts)
