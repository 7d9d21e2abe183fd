"""The command line: ``pyro-moe fit``, ``predict``, ``reproduce`` and ``demo``."""

import argparse
import inspect
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pyro_moe.inference.errors import EmptyComponentWarning, NonFiniteWarning, SiteError
from pyro_moe.inference.initialise import STARTS
from pyro_moe.inference.objectives import LOSSES
from pyro_moe.models.conditionals import LIKELIHOODS
from pyro_moe.models.experts import CONTEXTS, FAMILIES
from pyro_moe.models.mixture import COVARIANCES

from . import datasets, evaluation, plots, runs, table1
from .demo import COMMANDS, baselines
from .fitting import Fit, fit
from .marginals import has_classes
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
FIT_DEFAULTS: dict[str, dict[str, Any]] = {
    "gmm": {"loss": "em"},
    "gmmmoe": {"loss": "em"},
    "me": {"loss": "em"},
}
WITHOUT_TREES = tuple(name for name in runs.STORIES if name != "hierarchicalme")

EXAMPLES = """examples:
  pyro-moe fit dmvae --data spiral
  pyro-moe fit dmvae --data digits --initialise tsne --out runs/digits
  pyro-moe fit vade --data mnist --data-dir folder/of/mnist --epochs 30
  pyro-moe fit gmm --data table.csv --num-components 4
  pyro-moe fit dvmoe --data table.csv --target price
  pyro-moe predict runs/dvmoe-table --data new.csv --out predictions.csv
  pyro-moe reproduce table1 --quick
  pyro-moe demo
"""

SCORES = {
    "test_elbo": "test ELBO, nats per row",
    "importance_weighted_bound": "importance-weighted bound",
    "accuracy": "clustering accuracy",
    "nmi": "normalised mutual information",
    "ari": "adjusted Rand index",
    "effective_components": "effective number of components",
    "error": "squared error, summed over targets",
    "rmse": "root mean squared error",
    "log_likelihood": "test log-likelihood, nats per row",
    "crps": "continuous ranked probability",
    "log_loss": "log loss, nats per row",
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
        with warnings.catch_warnings():
            warnings.showwarning = _say
            options.command(options)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (SiteError, ValueError, ImportError, OSError) as error:
        return _fail(" ".join(str(error).split()), 2)
    return 0


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pyro-moe: {message}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    _say(message)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ordinary ones, for `main` to print."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="pyro-moe",
        description="Fit mixtures, and mixtures of experts, with deep generative gates.",
        epilog=EXAMPLES,
        formatter_class=layout,
    )
    parser.add_argument("--version", action="version", version=version("pyro-moe"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands.add_parser("fit", help="fit a story and write a run folder"))
    _add_predict(commands.add_parser("predict", help="predict the targets of new rows"))
    _add_reproduce(commands.add_parser("reproduce", help="a table of the paper, made again"))
    demo = commands.add_parser("demo", help="fit spirals and digits, beside K-means and a mixture")
    demo.add_argument("--out", default="demo", help="folder for the runs (default: %(default)s)")
    demo.add_argument("--quiet", action="store_true", help="no progress bar")
    demo.set_defaults(command=_demo)
    return parser


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("story", choices=WITHOUT_TREES, help="the generative story: %(choices)s", metavar="STORY")
    add("--data", required=True, help="digits, spiral, mnist, or a .csv or .parquet file")
    add("--target", nargs="+", metavar="COLUMN", help="columns of the table that become y")
    add("--experts", choices=FAMILIES, help="the family of y given x (default: normal)")
    add("--context", choices=CONTEXTS, help="what the experts see: x, or the latent mean of z")
    add("--data-dir", metavar="DIR", help="folder of MNIST's four files (else: downloaded)")
    add("--num-components", type=_whole, metavar="K", help="number of clusters")
    add("--z-dim", type=_whole, metavar="L", help="length of the latent representation")
    add("--likelihood", choices=LIKELIHOODS, help="the family of x given z")
    add("--covariance", choices=COVARIANCES, help="the covariances of the components")
    add("--epochs", type=_whole, help="passes over the data (default: 4,000 steps' worth)")
    add("--restarts", type=_whole, help="starts, of which the best on held-out rows is kept")
    add("--loss", choices=(*LOSSES, "em"), help="the objective (default: marginal; gmm: em)")
    starts = [start for start in STARTS if start != "keep"]
    add(
        "--initialise",
        choices=starts,
        help="where training starts (default: the story's own choice)",
    )
    add("--seed", type=int, help="seed of the fit; the data stay the same (default: 0)")
    add("--device", type=_device, help="where to train, such as cpu or cuda")
    add("--out", metavar="FOLDER", help="run folder; a run there is replaced (default: a new one)")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=_fit)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder that fit wrote, of a story with a target")
    add("--data", required=True, help="a .csv or .parquet file with the columns that were fitted")
    add("--out", required=True, metavar="FILE", help="the .csv file to write")
    parser.set_defaults(command=_predict)


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("table", choices=["table1"], help="the paper's table: %(choices)s")
    add("--quick", action="store_true", help="one seed and few epochs, under five minutes")
    add("--data-dir", metavar="DIR", help="folder of MNIST's four files; spirals alone if none")
    parser.set_defaults(command=_reproduce)


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
    arguments = _story_arguments(options, train, test)
    story: Any = runs.STORIES[options.story](**arguments)
    folder = Path(options.out or _new_folder(options))
    new = not folder.exists()
    runs.prepare(folder)
    name = f"{options.story} on {options.data}"
    print(f"{name}: {len(train):,} rows to fit, {len(test):,} to test", flush=True)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)  # it is printed below
        try:
            fitted = fit(story.model, story.guide, train, **_fit_arguments(options))
        except Exception:
            if new:
                folder.rmdir()  # empty as it is
            raise
    seconds = time.perf_counter() - started
    save = partial(
        runs.save,
        fitted,
        folder,
        story_name=options.story,
        story_arguments=arguments,
        data_name=options.data,
        rows=train,
    )
    save()
    if fitted.stopped:
        epochs = len(fitted.history)
        print(f"stopped after {epochs} epochs ({fitted.stopped}); what was learned is kept")
    scores = {**_scores(fitted, test), "seconds": seconds}
    save(scores=scores)
    for key, value in scores.items():
        print(f"  {SCORES.get(key, key):<36}{value:>10.4g}")
    print(f"run folder: {folder}")
    for picture, figure in plots.pictures(fitted, test).items():
        path = folder / f"{picture}.png"
        figure.savefig(path, dpi=150)
        print(f"  {path}")
    return fitted, scores


