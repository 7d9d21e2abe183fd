"""Sections on the components: sizes, posteriors, experts, the gate, generated data."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_moe import plots
from pyro_moe.criticism.effects import Effects, effects, expert_table
from pyro_moe.fitted import weighted_mean
from pyro_moe.inference.errors import DataError, SiteError

from .page import columns, facts, paragraph, picture, section, table
from .reasons import alike
from .subject import Subject

LEAST = 1e-4  # of a posterior that counts, as flexmix has it


def components(subject: Subject) -> str:
    """Sizes of the components in the training rows, and how well they are told apart."""
    if subject.posterior is None or subject.health is None:
        return ""
    found = subject.health
    numbers = {
        "effective number of components": found.effective_components,
        "mean entropy of the gate, nats per row": found.entropy,
        "guide against model: mean KL(q(c|x) ‖ p(c|z)), nats per row": found.disagreement,
        "training objective less marginal ELBO, nats per row": found.objective_gap or None,
    }
    known = {name: f"{value:.3f}" for name, value in numbers.items() if value is not None}
    given = "x and y" if subject.has_target else "x"
    of = "these" if subject.fit.restored is not None else "the training"
    groups = subject.fit.restored is None and subject.fit.groups_of() is not None
    note = (
        f"From {of} rows. Prior: mean of the gate. Posterior: sum of p(component | {given})"
        + (", given all rows of the group" if groups else "")
        + ". Assigned: rows of which the component is most probable. Ratio: assigned rows among "
        "those whose posterior is above 0.0001; near one if it is well separated"
    )
    if alike(subject):
        note += ". The components say the same, so that which rows are assigned to which is chance"
    parts = [paragraph(note, soft=True), columns(table(sizes(subject)), facts(known))]
    drawn = []
    if subject.num_components > 1:
        q, rows = subject.posterior_of_rows, subject.fit.repeated(subject.training)
        drawn += [
            picture(plots.rootogram(q), f"Rootogram of the posterior p(component | {given})."),
            picture(
                plots.uncertainty(q),
                "Uncertainty of the classification: one less the largest posterior.",
            ),
        ]
        x = rows.x
        if not subject.has_target and x.shape[1] > 2 and rows.image_shape is None:
            drawn.append(
                picture(
                    plots.classification(x.double().numpy(), q, subject.columns),
                    "Classification in the columns in which components differ most. Larger "
                    "points are less certain.",
                )
            )
    return section("Components", *parts, columns(*drawn))


def sizes(subject: Subject) -> pd.DataFrame:
    """Of each component: the mean gate, the sum of posteriors, rows assigned and possible."""
    q, w = subject.posterior_array, subject.weights
    weights = np.ones(len(q)) if w is None else w.numpy()
    assigned = np.bincount(q.argmax(1), weights, minlength=q.shape[1])
    possible = weights @ (q > LEAST)
    return pd.DataFrame(
        {
            "component": [str(k) for k in range(q.shape[1])],
            "prior": weighted_mean(subject.gate, w).numpy(),
            "posterior": weights @ q,
            "assigned": [f"{number:,.10g}" for number in assigned],
            "posterior > 0.0001": [f"{number:,.10g}" for number in possible],
            "ratio": assigned / np.where(possible > 0, possible, 1.0),
        }
    )


def experts(subject: Subject) -> str:
    """What each expert predicts, and how well."""
    if not subject.has_target:
        return ""
    fit, rows, classes = subject.fit, subject.training, subject.classes
    options: dict[str, Any] = {
        "classes": classes,
        "posterior": subject.posterior,
        "seed": subject.seed,
    }
    each = expert_table(fit, rows, **options).rename(
        columns={"log_density": "log-likelihood per row", "share": "prior"}
    )
    each["component"] = each["component"].astype(str)
    shown = effects(fit, rows, **options)
    return section("Experts", table(each), picture(shown.figure(), _caption(shown)))


def _caption(shown: Effects) -> str:
    what = {
        "classes": "Probability of each class under each expert, and observed classes, at 0 and 1",
        "share": "Probability under each expert, and observed values, at 0 and 1",
    }.get(shown.kind, "Mean of each expert, its band of ± 1.645 standard deviations, and its rows")
    text = f"{what}. Rows have the color of their most probable component."
    if len(shown.chosen) > 1 or shown.left_out:
        text += (
            f" The others are at typical values of the rows of the component, medians and the most "
            f"frequent levels: {shown.held}."
        )
    if shown.adjusted:
        text += " Points are partial residuals" + (
            ", as ratios." if shown.kind == "counts" else "."
        )
    if shown.left_out:
        several, number = len(shown.chosen) > 1, len(shown.left_out)
        columns_shown = f"are the {len(shown.chosen)} variables" if several else "is the variable"
        text += (
            f" Shown {columns_shown} along which the experts vary most; "
            f"{number} {'is' if number == 1 else 'are'} left out: "
            f"{', '.join(shown.left_out[:12])}{', …' if number > 12 else ''}."
        )
    return text


def maps(subject: Subject) -> str:
    """The gate in the plane of x, and latent codes."""
    fit, seed = subject.fit, subject.seed
    rows = fit.repeated(subject.rows)
    gate = (
        partial(plots.gate_map, fit, rows, resolution=120, seed=seed),
        "Most probable component at each point. Paler regions are less certain.",
    )
    codes = (
        partial(plots.latent_map, fit, rows, seed=seed),
        "Latent codes of rows, colored by component.",
    )
    design: Any = getattr(fit, "design", None)
    plane = design is None or (design.gate_terms and not design.variables.derived)
    drawn = _those_that_can_be_drawn((gate, codes) if plane else (codes,))
    return section("Maps", columns(*drawn)) if drawn else ""


def generated(subject: Subject) -> str:
    """Rows drawn from the model, and reconstructions."""
    fit, rows, seed = subject.fit, subject.rows, subject.seed
    drawn = _those_that_can_be_drawn(
        (
            (
                partial(plots.generated, fit, image_shape=rows.image_shape, seed=seed),
                "Rows drawn from each component.",
            ),
            (
                partial(plots.reconstructions, fit, rows, seed=seed),
                "Observed rows and their reconstructions from latent codes.",
            ),
        )
    )
    return section("Generated data", columns(*drawn)) if drawn else ""


def _those_that_can_be_drawn(
    pictures: Iterable[tuple[Callable[[], Figure], str]],
) -> list[str]:
    drawn = []
    for draw, caption in pictures:
        try:
            drawn.append(picture(draw(), caption))
        except (DataError, SiteError):  # rows are not in the plane, or the story has no code
            continue
    return drawn
