import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, DataWarning, EmptyComponentWarning
from pyro_moe.models import DMVAE, GMM, ME, VAE, DeepMoE, DVMoE, VaDE
from pyro_moe.validation import check, check_components, empty, starving
from pyro_moe.validation import story as story_checks

D, K = 3, 4

STORIES = {
    "gmm": (lambda: GMM(D, K), K),
    "vae": (lambda: VAE(D, 2, hidden=(4,)), None),
    "vade": (lambda: VaDE(D, 2, K, hidden=(4,)), K),
    "dmvae": (lambda: DMVAE(D, 2, K, hidden=(4,)), K),
}


def observing(site, distribution, column=0):
    """A model that observes one column of the data at one site."""

    def model(*columns):
        with pyro.plate("data", len(columns[0])):
            pyro.sample(site, distribution, obs=columns[column])

    return model


def nothing(*columns):
    pass


@pytest.mark.parametrize("name", STORIES)
def test_the_number_of_components_is_read_off_the_model(name):
    make, expected = STORIES[name]
    story = make()
    assert check(story.model, story.guide, (torch.randn(9, D),)) == expected


@pytest.mark.parametrize("relaxed", [True, False])
def test_the_assignment_may_be_written_relaxed_or_discrete(relaxed):
    def model(x):
        logits = torch.zeros(K)
        c = dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits)
        with pyro.plate("data", len(x)):
            pyro.sample("c", c if relaxed else dist.OneHotCategorical(logits=logits))
            pyro.sample("x", dist.Normal(torch.zeros(D), 1.0).to_event(1), obs=x)

    assert check(model, nothing, (torch.randn(9, D),)) == K


def test_as_many_rows_as_components_are_enough():
    story = GMM(D, K)
    assert check(story.model, story.guide, (torch.randn(K, D),)) == K
    with pytest.raises(DataError, match="at least as many rows as components, 4; got 3"):
        check(story.model, story.guide, (torch.randn(K - 1, D),))


def test_the_width_that_a_story_names_is_expected():
    story = VAE(D, 2)
    with pytest.raises(DataError, match="expected x with x_dim=3 columns; got 2"):
        check(story.model, story.guide, (torch.randn(9, 2),))


def test_the_width_is_expected_of_a_story_that_a_plain_function_uses():
    story = VAE(D, 2)

    def model(x):
        story.model(x)

    with pytest.raises(DataError, match="expected x with x_dim=3 columns; got 2"):
        check(model, nothing, (torch.randn(9, 2),))


@pytest.mark.parametrize("row", [0, 5, 4095, 4096, 4999])
def test_the_first_impossible_row_is_named_also_in_later_batches(row):
    x = torch.ones(5000, D)
    x[row, 1] = 2.0
    x[4500:, 2] = torch.where(torch.arange(4500, 5000) > row, 3.0, 1.0)  # later ones are not
    model = observing("x", dist.Bernoulli(0.5).expand([D]).to_event(1))
    with pytest.raises(DataError, match=rf"site 'x' .*Boolean\(\); got 2 in row {row}$"):
        check(model, nothing, (x,))


@pytest.mark.filterwarnings("ignore:expected rows of each of 3 classes")
@pytest.mark.parametrize(
    ("distribution", "value"),
    [
        (dist.Bernoulli(0.5), -1.0),
        (dist.ContinuousBernoulli(0.5), 1.5),
        (dist.Poisson(1.0), -2.0),
        (dist.Gamma(1.0, 1.0), -0.25),
        (dist.Categorical(torch.ones(3)), 3.0),
    ],
)
def test_a_target_outside_its_support_is_named(distribution, value):
    y = torch.ones(9)
    if isinstance(distribution, dist.ContinuousBernoulli):
        y = y / 2
    check(observing("y", distribution, 1), nothing, (torch.zeros(9, D), y))  # possible
    y[7] = value
    with pytest.raises(DataError, match=f"values of site 'y' in the support .*{value:g} in row 7"):
        check(observing("y", distribution, 1), nothing, (torch.zeros(9, D), y))


@pytest.mark.parametrize(("value", "hinted"), [(0.5, True), (2.0, False), (-0.5, False)])
def test_the_continuous_bernoulli_is_suggested_for_gray_values_only(value, hinted):
    x = torch.zeros(9, D)
    x[4, 2] = value
    model = observing("x", dist.Bernoulli(0.5).expand([D]).to_event(1))
    with pytest.raises(DataError) as caught:
        check(model, nothing, (x,))
    assert ("likelihood='continuous-bernoulli'" in str(caught.value)) == hinted