def _rows(options: argparse.Namespace) -> tuple[Rows, Rows]:
    likelihood = options.likelihood or STORY_DEFAULTS.get(options.data, {}).get("likelihood")
    wants_target = "y_dim" in _parameters(options.story)
    made = options.data in STORY_DEFAULTS
    if options.target and (made or not wants_target):
        where = f"data {options.data}" if made else f"story {options.story}"
        raise ValueError(f"expected no --target with {where}; got {' '.join(options.target)}")
    if wants_target and not made and not options.target:
        raise ValueError(f"expected --target, the column that {options.story} predicts; got none")
    if options.data == "mnist":
        binary = likelihood == "bernoulli" and not wants_target
        train, test = datasets.mnist(options.data_dir, binary=binary)
    else:
        target = options.target
        one = target[0] if target and len(target) == 1 else target
        train, test = datasets.load(options.data, target=one)
    return datasets.piecewise_affine(train, test) if made and wants_target else (train, test)


def _parameters(story: str) -> Any:
    return inspect.signature(runs.STORIES[story]).parameters


def _story_arguments(options: argparse.Namespace, rows: Rows, test: Rows) -> dict[str, Any]:
    """What to make the story with: defaults of the data, then what the command line says."""
    x_dim = rows.x.shape[1]
    table = {**TABLE_DEFAULTS, "z_dim": min(x_dim, TABLE_DEFAULTS["z_dim"])}
    names = ("num_components", "z_dim", "likelihood", "covariance", "experts", "context")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    known = _parameters(options.story)
    for name in given:
        if name not in known:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"expected options of {options.story}; got {option}")
    arguments = {"x_dim": x_dim, **STORY_DEFAULTS.get(options.data, table), **given}
    if rows.y is not None and test.y is not None:
        arguments["y_dim"] = rows.y.shape[1:].numel()
        if options.experts == "categorical":
            if rows.y.dim() > 1:
                several = " ".join(rows.targets or ["none"])
                raise ValueError(f"expected one --target of classes; got {several}")
            arguments["y_dim"] = _num_classes(torch.cat([rows.y, test.y]), rows)
        if arguments.get("likelihood") == "bernoulli" and options.data == "mnist":
            arguments["likelihood"] = "continuous-bernoulli"  # experts see grey pixels
    return {name: value for name, value in arguments.items() if name in known}


