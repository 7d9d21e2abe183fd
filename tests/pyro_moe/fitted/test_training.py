"""What a fit remembers of its training rows, and which later rows it warns of."""

import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataWarning, Rows, criticism, evaluation, models
from pyro_moe.fitted import Training, strange_rows_expected

N = 40
GENERATOR = torch.Generator().manual_seed(0)
X = torch.cat([torch.randn(N, 2, generator=GENERATOR), torch.full((N, 1), 0.1)], 1)


@pytest.fixture(scope="module")
def fit():
    story = models.ME(3, 1, 2)
    data = (Rows(X, X[:, :1], columns=("dose", "age", "unit")),)
    return pyro_moe.fit(
        story.model, story.guide, *data, loss="em", epochs=3, prior="none", progress=False
    )


def test_the_summary_of_rows():
    y = torch.tensor([[1.0, torch.nan], [3.0, 2.0], [2.0, 4.0]])
    x = torch.tensor([[0.0], [3.0], [6.0]])
    training = Training.of((x, y, torch.tensor([4, 2, 3])))
    assert training.num_rows == 3
    assert [end.tolist() for end in training.low] == [[0.0], [1.0, 2.0], 2]
    assert [end.tolist() for end in training.high] == [[6.0], [3.0, 4.0], 4]
    assert training.mean.tolist() == [3.0]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 1 / 3, -7e-12])
def test_the_mean_of_a_constant_is_the_constant(value):
    x = torch.full((1001, 1), value)
    assert Training.of((x,)).mean.equal(x[0])


def ends(fit, column):
    return fit.training.low[0][column].item(), fit.training.high[0][column].item()


@pytest.mark.parametrize("side", [-1, 1])
def test_a_value_beyond_ten_times_the_range_is_warned_of(fit, side):
    low, high = ends(fit, 1)
    end = high if side > 0 else low
    near, far = X.clone(), X.clone()
    near[7, 1], far[7, 1] = end + side * 9.99 * (high - low), end + side * 10.01 * (high - low)
    evaluation.predict(fit, near)  # warnings are errors
    with pytest.warns(DataWarning) as caught:
        evaluation.predict(fit, far)
    assert [str(warning.message) for warning in caught] == [
        f"expected rows like those of training, where column 'age' of x was from {low:.6g} to "
        f"{high:.6g}; got {far[7, 1].item():.6g} in row 7: see evaluation.novelty"
    ]


def test_any_change_of_a_constant_column_is_warned_of(fit):
    changed = X.clone()
    changed[3:, 2] += 1e-6
    with pytest.warns(DataWarning, match=r"'unit' of x was 0\.1 always; got 0\.100001 in row 3:"):
        evaluation.gate(fit, changed)
    changed[:, 0] = 1e9
    with pytest.warns(DataWarning, match=r"'dose' .* in row 0 \(1 more columns have"):
        evaluation.elbo(fit, (changed, X[:, :1]))


def test_tools_that_expect_strange_rows_do_not_warn(tmp_path):
    story = models.GMM(3, 2)
    fit = pyro_moe.fit(
        story.model, story.guide, X, loss="em", epochs=3, prior="none", progress=False
    )
    strange = X + 1e3
    assert (evaluation.novelty(fit, strange).p_value < 0.05).all()
    criticism.health(fit, strange)
    criticism.check(fit, strange, num_replicates=19)
    criticism.compare({"one": fit}, strange)
    fit.report(tmp_path / "report.html", strange, num_replicates=19)
    gaps = X.clone()
    gaps[::2] = torch.nan  # their place is taken by values within the range
    evaluation.impute(fit, gaps)
    with strange_rows_expected():
        evaluation.gate(fit, strange)
    with pytest.warns(DataWarning, match="column 0 of x"):
        evaluation.gate(fit, strange)


def test_pixels_have_one_range():
    """A pixel at the border is rarely anything but black."""
    x = torch.rand(N, 4, generator=GENERATOR)
    x[:, 0] = 0.0
    story = models.GMM(4, 1, covariance="diagonal")
    options = {"loss": "em", "epochs": 2, "prior": "none", "progress": False}
    image = pyro_moe.fit(story.model, story.guide, Rows(x, image_shape=(1, 2, 2)), **options)
    evaluation.gate(image, torch.ones(1, 4))
    with pytest.warns(DataWarning, match="column 0"):
        evaluation.gate(image, torch.full((1, 4), 255.0))


def test_a_fit_without_training_knows_of_no_range():
    story = models.GMM(3, 2)
    options = {"initialize": "keep", "epochs": 0, "progress": False}
    fit = pyro_moe.fit(story.model, story.guide, X, **options)
    evaluation.gate(fit, X + 1e6)


def test_the_warning_is_rare_for_fresh_rows_of_the_same_distribution():
    """N = 30 rows of five columns with three degrees of freedom, and as many fresh ones."""
    r = np.random.default_rng(0)
    count = 0
    for _ in range(500):
        rows, fresh = (torch.from_numpy(r.standard_t(3, (30, 5))) for _ in range(2))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Training.of((rows,)).warn_of_far(fresh, None)
        count += len(caught)
    assert count <= 7  # 1 % at the most, beyond a count that 0.2 % explains


def test_few_rows_have_no_range():
    few = Training.of((torch.zeros(9, 1),))
    few.warn_of_far(torch.ones(1, 1), None)
    with pytest.warns(DataWarning, match="column 0 of x was 0 always; got 1 in row 0"):
        Training.of((torch.zeros(10, 1),)).warn_of_far(torch.ones(1, 1), None)
    assert_close(few.high[0], torch.zeros(1))
