"""All plots that apply to a fit."""

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.inference.errors import SiteError
from pyro_moe.rows import Data

from .gate_regions import gate_map
from .hierarchy import hierarchy
from .latent import generated, latent_map, reconstructions
from .targets import predictions
from .training import history


@strange_rows_expected()
def pictures(fit: Fit, data: Data | None = None, *, seed: int = 0) -> dict[str, Figure]:
    """Make all plots that apply to a fit and its rows, by name.

    Args:
        fit: A fitted story.
        data: Rows to show, preferably held out; the training rows if None.
        seed: Seed of random subsets and samples.

    Returns:
        Some of ``"history"``, ``"latent_map"``, ``"reconstructions"``, ``"generated"``,
        ``"hierarchy"``, ``"gate_map"`` and ``"predictions"``. Plots of sites that the story lacks
        are omitted, and plots of x unless rows are images or points in the plane.
    """
    rows = fit.repeated(data)
    drawings: dict[str, Callable[[], Figure]] = {
        "history": partial(history, fit),
        "latent_map": partial(latent_map, fit, rows, seed=seed),
    }
    if rows.image_shape is not None or fit.x_dim == 2:
        drawings["reconstructions"] = partial(reconstructions, fit, rows, seed=seed)
        drawings["generated"] = partial(generated, fit, image_shape=rows.image_shape, seed=seed)
        drawings["hierarchy"] = partial(hierarchy, fit, rows, seed=seed)
    if rows.image_shape is None and fit.x_dim == 2:
        drawings["gate_map"] = partial(gate_map, fit, rows, seed=seed)
    if rows.y is not None and fit.has_target:
        drawings["predictions"] = partial(predictions, fit, rows, seed=seed)
    figures = {}
    for name, draw in drawings.items():
        try:
            figures[name] = draw()
        except SiteError:  # the story lacks the site
            continue
    return figures
