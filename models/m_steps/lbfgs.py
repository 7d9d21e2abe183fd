"""An M-step by numerical optimization: a few iterations of L-BFGS."""

from collections.abc import Callable, Iterable

import torch

from pyro_moe.processes import Processes


def minimize_in_place(
    loss: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor], *, iterations: int
) -> None:
    """Minimize a loss by L-BFGS, from the current parameters.

    Processes that share the rows minimize the sum of their losses.

    If a parameter is not finite at the end, all parameters are reset to their initial values.

    Args:
        loss: Returns the loss at the current values of the parameters.
        parameters: Its parameters, updated in place.
        iterations: Maximum number of iterations.

    Example:
        >>> p = torch.zeros(1, requires_grad=True)
        >>> minimize_in_place(lambda: (p - 3.0).square().sum(), [p], iterations=20)
        >>> p.detach().round(decimals=3)
        tensor([3.])
    """
    parameters = list(parameters)
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.LBFGS(parameters, max_iter=iterations, line_search_fn="strong_wolfe")

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = loss()
            value.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        Processes.sharing().add([value.detach(), *gradients])
        return value

    optimizer.step(evaluate)
    optimizer.zero_grad()
    if not all(p.isfinite().all() for p in parameters):
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
