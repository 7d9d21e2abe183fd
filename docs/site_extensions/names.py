"""Which object of the library a docstring speaks of."""


def is_called(name: str, target: str) -> bool:
    """Whether an object of the library is what a docstring calls ``target``.

    Example:
        >>> is_called("pyro_moe.evaluation.gate", "evaluation.gate")
        True
        >>> is_called("pyro_moe.evaluation.Prediction.gate", "gate")
        False
    """
    own, words = name.split("."), target.split(".")
    if words[0] == "pyro_moe":
        words = words[-1:]
    scope = own[: -len(words)]
    return own[-len(words) :] == words and not any(part[:1].isupper() for part in scope)
