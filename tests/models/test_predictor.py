"""Experts and gates of some columns, offsets, shared coefficients, several families, weights."""

import numpy as np
import pytest
import torch

from pyro_moe import Prior, fit
from pyro_moe.distributions import Joint
from pyro_moe.inference import MarginalELBO
from pyro_moe.inference.em import EM
from pyro_moe.inference.handlers import Annotations, annotated
from pyro_moe.models import ME, Predictor
from pyro_moe.models.parts.networks import AffineMaps, PartlySharedMaps, Standardize

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COUNTS = torch.poisson((0.5 * X[:, :1] + 1.0).exp(), generator=torch.Generator().manual_seed(1))
NONE = Prior(0.0, 0.0, 0.0)


def story(**options):
    torch.manual_seed(0)
    found = ME(3, 1, 2, **options).double()
    found.adapt(X, COUNTS)
    return found


@pytest.mark.parametrize("family", ["normal", "student-t", "poisson", "bernoulli"])
def test_experts_read_their_columns_alone(family):
    y = COUNTS.clamp(max=1.0)
    torch.manual_seed(0)
    moe = ME(3, 1, 2, experts=family, predictor=Predictor(columns=[1]), gate_columns=[2]).double()
    moe.adapt(X, y)
    other = X.clone()
    other[:, 0] += 1.0
    assert torch.equal(moe(X).mean, moe(other).mean)
    other[:, 2] += 1.0
    assert torch.equal(moe.experts(X).mean, moe.experts(other).mean)
    assert not torch.equal(moe.gate(X).logits, moe.gate(other).logits)
    other[:, 1] += 1.0
    assert not torch.equal(moe.experts(X).mean, moe.experts(other).mean)


@pytest.mark.parametrize("family", ["normal", "poisson"])
def test_the_linear_predictor_in_the_units_of_the_data(family):
    moe = story(experts=family, predictor=Predictor(columns=[2, 0], offset_column=1))
    coefficients = moe.experts.linear_predictor(3)
    assert (coefficients[..., 1] == 0).all()
    expected = torch.einsum("nd,kpd->nkp", X, coefficients[..., :3]) + coefficients[..., 3]
    mean = moe.experts(X).mean
    found = mean.log() if family == "poisson" else mean
    torch.testing.assert_close(found, expected + X[:, 1, None, None])


def test_maps_without_an_intercept_are_zero_at_zero():
    units = Standardize(3).double()
    units.adapt(X + 5.0)
    maps = AffineMaps(3, 2, 1, units=units, intercept=False).double()
    assert maps(torch.zeros(1, 3).double()).abs().max() < 1e-12
    y = (X + 5.0) @ torch.tensor([[1.0], [2.0], [3.0]]).double()
    maps.least_squares(X + 5.0, y, torch.ones(60, 2).double())
    torch.testing.assert_close(
        maps.in_units(3)[0, 0], torch.tensor([1.0, 2, 3, 0]).double(), rtol=1e-5, atol=1e-5
    )


def test_shared_coefficients_are_equal_and_least_squares_finds_them():
    maps = PartlySharedMaps([0, 1, 2], [1, 2], 2, 1).double()
    assert torch.equal(maps.in_units(3)[0, 0, 1:3], maps.in_units(3)[1, 0, 1:3])
    first = torch.arange(60) % 2 == 0
    weights = torch.stack([first, ~first], -1).double()
    own = torch.where(first, 1.0 + 4.0 * X[:, 0], -2.0 - X[:, 0])
    y = (own + 0.5 * X[:, 1] + 3.0 * X[:, 2]).unsqueeze(-1)
    residuals = maps.least_squares(X, y, weights, torch.ones(2, 1).double())[:]
    assert residuals[weights.bool()].abs().max() < 1e-4
    expected = torch.tensor([[[4.0, 0.5, 3.0, 1.0]], [[-1.0, 0.5, 3.0, -2.0]]]).double()
    torch.testing.assert_close(maps.in_units(3), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [(), (1,)])
@pytest.mark.parametrize("family", ["normal", "poisson"])
def test_em_never_lowers_the_likelihood(family, shared):
    predictor = Predictor(
        columns=[0, 1], shared=shared, offset_column=2, shared_scale=family == "normal"
    )
    moe = story(experts=family, predictor=predictor, gate_columns=[])
    run = EM(moe.model, moe.guide, (X, COUNTS), 25, 0, NONE)
    values = np.array([record["elbo"] for record in run])
    assert (np.diff(values) > -1e-7).all()