def _num_classes(y: torch.Tensor, rows: Rows) -> int:
    y = y.double()
    bad = y[(y < 0) | (y != y.round()) | (y >= len(y))]
    if len(bad):
        (name,) = rows.targets or ("y",)
        raise ValueError(
            f"expected classes 0, 1, 2, … in column {name!r}, fewer than its {len(y)} rows; "
            f"got {bad[0].item():.10g}"
        )
    return int(y.max()) + 1


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
    if test.y is None:
        return scores
    prediction = evaluation.predict(fitted, test)
    predictive: dict[str, Any]
    if has_classes(prediction.distributions[0]):
        predictive = evaluation.classification_scores(prediction, test.y)
        predictive["accuracy of classes"] = predictive.pop("accuracy")
    else:
        predictive = evaluation.regression_scores(prediction, test.y)
        predictive |= {
            f"coverage of {level:.0%} intervals": share
            for level, share in predictive.pop("coverage").items()
        }
    return scores | predictive


def _predict(options: argparse.Namespace) -> None:
    """Write what a saved story says of new rows: means, spread, and who says so."""
    story: Any
    story, settings = runs.load(options.run)
    if settings.get("targets") is None:
        raise ValueError(f"expected a run with a target of a table; got {options.run}")
    out = Path(options.out)
    if out.is_dir():
        raise ValueError(f"expected a file to write; got the folder {out}")
    rows = datasets.table(options.data, columns=settings["columns"])
    if out.exists() and out.samefile(options.data):
        raise ValueError(f"expected --out to be another file than --data; got {out} for both")
    runs.prepare(out.parent)
    fitted: Any = fit(story.model, story.guide, rows.x, initialise="keep", epochs=0, progress=False)
    prediction = evaluation.predict(fitted, rows)
    columns: dict[str, torch.Tensor] = {}
    beside = partial(_beside, set(settings["targets"]))
    if has_classes(prediction.distributions[0]):
        (target,) = settings["targets"]
        columns[target] = prediction.mean.argmax(-1)
        columns |= {beside(f"{target}_is_{i}"): p for i, p in enumerate(prediction.mean.T)}
    else:
        deviation = prediction.variance.sqrt()
        low, high = prediction.quantile(0.05), prediction.quantile(0.95)
        for i, target in enumerate(settings["targets"]):
            columns[target] = prediction.mean[:, i]
            columns[beside(f"{target}_sd")] = deviation[:, i]
            columns[beside(f"{target}_q05")] = low[:, i]
            columns[beside(f"{target}_q95")] = high[:, i]
    columns |= {beside(f"gate_{k}"): g for k, g in enumerate(prediction.gate.T)}
    table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    table.to_csv(options.out, index=False)
    print(f"{len(table):,} rows predicted: {options.out}")


def _beside(targets: set[str], name: str) -> str:
    """The name of a column beside those of targets, which keep theirs: ``price_sd_`` if need be."""
    return _beside(targets, f"{name}_") if name in targets else name


def _reproduce(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyComponentWarning)  # it would stand amid the rows
        table1.run(quick=options.quick, data_dir=options.data_dir)


def _demo(options: argparse.Namespace) -> None:
    """Run the commands of the demo, and print their accuracies beside those of baselines."""
    torch.set_num_threads(1)  # small networks: threads cost more than they give
    table = []
    for line in COMMANDS:
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
        number = STORY_DEFAULTS[data]["num_components"]
        table += [(data, name, scores) for name, scores in baselines(data, number)]
    names = ("accuracy", "nmi", "ari", "seconds")
    print(f"{'data':<8}{'method':<18}" + "".join(f"{name:>10}" for name in names))
    for data, method, scores in sorted(table, key=lambda row: row[0]):
        print(f"{data:<8}{method:<18}" + "".join(f"{scores[name]:>10.3f}" for name in names))


if __name__ == "__main__":
    sys.exit(main())
