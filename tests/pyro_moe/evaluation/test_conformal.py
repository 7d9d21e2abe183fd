"""Conformal intervals cover new targets as they promise, whatever the model says."""

import math

import pytest
import torch
from torch.distributions import Binomial, Independent, Normal, Poisson

from pyro_moe import DataError
from pyro_moe.distributions.joint import Joint
from pyro_moe.evaluation import Prediction, conformal_interval


def of_normals(loc: torch.Tensor, scale: torch.Tensor | float) -> Prediction:
    """One normal expert in each row."""
    return Prediction(torch.zeros(1, len(loc), 1).double(), (Normal(loc.unsqueeze(1), scale),))


def covered(limits: tuple[torch.Tensor, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    low, high = limits
    return (low <= y.reshape(low.shape)) & (y.reshape(high.shape) <= high)


def test_limits_by_hand() -> None:
    # Errors 1 to 9 in units of scale: level 0.8 needs ceil(0.8 * 10) = 8 of them.
    errors = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0]).double()
    loc, scale = torch.arange(9).double(), torch.linspace(1, 2, 9).double()
    known = of_normals(loc, scale.unsqueeze(1))
    new = of_normals(torch.tensor([0.0, 100.0]).double(), torch.tensor([[1.0], [3.0]]).double())
    low, high = conformal_interval(new, known, loc + errors * scale, level=0.8)
    torch.testing.assert_close(low, torch.tensor([[-8.0], [100.0 - 24.0]]).double())
    torch.testing.assert_close(high, torch.tensor([[8.0], [100.0 + 24.0]]).double())


def test_a_prediction_that_is_right_by_rank_is_kept() -> None:
    # Of 99 normal quantiles i / 100, the 90 within the central 90 % interval are those with
    # i = 6 to 95 and i = 5, the limit itself.
    y = torch.special.ndtri(torch.arange(1, 100).double() / 100)
    same = of_normals(torch.zeros(99).double(), 1.0)
    low, high = conformal_interval(same, same, y, level=0.9)
    limit = torch.special.ndtri(torch.tensor(0.95, dtype=torch.float64)).item()
    assert low[0].item() == pytest.approx(-limit, abs=1e-9)
    assert high[0].item() == pytest.approx(limit, abs=1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_coverage_does_not_depend_on_the_scale(scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(4000, generator=generator).double().exp()
    known, new = y[:2000], y[2000:]
    limits = conformal_interval(
        of_normals(torch.ones(2000).double(), scale),
        of_normals(torch.ones(2000).double(), scale),
        known,
        level=0.8,
    )
    error = math.sqrt(0.8 * 0.2 * (1 / 2000 + 1 / 2000))
    assert covered(limits, new).double().mean().item() == pytest.approx(0.8, abs=4 * error)


def test_guarantee_with_few_rows() -> None:
    # Of any ten exchangeable rows, each is the new one once: the interval of the other nine at
    # level 0.9 covers exactly nine of the ten.
    y = torch.randn(10, generator=torch.Generator().manual_seed(1)).double()
    one = of_normals(torch.zeros(1).double(), 0.01)
    rest = of_normals(torch.zeros(9).double(), 0.01)
    hits = [
        covered(
            conformal_interval(one, rest, torch.cat([y[:i], y[i + 1 :]]), level=0.9), y[i : i + 1]
        )
        for i in range(10)
    ]
    assert torch.cat(hits).sum().item() == 9


def test_several_targets_have_intervals_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(500, 2, generator=generator).double() * torch.tensor([1.0, 20.0])
    zeros = torch.zeros(500, 1, 2).double()
    both = Prediction(torch.zeros(1, 500, 1).double(), (Independent(Normal(zeros, 1.0), 1),))
    low, high = conformal_interval(both, both, y)
    for column in range(2):
        alone = of_normals(torch.zeros(500).double(), 1.0)
        of_one = conformal_interval(alone, alone, y[:, column])
        torch.testing.assert_close(
            torch.stack([low, high])[..., column : column + 1], torch.stack(of_one)
        )


def test_counts_move_by_whole_numbers() -> None:
    # Poisson(4) has the interval [1, 8] at level 0.9; targets of Poisson(12) are far above.
    rate = torch.full((199, 1), 4.0).double()
    p = Prediction(torch.zeros(1, 199, 1).double(), (Poisson(rate),))
    y = torch.poisson(torch.full((199,), 12.0), generator=torch.Generator().manual_seed(0))
    low, high = conformal_interval(p, p, y)
    assert torch.equal(low, low.round())
    assert torch.equal(high, high.round())
    assert covered((low, high), y).double().mean().item() >= 0.9
    # Targets at the median 4 shorten it by the least of 4 - 1 and 8 - 4.
    low, high = conformal_interval(p, p, torch.full((199,), 4.0))
    assert (low.unique().tolist(), high.unique().tolist()) == ([4.0], [5.0])


def test_columns_of_several_families_each_move_in_their_way() -> None:
    generator = torch.Generator().manual_seed(0)
    normal, count = (
        Normal(torch.zeros(99, 1, 1).double(), 1.0),
        Poisson(torch.full((99, 1, 1), 0.2)),
    )
    both = Prediction(
        torch.zeros(1, 99, 1), (Joint([Independent(normal, 1), Independent(count, 1)]),)
    )
    draws = torch.randn(99, generator=generator), torch.poisson(count.rate[:, 0, 0], generator)
    y = torch.stack(draws, -1)
    low, high = conformal_interval(both, both, y)
    for column, p in enumerate((normal, count)):
        alone = Prediction(torch.zeros(1, 99, 1), (Independent(p, 1),))
        of_one = torch.stack(conformal_interval(alone, alone, y[:, column]))
        torch.testing.assert_close(torch.stack([low, high])[..., column], of_one[..., 0])


def test_what_it_refuses() -> None:
    p = of_normals(torch.zeros(8).double(), 1.0)
    y = torch.zeros(8)
    with pytest.raises(ValueError, match=r"^expected level between 0 and 1; got 1\.0$"):
        conformal_interval(p, p, y, level=1.0)
    message = r"^expected at least 9 calibration rows for level 0\.9; got 8$"
    with pytest.raises(ValueError, match=message):
        conformal_interval(p, p, y, level=0.9)
    message = r"^expected as many rows in y as in x, 8; got shape \(7,\)$"
    with pytest.raises(DataError, match=message):
        conformal_interval(p, p, y[:7])
    classes = Prediction(
        torch.zeros(1, 20, 1), (torch.distributions.Categorical(torch.ones(20, 1, 3) / 3),)
    )
    message = r"^expected a target whose values have an order; got classes$"
    with pytest.raises(DataError, match=message):
        conformal_interval(classes, classes, torch.zeros(20))
    binomial = Prediction(torch.zeros(1, 20, 1), (Binomial(3, torch.full((20, 1), 0.5)),))
    assert conformal_interval(binomial, binomial, torch.ones(20))[0].shape == (20, 1)
