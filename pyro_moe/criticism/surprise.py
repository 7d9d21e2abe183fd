"""P-values of observed statistics relative to replicates, adjusted for multiple testing."""

import torch

LARGEST = 1e100  # of a statistic, whose squares and sums remain finite


def allowing_for_estimates(
    replicated: torch.Tensor, ratio: float, *, squared: torch.Tensor
) -> torch.Tensor:
    r"""Inflate the variation of replicated statistics to account for estimated parameters.

    .. math:: \bar T_j + \sqrt{1 + \rho}\, (T_{sj} - \bar T_j), \quad \rho = N / N_{fit}

    The expectation of a statistic depends on parameters that were estimated from other rows. If
    the estimates are efficient, their error adds at most ρ times the variance of the statistic.
    A squared distance between distributions also increases in mean: it is stochastically at most
    (1 + ρ) times the distance at known parameters.

    Args:
        replicated: T_1 … T_S, shape (S, J).
        ratio: ρ, the number of rows in a data set divided by that of training rows.
        squared: Whether each statistic is a squared distance, shape (J,).

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
    r"""Standardized distances of statistics from their mean.

    .. math:: t_{sj} = |T_{sj} - \bar T_j| / q_j

    The mean and q_j, the 99 % quantile of the distances, are taken over the observed data set and
    the replicates together, so that all of them are exchangeable if the model is correct.

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
    # The quantile is zero for statistics that hardly ever vary; the maximum replaces it.
    unit = torch.where(unit > 0, unit, distances.nan_to_num().amax(0))
    t = (distances / unit).nan_to_num()
    return t[0], t[1:]


def predictive_p_values(observed: torch.Tensor, replicated: torch.Tensor) -> torch.Tensor:
    r"""Two-sided Monte Carlo p-values of each statistic separately, shape (J,).

    .. math:: p_j = (1 + \#\{s : t_{sj} \ge t_{0j}\}) / (S + 1)
    """
    return (1 + (replicated >= observed).sum(0)).double() / (len(replicated) + 1)


def adjusted_p_values(observed: torch.Tensor, replicated: torch.Tensor) -> torch.Tensor:
    r"""P-values adjusted for the number of statistics, shape (J,).

    .. math:: p_j = (1 + \#\{s : \max_i t_{si} \ge t_{0j}\}) / (S + 1)

    Observed and replicated data are exchangeable if the model is correct and its parameters are
    known. Then the smallest adjusted p-value is at most α with probability at most α, for any
    number of statistics and any dependence between them (Westfall and Young 1993).
    """
    largest = replicated.amax(1, keepdim=True)
    return (1 + (largest >= observed).sum(0)).double() / (len(replicated) + 1)
