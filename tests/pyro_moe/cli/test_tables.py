"""The commands read a table as it is written, and ask what its targets are."""

import pandas as pd
import pytest
import torch

from pyro_moe import cli, datasets, plots, runs

NOTATION = {"sep": ";", "decimal": ",", "encoding": "latin-1"}


@pytest.fixture
def frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "pictures", lambda fit, rows: {})
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).double()
    frame = pd.DataFrame(x.numpy(), columns=["größe", "age"])
    frame["price"] = 2 * frame["age"] - frame["größe"]
    frame["kind"] = (frame["age"] > 0).astype(int) + (frame["größe"] > 0)
    frame["country"] = frame["kind"].map({0: "DE", 1: "FR", 2: "NA"})
    frame.index.name = "id"
    return frame


def run(*line):
    assert cli.main(line) == 0


def fit(story, *line):
    run(
        "fit",
        story,
        "--epochs",
        "2",
        "--num-components",
        "2",
        "--prior",
        "weak",
        "--quiet",
        "--out",
        "run",
        *line,
    )


def fails(capsys, *line):
    capsys.readouterr()
    assert cli.main(line) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message.removeprefix("pyro-moe: ").strip()


def test_every_command_reads_a_table_as_it_was_fitted(frame, capsys):
    frame[["größe", "age", "price"]].to_csv("my.csv", **NOTATION)
    options = ("--sep", ";", "--decimal", ",", "--encoding", "latin-1", "--index", "id")
    fit("me", "--data", "my.csv", "--target", "price", *options)
    settings = runs.settings_of("run")
    assert settings["columns"] == ["größe", "age"]
    assert {name: settings["source"][name] for name in NOTATION} == NOTATION
    assert settings["source"]["index"] == ["id"]
    _, train, test = runs.restore("run")
    expected = datasets.load("my.csv", target="price", index="id", **NOTATION)
    assert torch.equal(train.x, expected[0].x)
    assert torch.equal(test.y, expected[1].y)
    run("check", "run", "--replicates", "20")
    run("report", "run")
    run("compare", "run", "--data", "my.csv")
    run("predict", "run", "--data", "my.csv", "--out", "predictions.csv")
    assert capsys.readouterr().err == ""


def test_another_notation_of_new_data_is_asked_for(frame, capsys):
    frame[["größe", "age", "price"]].to_csv("my.csv", index=False, **NOTATION)
    notation = ("--sep", ";", "--decimal", ",", "--encoding", "latin-1")
    fit("me", "--data", "my.csv", "--target", "price", *notation)
    run("predict", "run", "--data", "my.csv", "--out", "first.csv")
    frame.to_csv("new.csv", index=False)
    commands = {
        "check": ("--replicates", "20"),
        "report": (),
        "compare": (),
        "predict": ("--out", "second.csv"),
    }
    for command, others in commands.items():
        line = (command, "run", "--data", "new.csv", *others)
        assert fails(capsys, *line).endswith("try sep=',' (on the command line, --sep ',')")
        run(*line, "--sep", ",", "--decimal", ".", "--encoding", "utf-8")
    pd.testing.assert_frame_equal(
        pd.read_csv("second.csv"), pd.read_csv("first.csv"), check_exact=False, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["my.csv.gz", "my.tsv", "my.txt"])
def test_the_run_folder_is_named_after_the_table(frame, name, tmp_path):
    sep = "\t" if name.endswith("tsv") else ","
    frame[["größe", "age"]].to_csv(name, index=False, sep=sep)
    run("fit", "gmm", "--data", name, "--epochs", "1", "--num-components", "1", "--quiet")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["gmm-my"]


@pytest.mark.filterwarnings("default:left out column")
def test_what_is_left_out_of_a_table_is_printed(frame, capsys):
    frame[["age", "price"]].reset_index(drop=True).to_csv("my.csv")
    fit("me", "--data", "my.csv", "--target", "price")
    assert "left out column 'Unnamed: 0' of my.csv" in capsys.readouterr().err
    assert runs.settings_of("run")["columns"] == ["age"]
    run("report", "run")
    assert capsys.readouterr().err == ""


def test_a_class_called_na_is_fitted_and_predicted(frame, capsys):
    frame[["age", "größe", "country"]].to_csv("my.csv", index=False)
    fit("me", "--data", "my.csv", "--target", "country", "--experts", "categorical")
    assert "country: DE = 0, FR = 1, NA = 2\n" in capsys.readouterr().out
    run("predict", "run", "--data", "my.csv", "--out", "predictions.csv")
    predicted = pd.read_csv("predictions.csv", keep_default_na=False)
    assert set(predicted["country"]) <= {"DE", "FR", "NA"}
    assert "country_is_NA" in predicted


@pytest.mark.filterwarnings("default:expected targets:pyro_moe.DataWarning")
def test_the_family_of_targets_that_look_like_classes_is_asked_for(frame, capsys, tmp_path):
    frame[["age", "größe", "kind"]].to_csv("my.csv", index=False)
    line = ("fit", "dvmoe", "--data", "my.csv", "--target", "kind")
    assert fails(capsys, *line) == (
        "expected --experts categorical (classes), bernoulli (0 and 1), poisson (counts), normal "
        "(measurements) or another family, because column 'kind' has only the values 0, 1, 2; "
        "got none"
    )
    assert not (tmp_path / "runs").exists()
    line = ("me", "--data", "my.csv", "--target", "kind", "--experts")
    for family in ("categorical", "poisson"):
        fit(*line, family)
    capsys.readouterr()
    fit(*line, "normal")
    assert "few ties for a density; got 3 values in steps of 1" in capsys.readouterr().err


def test_missing_and_boolean_targets_are_asked_about_too(frame, capsys):
    frame["kind"] = frame["kind"].where(frame["age"] < 1)
    frame["sold"] = frame["age"] > 0
    frame[["age", "größe", "kind", "sold"]].to_csv("my.csv", index=False)
    line = ("fit", "dvmoe", "--data", "my.csv", "--missing-targets", "--target")
    columns = ("--columns", "age", "größe")
    assert "column 'kind' has only the values 0, 1, 2;" in fails(capsys, *line, "kind", *columns)
    assert "column 'sold' has only the values 0, 1;" in fails(capsys, *line, "sold", *columns)


def test_options_of_a_table_are_refused_for_other_data(frame, capsys):
    for option in ("index", "sep", "decimal", "encoding"):
        assert fails(capsys, "fit", "gmm", "--data", "spiral", f"--{option}", ",") == (
            f"expected --{option} with a table; got it with data spiral"
        )