def test_families_of_several_targets_multiply():
    y = torch.cat([X[:, :1], COUNTS], -1)
    torch.manual_seed(0)
    moe = ME(3, 2, 2, experts=["normal", "poisson"]).double()
    moe.adapt(X, y)
    parts = [part(X) for part in moe.experts.parts]
    joint = moe.experts(X)
    assert isinstance(joint, Joint)
    expected = sum(
        p.log_prob(column[:, None]) for p, column in zip(parts, y.split(1, -1), strict=True)
    )
    torch.testing.assert_close(joint.log_prob(y[:, None]), expected)
    assert joint.sample().shape == joint.mean.shape == joint.variance.shape == (60, 2, 2)
    impossible = y.clone()
    impossible[3, 1] = -1.0
    assert joint.support.check(impossible[:, None]).all(-1).tolist() == [i != 3 for i in range(60)]


def test_weights_scale_the_rows():
    moe = story()
    weights = torch.linspace(0.5, 2.0, 60).double()
    run = EM(moe.model, moe.guide, (X, COUNTS), 0, 0, NONE, annotations=Annotations(weights))
    rows = EM(moe.model, moe.guide, (X, COUNTS), 0, 0, NONE).log_likelihoods()
    torch.testing.assert_close(run.log_likelihoods(), weights * rows)
    torch.testing.assert_close(run.log_posterior(), (weights * rows).sum())


def test_the_likelihood_of_a_group_counts_its_component_once():
    moe = story(gate_columns=[])
    groups = torch.arange(60) // 5
    run = EM(moe.model, moe.guide, (X, COUNTS), 0, 0, NONE, annotations=Annotations(groups=groups))
    each = moe.experts(X).log_prob(COUNTS.unsqueeze(1)).reshape(12, 5, 2).sum(1)
    expected = (each + moe.gate(X[:1]).logits.log_softmax(-1)).logsumexp(-1)
    torch.testing.assert_close(run.log_posterior(), expected.sum())
    in_minibatches = run._whole(run.data, run.annotations, 7).log_joint
    torch.testing.assert_close(in_minibatches, run.log_joint())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": torch.nn.Linear(3, 1), "predictor": Predictor(columns=[0])}, "by name"),
        ({"experts": "categorical", "predictor": Predictor(offset_column=0)}, "no offset"),
        ({"experts": "poisson", "predictor": Predictor(shared_scale=True)}, "share a scale"),
        ({"experts": "poisson", "predictor": Predictor(shrinkage=1.0)}, "normal experts"),
        ({"predictor": Predictor(shrinkage=1.0, shared=(0,))}, "no shrinkage of shared"),
        ({"predictor": Predictor(shrinkage=-1.0)}, "shrinkage of at least 0; got -1.0"),
        ({"experts": ["normal"] * 2}, "a family for each of 1 targets"),
        ({"experts": "binomial"}, "a column of trials"),
    ],
)
def test_what_experts_cannot_have(options, message):
    with pytest.raises(ValueError, match=message):
        ME(3, 1, 2, **options)


def test_a_fit_takes_weights_and_groups():
    moe = ME(3, 1, 2, experts="poisson", gate_columns=[])
    data = (X, COUNTS)
    options = {"epochs": 3, "progress": False, "prior": "none"}
    options |= {"weights": torch.ones(60), "groups": [f"group {n // 5}" for n in range(60)]}
    fitted = fit(moe.model, moe.guide, data, loss="em", **options)
    assert len(fitted.history) == 3
    by_gradients = fit(moe.model, moe.guide, data, loss="marginal", **options)
    assert by_gradients.settings["loss"] == "marginal"


def test_the_marginal_objective_weighs_rows_as_em_does():
    moe = story(experts="poisson")
    weights = torch.linspace(0.5, 2.0, 60).double()
    run = EM(moe.model, moe.guide, (X, COUNTS), 0, 0, NONE, annotations=Annotations(weights))
    programs = [annotated(each, ("weights",)) for each in (moe.model, moe.guide)]
    loss = MarginalELBO().loss(*programs, X, COUNTS, weights)
    torch.testing.assert_close(-loss, run.log_posterior().item())
