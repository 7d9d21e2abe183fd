"""``pyro-moe fit --formula`` is `mixture`, and the other commands know the formula of a run."""

import numpy as np
import pandas as pd
import pytest

from pyro_moe import datasets, mixture, runs
from pyro_moe.cli import main
from pyro_moe.datasets.reading import Format, read

FORMULA = "y ~ dose + country | dose"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    component, dose = rng.integers(0, 2, 160), rng.uniform(0.0, 5.0, 160).round(3)
    rows = pd.DataFrame(
        {
            "dose": dose,
            "country": rng.choice(["DE", "FR", "NA"], 160),
            "firm": np.repeat(np.arange(40), 4),
            "y": np.where(component, 1 + 2 * dose, 9 - dose) + rng.normal(0, 0.5, 160).round(3),
            "known": np.where(np.arange(160) % 40 == 8, 0, np.nan),
            "died": np.where(component, "yes", "no"),
        }
    )
    rows.loc[3, "dose"] = None
    rows.to_csv(folder / "t.csv", index=False)
    others = rows.drop(columns=["y", "died", "known"])
    others[rows["country"] == "NA"].dropna().head(2).to_csv(folder / "new.csv", index=False)
    assert main(command(folder, "me", FORMULA, out="me")) == 0
    return folder


def command(folder, story, *formula, out="run", options=("--drop-missing", "--restarts", "1")):
    return [
        *("fit", story, "--data", str(folder / "t.csv"), "--out", str(folder / out), "--quiet"),
        *options,
        "--formula",
        *formula,
    ]


def frame(folder):
    return read(folder / "t.csv", Format())


def test_the_command_is_the_call(folder, capsys):
    fit = mixture(FORMULA, frame(folder), missing="drop", restarts=1)
    restored, train, test = runs.restore(folder / "me")
    assert restored.params.equals(fit.params)
    assert restored.bse.equals(fit.bse)
    assert train is test
    assert len(train) == 159
    assert main(command(folder, "me", FORMULA, out="again")) == 0
    assert str(fit.summary()) in capsys.readouterr().out


def test_all_options_are_those_of_the_call(folder):
    options = {"weights": "firm", "groups": "firm", "shared": ["dose"], "order": "country[T.FR]"}
    options |= {"labels": "known", "weight_type": "sampling"}
    words = [
        f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name != "shared"
    ]
    given = ("--drop-missing", "--restarts", "1", "--shared", "dose", "--seed", "3", *words)
    assert main(command(folder, "me", "y ~ dose + country", out="o", options=given)) == 0
    fit = mixture(
        "y ~ dose + country", frame(folder), missing="drop", restarts=1, seed=3, **options
    )
    assert runs.restore(folder / "o")[0].params.equals(fit.params)


def test_new_texts_are_levels_also_if_they_look_like_gaps(folder, capsys):
    out = folder / "p.csv"
    assert (
        main(["predict", str(folder / "me"), "--data", str(folder / "new.csv"), "--out", str(out)])
        == 0
    )
    new = pd.read_csv(folder / "new.csv", keep_default_na=False)
    assert new["country"].tolist() == ["NA", "NA"]
    mean = runs.restore(folder / "me")[0].predict(new).mean.flatten()
    np.testing.assert_allclose(pd.read_csv(out)["y"], mean, rtol=1e-12)


def test_a_deep_story_by_formula_is_that_by_columns(folder, capsys):
    given = ("--drop-missing", "--epochs", "1", "--test-share", "0.25")
    assert main(command(folder, "deepmoe", "y ~ dose", out="d", options=given)) == 0
    assert "120 rows to fit, 40 to test" in capsys.readouterr().out
    restored, train, test = runs.restore(folder / "d")
    assert len(train) + len(test) == 159
    rows = read(folder / "t.csv", Format())
    left = np.sort(np.random.default_rng(0).permutation(160)[40:])
    fit = mixture("y ~ dose", rows.iloc[left], missing="drop", story="deepmoe", epochs=1)
    assert fit.params.equals(restored.params)
    assert main(["check", str(folder / "d"), "--replicates", "20"]) == 0
    assert "rows that were not fitted" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["check", "compare", "report"])
