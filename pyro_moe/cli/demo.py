"""``pyro-moe demo``: a few fits, beside what K-means and a mixture make of the same rows."""

import argparse
from pathlib import Path
from typing import Any

import torch

from pyro_moe.demo import COMMANDS, baselines

from . import choices, fit


def add(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = commands.add_parser(
        "demo", help="fit spirals and digits, beside K-means and a mixture"
    )
    parser.add_argument("--out", default="demo", help="folder for the runs (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Run the commands of the demo, and print their accuracies beside those of baselines."""
    torch.set_num_threads(1)  # small networks: threads cost more than they give
    parser = argparse.ArgumentParser()
    fit.add(parser.add_subparsers())
    table = []
    for line in COMMANDS:
        chosen = parser.parse_args([*line.split(), *(["--quiet"] if options.quiet else [])])
        chosen.out = Path(options.out, f"{chosen.story}-{chosen.data}")
        print(f"$ pyro-moe {line} --out {chosen.out}", flush=True)
        fitted, scores = fit.run(chosen)
        print()
        if fitted.stopped == "interrupted":
            raise KeyboardInterrupt
        table.append((chosen.data, chosen.story, scores))
    for data in dict.fromkeys(data for data, _, _ in table):
        number = choices.STORY_DEFAULTS[data]["num_components"]
        table += [(data, name, scores) for name, scores in baselines(data, number)]
    names = ("accuracy", "nmi", "ari", "seconds")
    print(f"{'data':<8}{'method':<18}" + "".join(f"{name:>10}" for name in names))
    for data, method, scores in sorted(table, key=lambda row: row[0]):
        print(f"{data:<8}{method:<18}" + "".join(f"{scores[name]:>10.3f}" for name in names))
