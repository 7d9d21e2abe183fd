"""What the estimators compute is what fit and evaluation compute."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyro_moe
from pyro_moe import DataError, DataWarning, evaluation, models
from pyro_moe.estimators import (
    DeepMixture,
    MixtureOfExpertsClassifier,
    MixtureOfExpertsRegressor,
)

N, K = 60, 2
QUICK = {"n_components": K, "prior": "weak", "fit_options": {"restarts": 1}}
DEEP = {"n_components": K, "prior": "weak", "epochs": 8, "story_options": {"hidden": (8,)}}
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2))
    y = np.where(x[:, 0] > 0, 2 * x[:, 0], -x[:, 1]) + 0.1 * rng.normal(size=N)
    return x, y


@pytest.fixture(scope="module")
def regressor(table):
    return MixtureOfExpertsRegressor(**QUICK).fit(*table)


@pytest.fixture(scope="module")
def classifier(table):
    x, y = table
    return MixtureOfExpertsClassifier(**QUICK, epochs=9).fit(x, np.where(y > 0, "up", "down"))


@pytest.fixture(scope="module")
def mixture(table):
    return DeepMixture(**DEEP).fit(table[0])


def test_the_fit_is_that_of_the_same_rows_in_order(table, regressor):
    x, y = table
    order = np.lexsort((y, x[:, 1], x[:, 0]))
    story = models.ME(2, 1, K).double()
    rows = (x[order], y[order])
    fit = pyro_moe.fit(story.model, story.guide, rows, prior="weak", restarts=1, progress=False)
    for name, value in fit.parameters().items():
        torch.testing.assert_close(regressor.fit_.parameters()[name], value, **EXACT)
    p = evaluation.predict(fit, x)
    mean, deviation = regressor.predict(x, return_std=True)
    np.testing.assert_array_equal(mean, p.mean[:, 0])
    np.testing.assert_array_equal(deviation, p.variance.sqrt()[:, 0])
    np.testing.assert_array_equal(regressor.gate(x), evaluation.gate(fit, x))
    np.testing.assert_array_equal(regressor.score_samples(x, y), p.log_prob(y))
    np.testing.assert_array_equal(
        regressor.predict_quantiles(x, [0.1, 0.5]),
        torch.cat([p.quantile(0.1), p.quantile(0.5)], -1),
    )
    np.testing.assert_array_equal(regressor.sample(x, 3, 5), p.sample(3, seed=5)[..., 0].T)


def test_the_order_of_rows_does_not_matter(table, regressor):
    x, y = table
    back = clone(regressor).fit(x[::-1], y[::-1])
    np.testing.assert_array_equal(back.predict(x), regressor.predict(x))


@pytest.mark.parametrize("estimator", ["regressor", "classifier", "mixture"])
def test_whole_weights_are_copies(estimator, table, request):
    x, y = table
    estimator = request.getfixturevalue(estimator)
    y = (y > 0).astype(int) if isinstance(estimator, MixtureOfExpertsClassifier) else y
    weights = np.random.default_rng(1).integers(0, 3, N)
    one, other = clone(estimator), clone(estimator)
    one.fit(x, y, sample_weight=weights)
    other.fit(x.repeat(weights, 0), y.repeat(weights))
    np.testing.assert_array_equal(one.predict(x), other.predict(x))


def test_equal_weights_change_nothing_but_the_prior(table):
    x, y = table
    estimator = MixtureOfExpertsRegressor(**QUICK | {"prior": "none"})
    one, other = (
        clone(estimator).fit(x, y),
        clone(estimator).fit(x, y, sample_weight=np.full(N, 0.5)),
    )
    np.testing.assert_allclose(one.predict(x), other.predict(x), atol=1e-3)


def test_columns_of_targets_keep_their_shape(table):
    x, y = table
    estimator = MixtureOfExpertsRegressor(**QUICK).fit(x, np.stack([y, -y], 1))
    assert estimator.predict(x).shape == (N, 2)
    assert estimator.predict_quantiles(x).shape == (N, 2, 3)
    assert estimator.sample(x, 5).shape == (N, 2, 5)
    one_column = MixtureOfExpertsRegressor(**QUICK).fit(x, y[:, None])
    assert one_column.predict(x).shape == (N, 1)


def test_classes_are_given_back_as_they_were(table, classifier):
    x, y = table
    assert classifier.classes_.tolist() == ["down", "up"]
    probabilities = classifier.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    predicted = classifier.predict(x)
    assert (predicted == np.where(probabilities[:, 1] > 0.5, "up", "down")).all()
    truth = np.where(y > 0, "up", "down")
    np.testing.assert_allclose(
        classifier.score_samples(x, truth),
        np.log(np.where(truth == "up", probabilities[:, 1], probabilities[:, 0])),
    )
    draws = classifier.sample(x, 4000)
    share, p = (draws == "up").mean(1), probabilities[:, 1]
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / 4000) + 1e-9).all()


@pytest.mark.parametrize("labels", [[3, 7], [False, True], ["a", "b"]])
def test_classes_of_any_kind(labels, table):
    x, y = table
    truth = pd.Series(np.array(labels)[(y > 0).astype(int)]).astype("category")
    estimator = MixtureOfExpertsClassifier(**QUICK, epochs=5).fit(x, truth)
    assert set(estimator.predict(x)) <= set(labels)
    assert estimator.score(x, truth) > 0.8


def test_codes_clusters_and_density_are_those_of_the_fit(table, mixture):
    x, _ = table
    np.testing.assert_array_equal(mixture.transform(x), evaluation.encode(mixture.fit_, x))
    gate = evaluation.gate(mixture.fit_, x).numpy()
    np.testing.assert_array_equal(mixture.predict_proba(x), gate)
    np.testing.assert_array_equal(mixture.labels_, gate.argmax(1))
    np.testing.assert_array_equal(mixture.sample(5, 1), evaluation.sample(mixture.fit_, 5, seed=1))
    bound = evaluation.importance_weighted_bound(mixture.fit_, x, num_samples=64).numpy()
    error = 6 * (mixture.score_samples(x) - bound).std() / np.sqrt(N)
    assert abs(mixture.score(x) - bound.mean()) < error
    assert mixture.get_feature_names_out()[0] == "deepmixture0"


def test_a_story_without_z_has_rows_as_codes(table):
    x, _ = table
    estimator = DeepMixture("gmm", **QUICK).fit(x)
    np.testing.assert_array_equal(estimator.transform(x), x)
    mixture = estimator.fit_.story.mixture
    np.testing.assert_allclose(
        estimator.score_samples(x), mixture.log_joint(torch.from_numpy(x)).logsumexp(-1).detach()
    )


@pytest.mark.parametrize("story", ["deepmoe", "gmmmoe", "vademoe", "dvmoe"])
def test_every_story_with_a_target_is_a_regressor(story, table):
    x, y = table
    options = {} if story == "gmmmoe" else {"hidden": (8,)}
    estimator = MixtureOfExpertsRegressor(story, K, epochs=8, prior="weak", story_options=options)
    fitted = estimator.fit(x, y)
    assert fitted.predict(x).shape == (N,)
    density = fitted.score_samples(x)
    assert (density == 0).all() == (story == "deepmoe")


def test_a_tree_a_class_and_a_module_are_stories(table):
    x, y = table
    quick = {"epochs": 3, "prior": "weak"}
    tree = MixtureOfExpertsRegressor("hierarchicalme", (2, 2), **quick).fit(x, y)
    assert tree.gate(x).shape == (N, 2)
    by_class = MixtureOfExpertsRegressor(models.GMMMoE, K, **quick).fit(x, y)
    module = models.GMMMoE(2, 1, K)
    as_module = MixtureOfExpertsRegressor(module, **quick).fit(x, y)
    np.testing.assert_array_equal(by_class.predict(x), as_module.predict(x))
    assert next(module.parameters()).dtype == torch.float32  # the module is as it was


def test_the_type_of_the_fit_is_that_of_x(table):
    x, y = table
    estimator = MixtureOfExpertsRegressor("deepmoe", **DEEP).fit(x.astype(np.float32), y)
    assert estimator.fit_.data[0].dtype == torch.float32


def test_pipelines_searches_and_copies(table, regressor):
    x, y = table
    frame = pd.DataFrame(x, columns=["dose", "age"])
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), clone(regressor))
    grid = {"mixtureofexpertsregressor__n_components": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(frame, y)
    assert search.best_params_["mixtureofexpertsregressor__n_components"] == 2
    fit = search.best_estimator_[-1].fit_
    assert fit.columns == ("dose", "age")
    assert cross_val_score(clone(regressor), x, y, cv=2).mean() > 0.5
    again = pickle.loads(pickle.dumps(regressor))  # noqa: S301
    np.testing.assert_array_equal(again.predict(x), regressor.predict(x))
    assert "<style>" in regressor._repr_html_()


def test_weights_are_routed_through_a_pipeline(table):
    x, y = table
    weights = np.arange(N) % 2
    with config_context(enable_metadata_routing=True):
        estimator = MixtureOfExpertsRegressor(**QUICK).set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, estimator).fit(x, y, sample_weight=weights)
    assert pipeline[-1].fit_.num_rows == weights.sum()


def test_codes_as_a_frame(table, mixture):
    x, _ = table
    frame = pd.DataFrame(x, columns=["dose", "age"])
    codes = clone(mixture).set_output(transform="pandas").fit_transform(frame)
    assert codes.columns.tolist() == ["deepmixture0", "deepmixture1"]


def test_partial_fits_go_on(table):
    x, y = table
    estimator = MixtureOfExpertsRegressor(n_components=K)
    estimator.partial_fit(x[:40], y[:40])
    first, units = estimator.score_samples(x, y).mean(), estimator.fit_.story.units.loc.clone()
    for _ in range(20):
        estimator.partial_fit(x[20:], y[20:])
    assert estimator.score_samples(x, y).mean() > first
    torch.testing.assert_close(estimator.fit_.story.units.loc, units, **EXACT)


def test_partial_fits_know_classes_of_later_rows(table):
    x, y = table
    truth, low = np.where(y > 0, "up", "down"), y < 0
    estimator = MixtureOfExpertsClassifier(n_components=K)
    with pytest.warns(pyro_moe.DataWarning, match="expected"):
        estimator.partial_fit(x[low], truth[low], classes=["up", "down"])
    estimator.partial_fit(x, truth)
    assert estimator.classes_.tolist() == ["down", "up"]


def test_missing_targets(table):
    x, y = table
    y = np.where(np.arange(N) % 3 == 0, np.nan, y)
    options = {"restarts": 1, "missing_targets": True}
    estimator = MixtureOfExpertsRegressor("gmmmoe", **QUICK | {"fit_options": options}).fit(x, y)
    assert np.isfinite(estimator.predict(x)).all()
    with pytest.raises(ValueError, match="Input y contains NaN"):
        MixtureOfExpertsRegressor("gmmmoe", **QUICK).fit(x, y)


class Wide(models.ME):
    def __init__(self, x_dim, y_dim, num_components, width):
        super().__init__(x_dim, y_dim, num_components)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (MixtureOfExpertsRegressor("mw"), r"expected a story in \(.*'me'.*\); got 'mw'"),
        (MixtureOfExpertsRegressor(3), "expected the name of a story, .*; got 3"),
        (
            MixtureOfExpertsRegressor(story_options={"hiden": 3}),
            "expected story_options of ME, x_dim, .*; got 'hiden'",
        ),
        (
            MixtureOfExpertsRegressor(fit_options={"epochs": 3}),
            "expected fit_options without 'epochs'; got 3",
        ),
        (
            MixtureOfExpertsRegressor(models.ME(2, 1, 2), story_options={"a": 1}),
            r"expected no story_options with a module; got \['a'\]",
        ),
        (MixtureOfExpertsRegressor(epochs=-1), "expected epochs of at least 0; got -1"),
        (MixtureOfExpertsRegressor(random_state=-1), "expected seed .* at least 0; got -1"),
        (MixtureOfExpertsRegressor("gmm"), "expected a story with a target y.*; got GMM"),
        (
            MixtureOfExpertsRegressor(Wide),
            "expected story_options with 'width', for Wide; got none",
        ),
        (DeepMixture("me"), "expected a story of x alone.*; got ME"),
    ],
)
def test_arguments_are_checked(estimator, message, table):
    with pytest.raises(ValueError, match=message):
        estimator.fit(*table)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            pd.DataFrame({"a": [1.0, np.nan, 2.0], "b": [1, 2, 3]}),
            r"expected finite values in X; got NaN in row 1, column 'a' \(1 of 3 rows",
        ),
        (np.array([[1.0], [np.inf], [2.0]]), "expected finite values in X; got inf in row 1"),
        (
            pd.DataFrame({"a": [1.0, 3.0, 2.0], "color": ["red", "blue", "red"]}),
            "expected numbers in X; got 'red' in row 0, column 'color': .* OneHotEncoder",
        ),
        (
            pd.DataFrame({"a": [1.0, 3.0, 2.0], "color": pd.Categorical(["red", "blue", "red"])}),
            "expected numbers in X; got 'red' in row 0, column 'color': .* OneHotEncoder",
        ),
    ],
)
def test_what_is_no_number_is_named(x, message):
    with pytest.raises(DataError, match=message):
        MixtureOfExpertsRegressor().fit(x, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"expected sample_weight of shape \(60,\); got \(1,\)"),
        (np.full(N, -1.0), "expected sample_weight of finite numbers of at least 0, .*; got .*-1"),
        (np.zeros(N), "expected sample_weight .* not all zero; got values from 0 to 0"),
    ],
)
def test_weights_are_checked(weights, message, table):
    with pytest.raises(ValueError, match=message):
        MixtureOfExpertsRegressor(**QUICK).fit(*table, sample_weight=weights)


def test_unknown_classes_are_named(table, classifier):
    with pytest.raises(DataError, match=r"expected classes in \['down', 'up'\]; got 'left'"):
        classifier.score_samples(table[0], np.full(N, "left"))
    with pytest.raises(
        ValueError, match=r"expected at least 2 classes in y; got 1 class, \['up'\]"
    ):
        clone(classifier).fit(table[0], np.full(N, "up"))


def test_log_probabilities_of_classes_do_not_underflow(classifier):
    near, far = [[0.3, -0.2], [-1.0, 1.0]], [[3e4, 3e4], [-3e4, 3e4]]
    expected = np.log(classifier.predict_proba(near))
    np.testing.assert_allclose(classifier.predict_log_proba(near), expected, rtol=1e-9)
    with pytest.warns(DataWarning, match="like those of training"):
        p = classifier.predict_proba(far)
    assert (p == 0).any(1).all()
    with pytest.warns(DataWarning, match="like those of training"):
        log_p = classifier.predict_log_proba(far)
    assert np.isfinite(log_p).all()
    assert (log_p.min(1) < -745).all()
    np.testing.assert_array_equal(log_p.argmax(1), p.argmax(1))


@pytest.mark.parametrize("kind", [MixtureOfExpertsRegressor, MixtureOfExpertsClassifier])
def test_rows_of_x_and_y_in_different_orders_are_refused(table, kind):
    x, y = pd.DataFrame(table[0]), pd.Series(table[1] > 0, dtype=int)
    with pytest.raises(DataError, match="expected rows of x and y in the same order"):
        kind(**QUICK).fit(x, y.iloc[::-1])
