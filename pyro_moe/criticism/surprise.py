"""How surprising observed statistics are beside those of replicated data, all taken together."""

import torch

LARGEST = 1e100  # of a statistic, whose squares and sums remain finite


def allowing_for_estimates(
    replicated: torch.Tensor, ratio: float, *, squared: torch.Tensor
) -> torch.Tensor:
    r"""Statistics as they would vary if the story's parameters had been estimated for each.

    .. math:: \bar T_j + \sqrt{1 + \rho}\, (T_{sj} - \bar T_j), \quad \rho = N / N_{fit}

    An efficient estimate of what a statistic is about, from other rows, has at most ρ times
    the statistic's own variance, which adds to it. Of a squared distance between distributions
    it adds to the mean, too: that is at most (1 + ρ) times one without it, in distribution.

    Args:
        replicated: T_1 … T_S, shape (S, J).
        ratio: ρ, rows of a data set by rows that were fitted.
        squared: Which statistics are squared distances, shape (J,).

    Returns:
        Statistics of shape (S, J).
    """
    replicated = replicated.double().clamp(-LARGEST, LARGEST)
    center = replicated.nanmean(0)
    spread = center + (1 + ratio) ** 0.5 * (replicated - center)
    return torch.where(squared, (1 + ratio) * replicated, spread)


def standardized(
    observed: torch.Tensor, replicated: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Distances of statistics from where replicates have them, each in a unit of its own.

    .. math:: t_{sj} = |T_{sj} - \bar T_j| / q_j

    with the mean and q_j, the 99 % quantile of the distances, over the observed data set and the
    replicates together, so that the observed one is treated like any other.

    Args:
        observed: T_0, shape (J,).
        replicated: T_1 … T_S, shape (S, J).

    Returns:
        t_0 of shape (J,), and t_1 … t_S of shape (S, J), zero where a statistic is not defined.
    """
    replicated, observed = (
        values.double().clamp(-LARGEST, LARGEST) for values in (replicated, observed)
    )
    both = torch.cat([observed.unsqueeze(0), replicated])
    distances = (both - both.nanmean(0)).abs()
    unit = torch.nanquantile(distances, 0.99, dim=0)
    # What hardly ever varies is measured by what it did at the most.
    unit = torch.where(unit > 0, unit, distances.nan_to_num().amax(0))
    t = (distances / unit).nan_to_num()
    return t[0], t[1:]


def predictive_p_values(observed: torch.Tensor, replicated: torch.Tensor) -> torch.Tensor:
    r"""Two-sided Monte Carlo p-values of each statistic by itself, shape (J,).

    .. math:: p_j = (1 + \#\{s : t_{sj} \ge t_{0j}\}) / (S + 1)
    """
    return (1 + (replicated >= observed).sum(0)).double() / (len(replicated) + 1)


def adjusted_p_values(observed: torch.Tensor, replicated: torch.Tensor) -> torch.Tensor:
    r"""P-values that allow for how many statistics were looked at, shape (J,).

    .. math:: p_j = (1 + \#\{s : \max_i t_{si} \ge t_{0j}\}) / (S + 1)

    If observed and replicated data are exchangeable, as they are under a true story with known
    parameters, the least of them is below α with probability at most α, however many
    statistics there are and however they depend on each other (Westfall and Young 1993).
    """
    largest = replicated.amax(1, keepdim=True)
    return (1 + (largest >= observed).sum(0)).double() / (len(replicated) + 1)