def test_zero_and_one_are_possible_for_both_bernoullis():
    x = torch.tensor([[0.0, 1.0, 1.0]]).expand(9, D)
    for likelihood in ("bernoulli", "continuous-bernoulli"):
        story = VAE(D, 2, likelihood=likelihood)
        assert check(story.model, story.guide, (x,)) is None


def test_a_check_leaves_no_trace():
    pyro.param("mine", torch.tensor(3.0))
    state, names = torch.get_rng_state(), list(pyro.get_param_store().keys())
    validates = torch.distributions.Distribution._validate_args

    def model(x):
        pyro.param("other", torch.zeros(()))
        observing("x", dist.Normal(torch.randn(D), 1.0).to_event(1))(x)

    check(model, nothing, (torch.zeros(9, D),))
    assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    assert list(pyro.get_param_store().keys()) == names
    assert torch.distributions.Distribution._validate_args == validates


def test_a_class_without_rows_is_named():
    story = ME(D, 4, 2, experts="categorical")
    x, y = torch.randn(9, D), torch.arange(9) % 2
    with pytest.warns(DataWarning, match="rows of each of 4 classes; got none of 2, 3"):
        check(story.model, story.guide, (x, y))


def test_targets_of_another_width_are_an_error_in_one_line():
    story = ME(D, 2, 2)
    with pytest.raises(DataError, match=r"^expected y with 2 columns; got 3$"):
        check(story.model, story.guide, (torch.randn(9, D), torch.randn(9, 3)))


def test_a_component_that_ends_without_rows_is_named():
    story = GMM(D, 3)
    x = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        story.mixture.loc[1] += 1e3
    expected = "rows for each of 3 components; got none for 1: try fewer components"
    with pytest.warns(EmptyComponentWarning, match=expected):
        pyro_moe.fit(
            story.model, story.guide, x, initialize="keep", epochs=1, prior="none", progress=False
        )


def test_components_with_hardly_any_rows_are_told_from_those_with_none():
    counts = torch.tensor([0.4, 0.6, 2.9, 3.1, 60.0])  # mean 13.4
    assert empty(counts) == [0]
    assert starving(counts, x_dim=2) == [1]  # less than a tenth of an equal share
    assert starving(counts * 10, x_dim=2) == []  # more than D + 1
    assert starving(counts * 10, x_dim=9) == [0, 1]


def test_a_component_with_hardly_any_rows_is_warned_of():
    """Two rows far away from 98 others, as a component of their own."""
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    x[:2] += 100.0
    r = torch.zeros(100, 2)
    r[:2, 0], r[2:, 1] = 1.0, 1.0
    story = GMM(4, 2)
    expected = "rows for each of 2 components; got few for 0: try fewer components"
    with pytest.warns(EmptyComponentWarning, match=expected):
        pyro_moe.fit(
            story.model,
            story.guide,
            x,
            loss="em",
            initialize=r,
            epochs=3,
            prior="none",
            progress=False,
        )


@pytest.mark.parametrize("story", [ME, DeepMoE, DVMoE])
@pytest.mark.parametrize(
    ("family", "value", "message"),
    [
        ("categorical", -1.0, "values of site 'y' in the support .* upper_bound=2.*; got -1 in"),
        ("categorical", 3.0, "values of site 'y' in the support .* upper_bound=2.*; got 3 in"),
        ("poisson", -2.0, "values of site 'y' in the support .*; got -2 in"),
        (
            "normal",
            1e30,
            "targets below 2e[+]19, whose squares torch.float32 can hold; got 1e[+]30 in",
        ),
    ],
)
def test_targets_that_a_guide_cannot_look_at_are_named(story, family, value, message):
    latent = {"z_dim": 2} if story is DVMoE else {}
    y_dim = 3 if family == "categorical" else 1
    moe = story(D, y_dim, K, experts=family, **latent)
    y = torch.arange(9) % 3.0
    y[7] = value
    with pytest.raises(DataError, match=f"^expected {message} row 7$"):
        check(moe.model, moe.guide, (torch.randn(9, D), y))


