"""The verdict on a fit: what is wrong with it and why, in words, or that nothing was found."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_moe.criticism.effects import moments
from pyro_moe.criticism.predictive_check import Check
from pyro_moe.fitted import weighted_mean
from pyro_moe.validation import on_floor

from .page import bullets, paragraph, section
from .subject import Subject, counted

ALIKE = 0.05  # standard deviations between experts that say the same


def verdict(subject: Subject) -> str:
    """What is wrong with the fit, or that nothing was found."""
    found = list(reasons(subject))
    note = "These rows were used for fitting. Checks on them are optimistic; use held-out rows"
    seen = [paragraph(note, soft=True)] if subject.seen else []
    if not found:
        return section("No warnings", paragraph("No check raised a warning"), *seen, kind="well")
    return section("Warnings", bullets(found), *seen, kind="warnings")


def reasons(subject: Subject) -> Iterator[str]:
    """Problems of the fit, one sentence or more each."""
    fit = subject.fit
    size = f"{subject.num_parameters:,} parameters on {fit.total:,.10g} rows"
    if fit.stopped:
        yield f"training stopped early: {fit.stopped}"
    if getattr(fit, "converged", True) is False and not fit.stopped:
        yield (
            "the likelihood is not at a maximum: a step of Newton's method promises "
            f"{fit.remaining:.2g} nats more"  # type: ignore[attr-defined]
        )
    floor = on_floor(fit)
    if floor:
        yield (
            f"the σ of {experts_of(floor)} at "  # noqa: RUF001
            f"{'their' if len(floor) > 1 else 'its'} floor: {size}. "
            "Such an expert passes through its rows, and the log-likelihood says little"
        )
    elif (
        subject.log_likelihood is not None  # networks have priors of their own
        and subject.num_parameters >= fit.total
        and not subject.strong_prior
    ):
        yield f"there are at least as many parameters as rows: {size}"
    yield from _of_components(subject, floor)
    yield from _of_coefficients(subject, floor)
    if subject.line is not None:
        weights, y = subject.judged.annotations.get("weights"), torch.as_tensor(subject.judged.y)
        ours = weighted_mean(subject.prediction.log_prob(y), weights).item()
        theirs = weighted_mean(subject.line.log_density, weights).item()
        if theirs > ours + 5e-4:
            yield (
                f"one linear model predicts {subject.where} better: log-likelihood "
                f"{theirs:.4g} nats per row, here {ours:.4g}"
            )
    if subject.checked is not None and not subject.checked.surprises().empty:
        yield discrepancy(subject.checked)


def _of_components(subject: Subject, floor: Sequence[int]) -> Iterator[str]:
    if alike(subject):
        why = "its prior makes them one: cross-validation found several no better"
        yield (
            f"all {subject.num_components} components say the same"
            + (f". {why[0].upper()}{why[1:]}" if subject.strong_prior else "")
        )
        return
    yield from [] if subject.health is None else subject.health.warnings()
    if subject.posterior is None or subject.coefficients is None or subject.strong_prior:
        return
    q, needed = torch.as_tensor(subject.posterior), coefficients_of_expert(subject)
    sizes = weighted_mean(q, subject.weights) * counted(subject.training)
    for k, rows in enumerate(sizes.tolist()):
        if 0.5 <= rows < needed and k not in floor:
            yield f"component {k} has {rows:.1f} rows for the {needed} parameters of its expert"


def _of_coefficients(subject: Subject, floor: Sequence[int]) -> Iterator[str]:
    table = subject.coefficients
    if table is None or table["standard_error"].isna().all():
        return
    lost = table.index[table["standard_error"].isna()]
    lost = [key for key in lost if not (key[2] == "sigma" and key[0] in floor)]
    if lost:
        shown = ", ".join(f"{term} of {equation} {k}" for k, equation, term in lost[:4])
        more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
        yield f"the rows do not determine {shown}{more}: the information is singular there"


def alike(subject: Subject) -> bool:
    """Whether all experts predict the same of the training rows."""
    if not subject.has_target or subject.num_components < 2 or subject.fit.story is None:
        return False
    rows = subject.training.with_targets().subsample(400, subject.seed)
    known = range(subject.num_components)
    each = [moments(subject.fit, rows.x, k, subject.seed) for k in known]
    means, deviations = (np.stack(part) for part in zip(*each, strict=True))
    gap = np.abs(means - means[:1]).max(axis=(0, 1))
    same_width = deviations.max() < (1 + 2 * ALIKE) * deviations.min() + 1e-12
    return bool((gap <= ALIKE * deviations.mean(axis=(0, 1))).all() and same_width)


def coefficients_of_expert(subject: Subject) -> int:
    """The largest number of parameters of an expert."""
    index: Any = pd.DataFrame(subject.coefficients).index
    own = [key for key in index if key[1] != "gate" and key[0] != "all"]
    return max((sum(key[0] == k for key in own) for k in range(subject.num_components)), default=0)


def experts_of(components: Sequence[int]) -> str:
    """Experts by number in a sentence.

    Example:
        >>> experts_of([1]), experts_of([0, 2]), experts_of([0, 1, 2])
        ('expert 1', 'experts 0 and 2', 'experts 0, 1 and 2')
    """
    first, last = ", ".join(map(str, components[:-1])), str(components[-1])
    return f"experts {first} and {last}" if first else f"expert {last}"


def discrepancy(checked: Check) -> str:
    """The most surprising statistic of a check."""
    first = checked.allowed.loc[checked.surprises().index[0]]
    named = first["column"] not in ("", first["site"])
    of = first["site"] + (f" ({first['column']})" if named else "")
    where = "" if pd.isna(first["component"]) else f" in component {first['component']}"
    return (
        f"Data simulated from the model differ from these rows: {checked}. "
        f"Largest discrepancy: {first['statistic']} of {of}{where}. "
        f"Observed: {first['observed']:.4g}. Simulated: {first['replicated']:.4g} "
        f"± {first['standard_deviation']:.2g}"
    )
