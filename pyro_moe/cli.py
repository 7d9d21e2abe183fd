"""The command line: ``pyro-moe fit STORY --data DATA`` and ``pyro-moe demo``."""

import argparse
import inspect
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from pyro_moe.inference.errors import NonFiniteWarning, SiteError
from pyro_moe.inference.initialise import STARTS
from pyro_moe.inference.objectives import LOSSES
from pyro_moe.models.conditionals import LIKELIHOODS
from pyro_moe.models.mixture import COVARIANCES

from . import datasets, evaluation, plots, runs
from .fitting import Fit, fit
from .rows import Rows

# What a story is made with, and how it is fitted, unless the command line says otherwise.
STORY_DEFAULTS: dict[str, dict[str, Any]] = {
    "spiral": {"num_components": 5, "z_dim": 2},
    "digits": {"num_components": 10, "z_dim": 10, "common_scale": True},
    "mnist": {
        "num_components": 10,
        "z_dim": 10,
        "likelihood": "bernoulli",
        "hidden": (500, 500, 2000),
    },
}
TABLE_DEFAULTS = {"num_components": 3, "z_dim": 10}  # z at most as long as x
FIT_DEFAULTS: dict[str, dict[str, Any]] = {"gmm": {"loss": "em"}}

DEMO = (
    "fit vade --data spiral --epochs 15 --restarts 2",
    "fit dmvae --data spiral --epochs 15 --restarts 2",
    "fit dmvae --data digits --epochs 100 --initialise tsne",
)

EXAMPLES = """examples:
  pyro-moe fit dmvae --data spiral
  pyro-moe fit dmvae --data digits --initialise tsne --out runs/digits
  pyro-moe fit vade --data mnist --data-dir folder/of/mnist --epochs 30
  pyro-moe fit gmm --data table.csv --num-components 4
  pyro-moe demo
"""