def test_the_other_commands_take_the_run(folder, capsys, name):
    options = ["--replicates", "20"] if name == "check" else []
    assert main([name, str(folder / "me"), *options]) == 0
    out = capsys.readouterr().out
    assert "159 rows that were fitted" in out or name == "report"


def test_classes_have_their_names_in_predictions(folder):
    out = folder / "classes.csv"
    given = ("--drop-missing", "--restarts", "1", "--family", "bernoulli")
    assert main(command(folder, "me", "died ~ dose", out="b", options=given)) == 0
    assert (
        main(["predict", str(folder / "b"), "--data", str(folder / "new.csv"), "--out", str(out)])
        == 0
    )
    found = pd.read_csv(out)
    assert set(found["died"]) <= {"yes", "no"}
    np.testing.assert_allclose(found["died_is_yes"] + found["died_is_no"], 1.0)


@pytest.mark.parametrize(
    ("story", "formula", "options", "message"),
    [
        ("me", "y ~ dose", (), "--drop-missing) leaves such rows out"),
        ("me", "y ~ nothing", (), "expected a column 'nothing'"),
        ("me", "y dose", (), "expected a formula"),
        ("me", "died ~ firm", (), "expected numbers in the target 'died'; got 'no'"),
        ("me", "y ~ firm", ("--target", "y"), "expected no --target with --formula"),
        ("me", "y ~ firm", ("--experts", "normal"), "--family names families"),
        ("me", "y ~ firm", ("--family", "no"), "invalid choice: 'no'"),
        ("me", "y ~ firm", ("--offset", "firm | y"), "expected offset that is a column"),
        ("me", "y ~ firm", ("--test-share", "1"), "a test share of at least 0 and below 1"),
        ("me", "y ~ firm", ("--loss", "marginal"), "expected no --loss with story me"),
        ("me", "y ~ firm", ("--z-dim", "2"), "expected story_options of ME"),
        ("gmm", "y ~ firm", (), "expected a story with a target"),
        ("dvmoe", "y ~ firm", ("--groups", "firm"), "expected a story whose targets are given c"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, capsys, story, formula, options, message):
    assert main(command(folder, story, formula, out="bad", options=options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "bad").exists()


@pytest.mark.parametrize("option", ["--offset", "--trials", "--family", "--test-share"])
def test_options_of_a_formula_need_one(folder, capsys, option):
    words = ["fit", "me", "--data", str(folder / "t.csv"), "--target", "y", option]
    value = {"--family": "poisson", "--test-share": "0.3"}.get(option, "firm")
    assert main([*words, value]) == 2
    assert f"expected --formula with {option}" in capsys.readouterr().err


def test_a_program_in_a_formula_needs_trust(folder, capsys):
    given = ("--drop-missing", "--restarts", "1")
    assert main(command(folder, "me", "y ~ dose.clip(0, 3)", out="q", options=given)) == 0
    assert main(["compare", str(folder / "q")]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main(["compare", str(folder / "q"), "--trust"]) == 0


def test_texts_are_kept_as_they_are_written(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\nNA,1\n,2\n")
    assert read(path, Format())["a"].isna().all()
    assert read(path, Format(), ["a"])["a"].tolist()[0] == "NA"
    assert read(path, Format(), ["b"])["b"].tolist() == ["1", "2"]
    assert datasets.table(path, columns=["b"]).x.tolist() == [[1.0], [2.0]]


def test_two_formulas_of_a_table_are_compared(folder, capsys):
    assert main(command(folder, "me", "y ~ dose", out="shorter")) == 0
    capsys.readouterr()
    names = [str(folder / name) for name in ("me", "shorter")]
    assert main(["compare", *names]) == 0
    output = capsys.readouterr().out
    for name in names:
        fit, train, _ = runs.restore(name)
        mean = fit.predict(train.x).log_prob(train.y).mean()
        (line,) = (line for line in output.splitlines() if line.startswith(f"{name} "))
        assert f"{mean:.4f}" in line
