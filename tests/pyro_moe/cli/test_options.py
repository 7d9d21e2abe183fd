"""Options are parsed before torch is imported, with the names that the library has."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pyro_moe import cli, runs
from pyro_moe.cli import options
from pyro_moe.cli.fits.training import fit_arguments
from pyro_moe.cli.options import names
from pyro_moe.fitting.annotations import WEIGHT_TYPES
from pyro_moe.inference.initialize import STARTS
from pyro_moe.inference.objectives import LOSSES
from pyro_moe.mixtures.entry import FAMILIES as OF_FORMULAS
from pyro_moe.models.parts import conditionals, experts, mixture

LIBRARY = {
    "STORIES": tuple(runs.STORIES),
    "FAMILIES": experts.FAMILIES,
    "OF_FORMULAS": OF_FORMULAS,
    "CONTEXTS": experts.CONTEXTS,
    "LIKELIHOODS": conditionals.LIKELIHOODS,
    "COVARIANCES": mixture.COVARIANCES,
    "LOSSES": LOSSES,
    "STARTS": STARTS,
    "WEIGHT_TYPES": WEIGHT_TYPES,
}
COMMANDS = sorted(Path(command.__file__).stem for command in options.COMMANDS)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_options_offer_the_names_of_the_library(name):
    assert getattr(names, name) == LIBRARY[name]


def test_no_other_names_are_written_twice():
    assert {name for name in vars(names) if name.isupper()} == {*LIBRARY, "WITHOUT_TREES"}
    assert [*names.STORIES] == [
        *names.WITHOUT_TREES[:6],
        "hierarchicalme",
        *names.WITHOUT_TREES[6:],
    ]


def test_each_command_has_options_and_a_run():
    folder = Path(cli.__file__).parent
    for name in COMMANDS:
        assert "def run(" in Path(folder, f"{name}.py").read_text(encoding="utf-8")
    assert cli.parser().format_help().count("pyro-moe fit dvmoe") == 1
    (choices,) = (a.choices for a in cli.parser()._actions if a.choices)
    assert sorted(choices) == COMMANDS


def test_steps_are_computed_as_asked():
    words, parse = ["fit", "dvmoe", "--data", "spirals"], cli.parser().parse_args
    given = fit_arguments(parse([*words, "--compile", "no", "--bfloat16"]))
    assert (given["compile"], given["bfloat16"]) == (False, True)
    assert not {"compile", "bfloat16"} & set(fit_arguments(parse(words)))


PARSED = """
import sys
sys.argv[0] = "pyro-moe"
import pyro_moe_program
try:
    code = pyro_moe_program.main()
except SystemExit as ended:
    code = ended.code
heavy = {"torch", "pyro", "numpy", "pandas", "scipy", "sklearn", "matplotlib"}
print(code, *sorted(heavy & sys.modules.keys()))
"""


def parsed(*line):
    """The exit code of a command, and the heavy libraries that it has imported."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PARSED, *line],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.sep,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("line", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)])
def test_help_is_printed_without_libraries(line):
    assert parsed(*line) == "0"


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["nothing"],
        ["fit"],
        ["fit", "no such story", "--data", "spiral"],
        ["fit", "dmvae", "--data", "spiral", "--loss", "no such loss"],
        ["fit", "dmvae", "--data", "spiral", "--epochs", "0"],
        ["fit", "dmvae", "--data", "spiral", "--device", "cpu", "--no-such-option"],
        ["new", "my_story.py", "--from", "no such story"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_told_without_libraries(line):
    assert parsed(*line) == "2"


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{version('pyro-moe')}\n"