SCORES = {
    "test_elbo": "test ELBO, nats per row",
    "importance_weighted_bound": "importance-weighted bound",
    "accuracy": "clustering accuracy",
    "nmi": "normalised mutual information",
    "ari": "adjusted Rand index",
    "effective_components": "effective number of components",
    "seconds": "seconds of training",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and say in one line what was wrong with it if it fails.

    Args:
        argv: The words after ``pyro-moe``; those of this process if None.

    Returns:
        The exit code: 0, 2 if the command or its data were not as expected, or 130 if it was
        interrupted outside training.
    """
    try:
        options = _parser().parse_args(argv)
        options.command(options)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (SiteError, ValueError, ImportError, OSError) as error:
        return _fail(" ".join(str(error).split()), 2)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"pyro-moe: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ordinary ones, for `main` to print."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="pyro-moe",
        description="Fit clustering stories to data.",
        epilog=EXAMPLES,
        formatter_class=layout,
    )
    parser.add_argument("--version", action="version", version=version("pyro-moe"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands.add_parser("fit", help="fit a story and write a run folder"))
    demo = commands.add_parser("demo", help="fit spirals and digits, beside K-means and a mixture")
    demo.add_argument("--out", default="demo", help="folder for the runs (default: %(default)s)")
    demo.add_argument("--quiet", action="store_true", help="no progress bar")
    demo.set_defaults(command=_demo)
    return parser


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("story", choices=runs.STORIES, help="the generative story: %(choices)s", metavar="STORY")
    add("--data", required=True, help="digits, spiral, mnist, or a .csv or .parquet file")
    add("--data-dir", metavar="DIR", help="folder of MNIST's four files (else: downloaded)")
    add("--num-components", type=_whole, metavar="K", help="number of clusters")
    add("--z-dim", type=_whole, metavar="L", help="length of the latent representation")
    add("--likelihood", choices=LIKELIHOODS, help="the family of x given z")
    add("--covariance", choices=COVARIANCES, help="the covariances of the components")
    add("--epochs", type=_whole, help="passes over the data (default: 4,000 steps' worth)")
    add("--restarts", type=_whole, help="starts, of which the best on held-out rows is kept")
    add("--loss", choices=(*LOSSES, "em"), help="the objective (default: marginal; gmm: em)")
    starts = [start for start in STARTS if start != "keep"]
    add("--initialise", choices=starts, help="where training starts (default: random)")
    add("--seed", type=int, help="seed of the fit; the data stay the same (default: 0)")
    add("--device", type=_device, help="where to train, such as cpu or cuda")
    add("--out", metavar="FOLDER", help="run folder; a run there is replaced (default: a new one)")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=_fit)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text!r}")
    return int(text)


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a device of this machine; got {name!r}"
        ) from error
    return name


def _fit(options: argparse.Namespace) -> tuple[Fit, dict[str, float]]:
    """Fit, save, score and draw, in an order that loses nothing to an interruption."""
    train, test = _rows(options)
    arguments = _story_arguments(options, train)
    story: Any = runs.STORIES[options.story](**arguments)
    folder = runs.prepare(options.out or _new_folder(options))
    name = f"{options.story} on {options.data}"
    print(f"{name}: {len(train):,} rows to fit, {len(test):,} to test", flush=True)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)  # it is printed below
        fitted = fit(story.model, story.guide, train, **_fit_arguments(options))
    seconds = time.perf_counter() - started
    save = partial(
        runs.save,
        fitted,
        folder,
        story_name=options.story,
        story_arguments=arguments,
        data_name=options.data,
    )
    save()
    if fitted.stopped:
        epochs = len(fitted.history)
        print(f"stopped after {epochs} epochs ({fitted.stopped}); what was learned is kept")
    scores = {**_scores(fitted, test), "seconds": seconds}
    save(scores=scores)
    for key, value in scores.items():
        print(f"  {SCORES[key]:<32}{value:>10.4g}")
    print(f"run folder: {folder}")
    for picture, figure in plots.pictures(fitted, test).items():
        path = folder / f"{picture}.png"
        figure.savefig(path, dpi=150)
        print(f"  {path}")
    return fitted, scores


def _rows(options: argparse.Namespace) -> tuple[Rows, Rows]:
    likelihood = options.likelihood or STORY_DEFAULTS.get(options.data, {}).get("likelihood")
    if options.data == "mnist":
        return datasets.mnist(options.data_dir, binary=likelihood == "bernoulli")
    return datasets.load(options.data)


def _story_arguments(options: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    """What to make the story with: defaults of the data, then what the command line says."""
    x_dim = rows.x.shape[1]
    table = {**TABLE_DEFAULTS, "z_dim": min(x_dim, TABLE_DEFAULTS["z_dim"])}
    names = ("num_components", "z_dim", "likelihood", "covariance")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    known = inspect.signature(runs.STORIES[options.story]).parameters
    for name in given:
        if name not in known:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"expected options of {options.story}; got {option}")
    arguments = {"x_dim": x_dim, **STORY_DEFAULTS.get(options.data, table), **given}
    return {name: value for name, value in arguments.items() if name in known}


def _fit_arguments(options: argparse.Namespace) -> dict[str, Any]:
    names = ("epochs", "restarts", "loss", "initialise", "seed", "device")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    defaults = FIT_DEFAULTS.get(options.story, {})
    return {**defaults, **given, "progress": not options.quiet}


def _new_folder(options: argparse.Namespace) -> Path:
    """The first of runs/STORY-DATA, runs/STORY-DATA-2, … that is not there yet."""
    first = Path("runs", f"{options.story}-{Path(options.data).stem}")
    later = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return first if not first.exists() else next(path for path in later if not path.exists())


def _scores(fitted: Fit, test: Rows) -> dict[str, float]:
    bounds = {
        "test_elbo": evaluation.elbo(fitted, test),
        "importance_weighted_bound": evaluation.importance_weighted_bound(fitted, test),
    }
    scores = {name: bound.mean().item() for name, bound in bounds.items()}
    try:
        g = evaluation.gate(fitted, test)
    except SiteError:  # a story without clusters
        return scores
    if test.labels is not None:
        scores |= evaluation.clustering_scores(g, test.labels)
    scores["effective_components"] = torch.special.entr(g.mean(0)).sum().exp().item()
    return scores


def _demo(options: argparse.Namespace) -> None:
    """Run the commands of `DEMO`, and print their accuracies beside those of baselines."""
    torch.set_num_threads(1)  # small networks: threads cost more than they give
    table = []
    for line in DEMO:
        words = line.split()
        chosen = _parser().parse_args([*words, *(["--quiet"] if options.quiet else [])])
        chosen.out = Path(options.out, f"{chosen.story}-{chosen.data}")
        print(f"$ pyro-moe {line} --out {chosen.out}", flush=True)
        fitted, scores = _fit(chosen)
        print()
        if fitted.stopped == "interrupted":
            raise KeyboardInterrupt
        table.append((chosen.data, chosen.story, scores))
    for data in dict.fromkeys(data for data, _, _ in table):
        table += [(data, name, scores) for name, scores in _baselines(data)]
    names = ("accuracy", "nmi", "ari", "seconds")
    print(f"{'data':<8}{'method':<18}" + "".join(f"{name:>10}" for name in names))
    for data, method, scores in sorted(table, key=lambda row: row[0]):
        print(f"{data:<8}{method:<18}" + "".join(f"{scores[name]:>10.3f}" for name in names))


def _baselines(data: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Scores on test rows of what scikit-learn makes of the training rows."""
    train, test = datasets.load(data)
    number = STORY_DEFAULTS[data]["num_components"]
    clusterers = {
        "K-means": KMeans(number, n_init=10, random_state=0),
        "Gaussian mixture": GaussianMixture(number, n_init=10, reg_covar=1e-3, random_state=0),
    }
    for name, clusterer in clusterers.items():
        started = time.perf_counter()
        clusters = clusterer.fit(train.x.numpy()).predict(test.x.numpy())
        seconds = time.perf_counter() - started
        yield (
            name,
            {**evaluation.clustering_scores(clusters, np.asarray(test.labels)), "seconds": seconds},
        )


if __name__ == "__main__":
    sys.exit(main())
