"""Sections on the components: the gate, the experts, and what components generate."""

from collections.abc import Callable, Iterable
from functools import partial

from matplotlib.figure import Figure

from pyro_moe import plots
from pyro_moe.criticism import figures
from pyro_moe.criticism.health import Health
from pyro_moe.fitted import Fit
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.rows import Rows

from .page import facts, picture, section, table


def gate(fit: Fit, rows: Rows, health: Health | None, seed: int) -> str:
    """How the gate assigns rows to components."""
    if health is None:
        return ""
    numbers = {
        "effective number of components": health.effective_components,
        "mean entropy of the gate, nats per row": health.entropy,
        "guide versus model: KL(q(c|x) ‖ p(c|z)), nats per row": health.disagreement,
        "training objective minus marginal ELBO, nats per row": health.objective_gap,
    }
    drawn = _those_that_can_be_drawn(
        (
            (
                partial(plots.gate_map, fit, rows, resolution=120, seed=seed),
                "Most probable component at each point. Paler regions are less certain.",
            ),
            (
                partial(plots.latent_map, fit, rows, seed=seed),
                "Latent codes of rows, colored by component.",
            ),
        )
    )
    known = {name: f"{value:.3f}" for name, value in numbers.items() if value is not None}
    return section("Gate", facts({"components": len(health.shares), **known}), *drawn)


def experts(fit: Fit, rows: Rows, seed: int) -> str:
    """What each expert predicts, and how well."""
    if rows.y is None:
        return ""
    rows = rows.with_targets()
    return section(
        "Experts",
        table(figures.expert_table(fit, rows, seed=seed)),
        picture(
            figures.experts(fit, rows, seed=seed),
            "Mean of each expert as one column of x varies. The other columns are at their medians "
            "over the rows of that expert.",
        ),
        picture(
            plots.predictions(fit, rows, seed=seed), "Observed targets against predicted means."
        ),
    )


def generated(fit: Fit, rows: Rows, seed: int) -> str:
    """Rows drawn from the model, and reconstructions."""
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
    return section("Generated data", *drawn) if drawn else ""


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