def test_a_story_that_cannot_be_run_is_an_error_in_one_line():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x @ torch.ones(D + 1, D), 1.0).to_event(1), obs=x)

    with pytest.raises(DataError, match=r"^expected a story that runs on these rows; got: [^\n]*$"):
        check(model, nothing, (torch.zeros(9, D),))


def test_experts_without_targets_to_learn_from_are_an_error():
    story = ME(D, 1, K)
    with pytest.raises(DataError, match=r"^expected data \(x, y\), for the .* 'y'; got x alone$"):
        check(story.model, story.guide, (torch.randn(9, D),))
    assert check(story.model, story.guide, (torch.randn(9, D),), learns=False) == K


def of_plain_functions(x):
    loc = pyro.param("loc", torch.zeros(D))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def test_a_column_that_single_precision_hardly_resolves_is_named():
    """Unless the story standardizes, and so can be fitted in double precision."""
    x = torch.randn(60, D, dtype=torch.float64)
    x[:, 1] = 1.7e9 + 86400 * x[:, 1]
    expected = r"columns that torch.float32 resolves; got a median of 1.7e\+09 .* in column 1 of x"
    settings = {"epochs": 1, "prior": "none", "progress": False}
    with pytest.warns(DataWarning, match=expected) as seen:
        pyro_moe.fit(of_plain_functions, nothing, x, **settings)
    assert seen[0].filename == __file__
    story = GMM(D, 2)
    for choices in ({"loss": "em"}, {"loss": "marginal"}):
        fitted = pyro_moe.fit(story.model, story.guide, x, **choices, **settings)
        assert fitted.data[0].dtype == torch.float64


def test_components_may_have_their_rows_at_the_end():
    story = GMM(D, 2)
    x = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
    x[40:] += 50.0
    settings = {"loss": "em", "epochs": 9, "prior": "none", "progress": False}
    run = pyro_moe.fit(story.model, story.guide, x, **settings)
    check_components(run, rows=10)  # without a warning


# Many rows

MANY = 20


@pytest.fixture
def few_are_enough(monkeypatch):
    """A check by blocks of 4,096 rows, of which the first must run."""
    monkeypatch.setattr(story_checks, "ENOUGH", 4096)
    return 2 * 4096 + MANY


def counted(model):
    """A model, and the numbers of rows that it is run on."""
    seen: list[int] = []

    def run(*columns):
        seen.append(len(columns[0]))
        return model(*columns)

    return run, seen


def test_of_many_rows_some_are_run_if_supports_are_known(few_are_enough):
    columns = torch.zeros(few_are_enough, 1), torch.ones(few_are_enough)
    model, seen = counted(observing("y", dist.Poisson(2.0), column=1))
    check(model, nothing, columns, learns=False)
    assert seen == [4096]
    model, seen = counted(observing("y", dist.Poisson(2.0), column=1))
    check(model, nothing, (columns[1][:, None], columns[1]), learns=False)
    assert seen == [4096, 4096, MANY]  # either column may be the observed one
    model, seen = counted(lambda x, y: observing("y", dist.Poisson(2.0))(y + 1))
    check(model, nothing, columns, learns=False)
    assert seen == [4096, 4096, MANY]


@pytest.mark.parametrize("row", [5000, 2 * 4096 + 3])
def test_an_impossible_value_of_a_row_that_is_not_run_is_found(row, few_are_enough):
    counts = torch.ones(few_are_enough)
    counts[row] = 0.5
    model = observing("y", dist.Poisson(2.0), column=1)
    with pytest.raises(DataError, match=f"in the support .*; got 0.5 in row {row}$"):
        check(model, nothing, (torch.zeros(few_are_enough, 1), counts), learns=False)


def test_rows_run_where_supports_or_values_depend_on_them(few_are_enough):
    trials = torch.full((few_are_enough,), 5.0)
    trials[-1] = 2.0
    counts = torch.full((few_are_enough,), 3.0)

    def binomial(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Binomial(x[:, 0], torch.tensor(0.5)), obs=y)

    with pytest.raises(DataError, match=f"bound=2.0.; got 3 in row {few_are_enough - 1}$"):
        check(binomial, nothing, (trials[:, None], counts), learns=False)

    def clamped(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson(2.0), obs=y.clamp(min=0.0))

    counts[-1] = -1.0
    check(clamped, nothing, (trials[:, None], counts), learns=False)
