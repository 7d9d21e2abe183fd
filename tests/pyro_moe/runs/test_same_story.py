"""A run says what was fitted: other names and arguments of the story are refused."""

import pytest
import torch

from pyro_moe import fit, models, runs
from pyro_moe.models import Predictor

ARGUMENTS = {
    "x_dim": 3,
    "y_dim": 1,
    "num_components": 2,
    "predictor": Predictor(columns=[0, 1]),
    "gate_columns": [1],
}


@pytest.fixture(scope="module")
def fitted():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    story = models.ME(**ARGUMENTS)
    y = x[:, 0] + x[:, 1] ** 2
    return fit(story.model, story.guide, (x, y), epochs=2, progress=False)


def test_arguments_of_the_fitted_story_are_saved_also_if_they_are_records(fitted, tmp_path):
    runs.save(fitted, tmp_path, story_name="me", story_arguments=ARGUMENTS)
    story, _ = runs.load(tmp_path)
    assert story.options["predictor"].columns == ARGUMENTS["predictor"].columns
    x = torch.randn(5, 3)
    assert torch.equal(story(x).mean, fitted.story(x).mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_components": 3}, "got arguments of one with"),
        ({"x_dim": 4}, "got arguments of one with"),
        ({"experts": "student-t"}, "with experts"),
        ({"gate_columns": [0]}, "the same parameters and other densities"),
        ({"predictor": Predictor(columns=[0, 2])}, "the same parameters and other densities"),
        ({"predictor": Predictor(columns=[0, 9])}, "expected columns of x from 0 to 2; got 9"),
        ({"no": 1}, "unexpected keyword argument"),
        ({"experts": "no"}, "expected experts in"),
        ({"experts": torch.nn.Linear(1, 1)}, "expected texts, numbers and lists, to be saved"),
    ],
)
def test_other_arguments_are_refused(fitted, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        runs.save(
            fitted, tmp_path / "run", story_name="me", story_arguments={**ARGUMENTS, **change}
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{}, {"story_name": "me"}, {"story_arguments": ARGUMENTS}])
def test_a_fit_without_a_formula_needs_name_and_arguments(fitted, tmp_path, given):
    with pytest.raises(ValueError, match=r"expected story_arguments=…"):
        runs.save(fitted, tmp_path, **given)
