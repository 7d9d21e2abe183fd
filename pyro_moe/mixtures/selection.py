"""The choice of the number of components, the story and the family of a mixture by formula."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyro_moe.inference.prior import Prior
from pyro_moe.stories import class_of, name_of

from .entry import coded, further, mixture
from .formulas import annotations_of, as_frame, columns_of, stated
from .stories import made_of

if TYPE_CHECKING:
    from pyro_moe.selection import Selection

OF_TABLE = ("offset", "trials", "weights", "groups", "labels", "missing", "unseen", "shared")
OF_TRAINING = ("restarts", "epochs", "tolerance", "prior", "weight_type")
OTHERS = ("story_options", "fit_options")


def select_mixture(
    formula: str | Sequence[str] | None = None,
    data: Any = None,
    *,
    target: str | Sequence[str] | None = None,
    experts: Sequence[str] | None = None,
    gate: Sequence[str] = (),
    num_components: Iterable[int] | None = None,
    story: Any = "me",
    family: str | Sequence[Any] = "normal",
    held_out: float = 0.2,
    folds: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> "Selection":
    r"""Choose K, the story and the family of a mixture by the log density of held-out rows.

    .. math:: \hat\ell = \frac{1}{|H|} \sum_{n \in H} \log p(y_n \mid x_n, \hat\theta)

    It is `select` of the stories that `mixture` makes of a formula. Factors are coded by all rows.

    Args:
        formula: As of `mixture`; or ``target``, ``experts`` and ``gate``.
        data: A data frame, or a mapping of columns.
        target: See `mixture`.
        experts: See `mixture`.
        gate: See `mixture`.
        num_components: Values of K to compare. If None, one to six, or with labels as many as
            these and up to five more.
        story: A story or several, names or classes.
        family: A family of experts or several, of which each is compared. One of them may be a
            tuple with a family for each target.
        held_out: Share of the rows to hold out, if ``folds`` is None.
        folds: Number of folds of cross-validation.
        seed: Seed of the split, and of every random draw.
        progress: Whether to show a progress bar.
        **options: Further arguments of `mixture`, such as ``offset``, ``weights`` or ``missing``.
            The prior is ``"auto"`` if none is given.

    Returns:
        A `Selection`, whose ``fit`` is the `mixture` of the recommended choice, with its prior.

    Raises:
        DataError: If rows are too few, or data lack a column or have gaps.
        ValueError: If an argument is invalid, or families have targets of different kinds.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(0.0, 1.0, 60)
        >>> y = np.where(np.arange(60) % 2, 2.0 * x, 1.0 - x) + 0.05 * np.sin(np.arange(60.0) ** 2)
        >>> found = select_mixture(
        ...     "y ~ x", {"x": x, "y": y}, num_components=[1, 2], folds=3, progress=False)
        >>> found.num_components, type(found.fit).__name__
        (2, 'MixtureFit')
    """
    from pyro_moe.selection import select  # with its pictures

    known = (*OF_TABLE, *OF_TRAINING, *OTHERS)
    if unknown := set(options) - set(known):
        raise ValueError(f"expected options in {sorted(known)}; got {sorted(unknown)}")
    formulas = stated(formula, target, experts, gate)
    of_table = {name: options[name] for name in OF_TABLE if name in options}
    training: dict[str, Any] = {"prior": "auto"}
    training |= {name: options[name] for name in OF_TRAINING if options.get(name) is not None}
    training |= further(options.get("fit_options"), {*training, "seed", "progress", "labels"})
    stories, rows, about = {}, None, {}
    given = as_frame(data)
    for name, (kind, one) in candidates(story, family).items():
        families = [one] if isinstance(one, str) else list(one)
        design, table = coded(formulas, given, families, kind, **of_table)
        found = columns_of(design, table)
        if rows is not None and not rows[1].equals(found[1]):
            raise ValueError(
                f"expected families of one kind of target, numbers or classes; got {family!r}"
            )
        rows, about = found, annotations_of(design, table)
        stories[name] = maker(kind, options.get("story_options"), design, families)
        index = given.index[table.index]
    if num_components is None:
        labels = pd.to_numeric(pd.Series(about.get("labels", [0])), errors="coerce")
        least = 1 + int(max(0, labels.max()))
        num_components = range(least, least + 6)
    chosen = select(
        stories if len(stories) > 1 else next(iter(stories.values())),
        rows,
        num_components=num_components,
        held_out=held_out,
        folds=folds,
        seed=seed,
        progress=progress,
        **about,
        **training,
    )
    densities = chosen.log_densities.set_axis(index[chosen.log_densities.index])
    fit = refitted(chosen, formulas, given, story, family, seed, options)
    return replace(chosen, log_densities=densities, fit=fit)


def candidates(story: Any, family: Any) -> dict[str, tuple[Any, Any]]:
    """Each story with each family, by name; the name of the story alone if there is one family."""
    stories = [story] if isinstance(story, str | type) else list(story)
    families = [family] if isinstance(family, str) else list(family)
    found = {}
    for kind, one in itertools.product(stories, families):
        name = name_of(class_of(kind)) or class_of(kind).__name__
        text = one if isinstance(one, str) else " and ".join(one)
        found[f"{name} {text}" if len(families) > 1 else name] = kind, one
    return found


def maker(kind: Any, options: Mapping[str, Any] | None, design: Any, families: list[str]) -> Any:
    """The function from K to a story of a design."""
    return lambda k: made_of(kind, options, design, num_components=k, families=families).story


def refitted(
    chosen: "Selection",
    formulas: list[str],
    data: Any,
    story: Any,
    family: Any,
    seed: int,
    options: dict[str, Any],
) -> Any:
    """The recommended choice fitted by `mixture`, with the prior that it was compared with."""
    among = candidates(story, family)
    kind, one = among[chosen.story or next(iter(among))]
    return mixture(
        formulas,
        data,
        num_components=chosen.num_components,
        story=kind,
        family=one,
        seed=seed,
        **{**options, "prior": Prior(**chosen.fit.settings["prior"])},
    )
