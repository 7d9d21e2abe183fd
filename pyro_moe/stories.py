"""The shipped stories by name, and a story made from its name or class with arguments."""

import inspect
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from torch import nn

from pyro_moe import models

STORIES: dict[str, type[nn.Module]] = {
    "gmm": models.GMM,
    "vae": models.VAE,
    "vade": models.VaDE,
    "dmvae": models.DMVAE,
    "me": models.ME,
    "deepmoe": models.DeepMoE,
    "hierarchicalme": models.HierarchicalME,
    "gmmmoe": models.GMMMoE,
    "vademoe": models.VaDEMoE,
    "dvmoe": models.DVMoE,
    "hierarchicaldmvae": models.HierarchicalDMVAE,
    "hierarchicaldvmoe": models.HierarchicalDVMoE,
}
TARGET_ARGUMENTS = {"y_dim", "num_classes"}
Z_DIM = 10  # at most, unless the story's options say otherwise

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def shipped(name: str | None) -> type[nn.Module]:
    """A shipped story by its name.

    Raises:
        ValueError: If there is no such story.
    """
    if name not in STORIES:
        raise ValueError(f"expected a story in {tuple(STORIES)}; got {name!r}")
    return STORIES[name]


def name_of(story: type[nn.Module]) -> str | None:
    """The name of a shipped story, None for another class."""
    return next((name for name, each in STORIES.items() if each is story), None)


def parameters(story: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The named parameters of a story's constructor, including those passed to base classes."""
    known: dict[str, inspect.Parameter] = {}
    for each in story.__mro__:
        if "__init__" not in vars(each):
            continue
        named = list(inspect.signature(each).parameters.values())
        variable = [p.kind for p in named if p.kind in _VARIABLE]
        known = {p.name: p for p in named if p.kind not in _VARIABLE} | known
        if inspect.Parameter.VAR_KEYWORD not in variable:
            break
    return known


def class_of(story: Any) -> type[nn.Module]:
    """The class of a story, by its name or as it is.

    Raises:
        ValueError: If it is neither.
    """
    made = shipped(story) if isinstance(story, str) else story
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise ValueError(
            f"expected the name of a story, its class, or a module with model and guide; "
            f"got {story!r}"
        )
    return made


def arguments_of(
    story: type[nn.Module], options: Mapping[str, Any] | None, **dimensions: Any
) -> dict[str, Any]:
    """The arguments of a story's constructor.

    Args:
        story: The class of the story.
        options: Further arguments, or None.
        **dimensions: Arguments that are given by the data. Those that the constructor does not
            have are left out.

    Raises:
        ValueError: If the story has a target and none is given or the reverse, does not have an
            option, or needs another one.

    Example:
        >>> arguments_of(models.GMM, {"covariance": "tied"}, x_dim=2, num_components=3, z_dim=2)
        {'x_dim': 2, 'num_components': 3, 'covariance': 'tied'}
    """
    known = parameters(story)
    unknown = sorted((options or {}).keys() - known.keys())
    if unknown:
        raise ValueError(
            f"expected story_options of {story.__name__}, {', '.join(known)}; got {unknown[0]!r}"
        )
    wanted = TARGET_ARGUMENTS & dimensions.keys()
    if bool(wanted) != bool(TARGET_ARGUMENTS & known.keys()):
        kind = "with a target y, for predictions" if wanted else "of x alone, for clusters"
        raise ValueError(f"expected a story {kind}; got {story.__name__}")
    number = {**dimensions, **(options or {})}.get("num_components", 1)
    each = number if isinstance(number, tuple | list) else [number]  # of a tree, one for each level
    if not all(isinstance(k, Integral) and not isinstance(k, bool) and int(k) >= 1 for k in each):
        raise ValueError(f"expected a whole num_components of at least 1; got {number!r}")
    given = {"z_dim": min(dimensions["x_dim"], Z_DIM)} | dimensions
    given = {name: value for name, value in given.items() if name in known} | dict(options or {})
    for name, parameter in known.items():
        if name not in given and parameter.default is parameter.empty:
            raise ValueError(
                f"expected story_options with {name!r}, for {story.__name__}; got none"
            )
    return given
