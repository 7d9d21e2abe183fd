"""The tables of docs/benchmarks.md, generated from benchmarks/results.

python benchmarks/table.py prints them. With --write, they are written between the markers of the
page.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from baselines import METHODS as REGRESSORS
from hierarchy import IMAGES
from intervals import FEW
from record import Run, recorded
from table1 import WITH_Z, Z_DIMS

from pyro_moe.paper.table1 import METHODS, PAPER, Y_DIMS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
LENGTHS = (1, 2, 5, 10)
DIGITS = 10
SHARES = (0.125, 0.25, 0.5)
Groups = dict[tuple[str, ...], list[Run]]

# Published RMSE and log-likelihood of deep ensembles (Lakshminarayanan et al. 2017, Table 1) and of
# MC-dropout (Gal and Ghahramani 2016; means of the results of 2018 with 100 times the epochs, in
# the repository of the splits).
UCI = {
    "bostonHousing": ((3.28, -2.41), (2.904, -2.402)),
    "concrete": ((6.03, -3.06), (4.826, -2.937)),
    "energy": ((2.09, -1.38), (0.539, -1.212)),
    "kin8nm": ((0.09, 1.20), (0.0789, 1.136)),
    "naval-propulsion-plant": ((0.00, 5.63), (0.00074, 4.450)),
    "power-plant": ((4.11, -2.79), (4.014, -2.808)),
    "protein-tertiary-structure": ((4.71, -2.83), (4.274, -2.871)),
    "wine-quality-red": ((0.64, -0.94), (0.622, -0.928)),
    "yacht": ((1.58, -1.18), (0.666, -1.250)),
}


def main() -> None:
    """Print the tables, or write them into the page."""
    text = PAGE.read_text()
    for make in MADE:
        content = make()
        if "--write" not in sys.argv[1:]:
            print(f"{make.__name__}\n{content}\n")
            continue
        begin, end = f"<!-- begin {make.__name__} -->", f"<!-- end {make.__name__} -->"
        if begin not in text:
            continue
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text)


def grouped(runs: Iterable[Run], *fields: str) -> Groups:
    """Runs grouped by the values of fields, in alphabetical order."""
    groups: Groups = defaultdict(list)
    for run in runs:
        groups[tuple(label(run[field]) for field in fields)].append(run)
    return dict(sorted(groups.items()))


def label(name: object) -> str:
    """A name in the form of the tables, such as ``"me few rows"``."""
    return str(name).lower().replace(",", "").replace("-", "")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, with its standard error if there are several values."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def clustering() -> Groups:
    """Runs of the clustering methods by data, method and start."""
    runs = [run for data in ("digits", "pendigits", "mnist", "fashion") for run in recorded(data)]
    spirals = recorded("spiral", loss="marginal", y_dim=None)
    runs += [{**run, "start": start_of(run)} for run in spirals]
    return grouped(runs, "benchmark", "method", "start")


def start_of(run: Run) -> str:
    """The initialization of a run on spirals, or its number of random starts."""
    return f"{run['restarts']} starts" if run["start"] == "random" else run["start"]


def clusters() -> str:
    """Test accuracy and held-out bounds."""
    head = ("data", "method", "start", "seeds", "test accuracy", "lowest")
    rows = []
    for (data, method, start), results in clustering().items():
        accuracy = [result["accuracy"] for result in results]
        elbos = [result["test_elbo"] for result in results if "test_elbo" in result]
        rows.append(
            (
                data,
                method,
                start,
                len(results),
                spread(accuracy, 4),
                f"{min(accuracy):.4f}",
                f"{statistics.mean(elbos):.2f}" if elbos else "",
                f"{statistics.mean(result['seconds'] for result in results):.0f}",
            )
        )
    return table((*head, "test ELBO, nats/row", "seconds a run"), rows)


def few_rows() -> str:
    """Held-out log-densities of methods on tables of few rows, and their lag behind a line."""
    runs = {(run["table"], run["method"]): run for run in recorded("tables")}
    names = list(dict.fromkeys(name for name, _ in runs))
    methods = list(dict.fromkeys(method for _, method in runs))
    rows = []
    for method in methods:
        known = {
            name: runs[name, method]["log_density"] for name in names if (name, method) in runs
        }
        gains = [value - runs[name, "linear"]["log_density"] for name, value in known.items()]
        cells = [f"{known[name]:.3f}" if name in known else "" for name in names]
        rows.append((method, *cells, f"{statistics.mean(gains):+.3f}", f"{min(gains):+.3f}"))
    return table(("method", *names, "mean against linear", "worst"), rows)


def engine() -> str:
    """CPU seconds of EM, of fits and of predictions, and those of peers."""
    rows = []
    for run in recorded("engine"):
        ours, theirs = run["seconds"], run["peer_seconds"]
        peer = (run["peer"], f"{theirs:.3g}", f"{ours / theirs:.2f}") if theirs else ("", "", "")
        rows.append((run["work"], f"{ours:.3g}", *peer))
    return table(("work", "pyro-moe, s", "peer", "peer, s", "ratio"), rows)


def memory() -> str:
    """Peak memory of fits of rows in a file."""
    rows = []
    for run in recorded("memory"):
        few, many = run["mebibytes"], run["of_ten_times"]
        growth = f"{100 * (many / few - 1):+.0f} %"
        rows.append((run["story"], f"{run['rows']:,}", f"{few:.0f}", f"{many:.0f}", growth))
    return table(("story", "rows", "MiB", "MiB, ten times the rows", "growth"), rows)


def processes() -> str:
    """Seconds by one process and by two."""
    rows = []
    for run in recorded("processes"):
        one, two = run["one"], run["seconds"]
        rows.append((run["work"], f"{one:.3g}", f"{two:.3g}", f"{one / two:.2f}"))
    return table(("work", "one process, s", "two, s", "speed-up"), rows)


def steps() -> str:
    """Milliseconds of a training step, and ratios."""
    rows = []
    for run in recorded("steps"):
        times = run["milliseconds"]
        fit, hand, pyro = (times[way] for way in ("fit", "hand", "pyro"))
        compiled, half = times["compiled"], times["bfloat16"]
        rows.append(
            (
                run["story"],
                run["device"],
                *(f"{times[way]:.1f}" for way in ("fit", "evaluated", "hand", "pyro")),
                f"{fit / hand:.2f}",
                f"{compiled / hand:.2f}",
                f"{half / hand:.2f}",
                f"{fit / pyro:.2f}",
                f"{compiled / pyro:.2f}",
            )
        )
    head = ("story", "device", "fit, ms", "without replay", "by hand", "Pyro's SVI")
    by_hand = ("fit / by hand", "compiled / by hand", "bfloat16 / by hand")
    return table((*head, *by_hand, "fit / Pyro", "compiled / Pyro"), rows)


def starts() -> str:
    """Accuracy and speed of DMVAE and VaDE over all starts, for claims of the paper's §8.1."""
    head = ("data", "story", "starts", "of them at 0.99 or more")
    rows = []
    for (data, story), results in grouped(
        recorded("spiral", loss="marginal", start="random", y_dim=None), "benchmark", "method"
    ).items():
        curves = [curve for result in results for curve in result["curves"]]
        good = sum(curve[-1] >= 0.99 for curve in curves)
        epochs = statistics.mean(epochs_to(curve, 0.95) for curve in curves)
        seconds = [epoch for result in results for epoch in result["epoch_seconds"]]
        median = f"{statistics.median(seconds):.2f}"
        rows.append((data, story, len(curves), good, f"{epochs:.1f}", median))
    return table((*head, "epochs to 95 % of the last accuracy", "seconds an epoch, median"), rows)


def trace_elbo() -> str:
    """Scores of Trace_ELBO with relaxed assignments, from the default start."""
    return of_spirals(recorded("spiral", loss="Trace_ELBO", start="autoencoder"))


def defaults() -> str:
    """Scores of default calls of `fit` on spirals."""
    return of_spirals(recorded("spiral", loss="default"))


def of_spirals(runs: list[Run]) -> str:
    """Scores by story and number of targets."""
    rows = []
    for (method, y_dim), results in grouped(
        [{**run, "y_dim": str(run["y_dim"] or "")} for run in runs], "method", "y_dim"
    ).items():
        accuracy = [result["accuracy"] for result in results]
        errors = [result["error"] for result in results if y_dim]
        rows.append(
            (
                method,
                y_dim,
                len(results),
                spread(accuracy, 4),
                f"{min(accuracy):.4f}",
                f"{statistics.mean(errors):.1e}" if errors else "",
                f"{max(errors):.1e}" if errors else "",
                f"{statistics.mean(result['seconds'] for result in results):.0f}",
            )
        )
    head = ("story", "M", "seeds", "test accuracy", "lowest", "test error", "highest", "seconds")
    return table(head, rows)


def coverage() -> str:
    """Coverage of intervals of parameters and of predictions, by family and rows."""
    rows = []
    for run in recorded("coverage"):
        shares = [
            f"{run[name]:.3f} ± {run[name + '_error']:.3f}" if name in run else ""
            for name in ("parameters", "predictions")
        ]
        of = (run["family"], run["rows"], run["method"], f"{run['level']:.0%}", run["tables"])
        rows.append((*of, *shares))
    head = ("experts", "rows", "method", "level", "tables", "parameters", "predictions")
    return table(head, sorted(rows, key=lambda row: (row[0], row[1], row[2])))


def epochs_to(curve: list[float], share: float) -> int:
    """The first epoch from which a curve stays at or above a share of its last value."""
    below = [epoch for epoch, value in enumerate(curve, 1) if value < share * curve[-1]]
    return max(below, default=0) + 1


def table1() -> str:
    """Errors of Table 1 by data, method and M, with those of the paper."""
    rows: list[tuple[str, ...]] = []
    for data in ("spiral", "mnist"):
        rows.append((data, "variance of the target", "", *variances(data)))
        for (of, name), errors in PAPER.items():
            if of == data:
                rows.append((data, f"paper, {name}", "", *(f"{error:.4g}" for error in errors)))
        for name in METHODS:
            z_dim = Z_DIMS[data] if name in WITH_Z else None
            rows.append(errors_of("table1", data=data, method=name, z_dim=z_dim))
        rows += [errors_of("baselines", data=data, method=name) for name in REGRESSORS]
    rows = [row for row in rows if any(row[3:])]
    return table(("data", "method", "seeds", *(f"M={m}" for m in Y_DIMS)), rows)


def errors_of(benchmark: str, *, data: str, method: str, **key: Any) -> tuple[str, ...]:
    """A row of the table: the number of seeds (for each M if they differ), and errors by M."""
    runs = recorded(benchmark, data=data, method=method, **key)
    cells = [[run for run in runs if run["y_dim"] == m] for m in Y_DIMS]
    numbers = [str(len(cell)) for cell in cells]
    seeds = numbers[0] if len(set(numbers)) == 1 else "/".join(numbers)
    return data, method, seeds, *(of_errors(cell) for cell in cells)


def variances(data: str) -> Iterable[str]:
    """The mean variance of the target over the seeds of DVMoE, by M."""
    for m in Y_DIMS:
        cell = recorded("table1", data=data, method="DVMoE", z_dim=Z_DIMS[data], y_dim=m)
        yield f"{statistics.mean(r['variance'] for r in cell):.4g}" if cell else ""


def of_errors(cell: Sequence[Run]) -> str:
    """The mean error, with its standard error if there are several seeds."""
    if not cell:
        return ""
    errors = [result["error"] for result in cell]
    mean = statistics.mean(errors)
    if len(errors) < 2:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {statistics.stdev(errors) / len(errors) ** 0.5:.2g}"


def latent_lengths() -> str:
    """Errors at M = 1 by the length of z."""
    rows = []
    for data, name, seeds in (
        ("spiral", "VaDE-MoE", 3),
        ("spiral", "DVMoE", 3),
        ("mnist", "DVMoE", 1),
    ):
        cells = []
        for length in LENGTHS:
            runs = recorded("table1", data=data, method=name, z_dim=length, y_dim=1)
            # Seeds that were run for all lengths.
            cells.append(of_errors([run for run in runs if run["seed"] < seeds]))
        rows.append((data, name, seeds, *cells))
    return table(("data, M=1", "method", "seeds", *(f"L={length}" for length in LENGTHS)), rows)


def classes() -> str:
    """Accuracy and log-loss on test rows."""
    rows = []
    for (data, method), runs in grouped(recorded("classification"), "data", "method").items():
        accuracy = spread([run["accuracy"] for run in runs], 4)
        loss = spread([run["log_loss"] for run in runs], 3)
        seconds = f"{statistics.mean(run['seconds'] for run in runs):.0f}"
        rows.append((data, method, len(runs), accuracy, loss, seconds))
    return table(("data", "method", "seeds", "test accuracy", "log loss", "seconds"), rows)


def few_labels() -> str:
    """Accuracy and log-loss on MNIST's test rows by the number of labels."""
    rows = []
    groups: Groups = defaultdict(list)
    for run in recorded("few_labels"):
        groups[f"{run['labels']:,}", run["method"]].append(run)
    for (labels, method), runs in groups.items():
        accuracy = spread([run["accuracy"] for run in runs], 4)
        lowest = f"{min(run['accuracy'] for run in runs):.4f}"
        loss = spread([run["log_loss"] for run in runs], 3)
        seconds = f"{statistics.mean(run['seconds'] for run in runs):.0f}"
        rows.append((labels, method, len(runs), accuracy, lowest, loss, seconds))
    head = ("labels", "method", "draws of labels", "test accuracy", "lowest", "log loss", "seconds")
    return table(head, rows)


def conformal() -> str:
    """Coverage of 90 % intervals on MNIST: those of the model, and conformal ones."""
    lengths = (None, Z_DIMS["mnist"])
    every = recorded("table1", data="mnist")
    runs = [run for run in every if run["z_dim"] in lengths and "conformal_coverage" in run]
    rows = []
    for (method, y_dim), of_seeds in grouped(runs, "method", "y_dim").items():
        own = spread([run["coverage"]["0.9"] for run in of_seeds], 3)
        held = spread([run["conformal_coverage"] for run in of_seeds], 3)
        rows.append((method, y_dim, len(of_seeds), own, held))
    return table(("method", "M", "seeds", "the model's intervals cover", "conformal ones"), rows)


def uci() -> str:
    """RMSE and log-likelihood over the standard splits, with published results."""
    rows = []
    for data, published in UCI.items():
        runs = recorded("uci", scored="test rows", data=data)
        if not runs:
            continue
        (rmse, fitness), (dropout_rmse, dropout_fitness) = published
        digits = {"kin8nm": 4, "naval-propulsion-plant": 5}.get(data, 3)
        rows.append(
            (
                data,
                spread([run["rmse"] for run in runs], digits),
                rmse,
                dropout_rmse,
                spread([run["log_likelihood"] for run in runs], 3),
                fitness,
                dropout_fitness,
                f"{statistics.mean(run['coverage']['0.9'] for run in runs):.2f}",
            )
        )
    others = ("ensembles", "dropout")
    return table(("data", "RMSE", *others, "log-likelihood", *others, "coverage"), rows)


def uci_choice() -> str:
    """Scores of rows that no split tests, by which the method was chosen."""
    rows = []
    for data in UCI:
        runs = recorded("uci", scored="rows that no split tests", data=data)
        for run in sorted(runs, key=lambda run: run["method"]):
            scores = (f"{run[key]:.3f}" for key in ("log_likelihood", "rmse"))
            rows.append((data, run["method"], *scores))
    return table(("data", "method", "log-likelihood", "RMSE"), rows)


def intervals() -> str:
    """Coverage of 90 % intervals on simulated data."""
    rows = []
    runs = [
        {**run, "fitted": f"{run['story']}, few rows" if run["num_rows"] == FEW else run["story"]}
        for run in recorded("intervals")
    ]
    for (name,), of_seeds in grouped(runs, "fitted").items():
        covered = spread([run["coverage"] for run in of_seeds], 3)
        fitness = spread([run["log_likelihood"] for run in of_seeds], 3)
        rows.append((name, len(of_seeds), covered, fitness))
    return table(("story", "seeds", "90 % intervals cover", "test log-likelihood"), rows)


def imputation() -> str:
    """Coverage of 90 % intervals of hidden pixels, and errors."""
    rows = []
    for (hidden, fits, moves), of_seeds in grouped(
        recorded("imputation"), "hidden", "fits", "moves"
    ).items():
        names = ("coverage", "error", "effective_samples", "seconds")
        means = [statistics.mean(run[name] for run in of_seeds) for name in names]
        digits = (3, 3, 0, 0)
        shown = (f"{mean:.{places}f}" for mean, places in zip(means, digits, strict=True))
        rows.append((hidden, fits, moves, len(of_seeds), *shown))
    head = ("hidden pixels", "fits", "moves", "seeds", "coverage", "error")
    head += ("effective samples", "seconds")
    return table(head, rows)


def false_alarms() -> str:
    """The rate of alarms of the predictive check at level 0.05."""
    rows = []
    runs = recorded("false_alarms", level=0.05)
    names = ("assumptions", "case", "rows", "restored", "posterior")
    for (assumptions, case, fitted, restored, posterior), of_case in grouped(runs, *names).items():
        kind = "restored" if restored == "true" else "laplace" if posterior == "true" else "fit"
        alarmed = [run["most_surprising"] for run in of_case if run["p_value"] <= run["level"]]
        first = statistics.mode(alarmed) if assumptions == "wrong" else ""
        rate = len(alarmed) / len(of_case)
        error = (rate * (1 - rate) / len(of_case)) ** 0.5
        alarms = f"{rate:.2f} ± {error:.2f}"
        rows.append((assumptions, case, fitted, kind, len(of_case), alarms, first))
    head = ("story", "", "rows", "checked", "simulations", "alarms", "named first most often")
    return table(head, rows)


def hierarchy() -> str:
    """How well groups of clusters agree with those of simulated data."""
    rows = []
    runs = [run for run in recorded("hierarchy") if run["data"] not in IMAGES]
    runs = [{**run, "far": f"{run['far']:g}"} for run in runs]
    for (data, far, method, loss), of_seeds in grouped(
        runs, "data", "far", "method", "loss"
    ).items():
        trees = [run["members"] == [[0, 1, 2], [3, 4]] for run in of_seeds if "members" in run]
        clusters = [run["accuracy"] for run in of_seeds if "accuracy" in run]
        rows.append(
            (
                data,
                far,
                method if loss == "marginal" else f"{method}, {loss}",
                len(of_seeds),
                spread(clusters, 4) if clusters else "",
                spread([run["group_accuracy"] for run in of_seeds], 4),
                f"{sum(trees)} of {len(trees)}" if trees else "",
            )
        )
    head = ("data", "distance", "method", "seeds", "accuracy of clusters", "of groups")
    return table((*head, "trees found"), rows)


def digit_groups() -> str:
    """The groups of digits, each by the most frequent digits of its clusters."""
    runs = [run for run in recorded("hierarchy") if run["data"] in IMAGES]
    rows = []
    for run in sorted(runs, key=lambda run: (run["data"], run["components"], run["seed"])):
        accuracy = run["accuracy" if run["components"] == DIGITS else "group_accuracy"]
        groups = " · ".join(" ".join(map(str, group)) for group in run["members"])
        rows.append((run["data"], run["components"], run["seed"], f"{accuracy:.4f}", groups))
    head = ("data", "clusters", "seed", "test accuracy", "digits of the clusters of each group")
    return table(head, rows)


def several_starts() -> str:
    """What a rule loses and costs that drops all starts but one after a share of the training."""
    rows = []
    for (method,), runs in grouped(recorded("several_starts"), "method").items():
        cells = []
        for share in SHARES:
            found = [early_choice(run["starts"], share) for run in runs]
            cost = statistics.mean(cost for _, cost in found)
            cells += [spread([lost for lost, _ in found], 3), f"{cost:.1f}"]
        rest = [mean_of_rest(run["starts"]) for run in runs]
        rows.append((method, len(runs), spread(rest, 3), *cells))
    shares = [text for share in SHARES for text in (f"best after {share:.0%}: loses", "costs")]
    return table(("story", "seeds", "a single start loses", *shares), rows)


def starts_together() -> str:
    """The cost of five starts in single starts, together and one by one."""
    rows = []
    for run in recorded("starts"):
        seconds = run["seconds"]
        one = seconds["one"]
        ratios = (f"{seconds[way] / one:.1f}" for way in ("together", "one_by_one"))
        size = (run["rows"], run["units"], run["batch"])
        rows.append((run["story"].lower(), *size, f"{one:.1f}", *ratios))
    head = ("story", "rows", "units of a layer", "rows of a minibatch", "one start, s")
    return table((*head, "five together, in single starts", "five one by one"), rows)


def best_bounds(starts: list[Run]) -> list[float]:
    """The highest bound of each start."""
    return [max(start["held_out_elbo"]) for start in starts]


def mean_of_rest(starts: list[Run]) -> float:
    """How much lower the bound of a single start is than that of the best, on average."""
    bounds = best_bounds(starts)
    return max(bounds) - statistics.mean(bounds)


def early_choice(starts: list[Run], share: float) -> tuple[float, float]:
    """What the choice after a share of the training loses, and its cost in single starts."""
    number = max(1, round(share * len(starts[0]["seconds"])))
    chosen = max(starts, key=lambda start: start["held_out_elbo"][number - 1])
    lost = max(best_bounds(starts)) - max(chosen["held_out_elbo"])
    before = sum(start["seconds_before"] + sum(start["seconds"][:number]) for start in starts)
    whole = sum(start["seconds_before"] + sum(start["seconds"]) for start in starts)
    return lost, (before + sum(chosen["seconds"][number:])) / (whole / len(starts))


MADE = (
    clusters,
    few_labels,
    starts,
    trace_elbo,
    table1,
    conformal,
    latent_lengths,
    classes,
    uci,
    uci_choice,
    few_rows,
    imputation,
    intervals,
    coverage,
    defaults,
    false_alarms,
    hierarchy,
    digit_groups,
    engine,
    memory,
    processes,
    several_starts,
    starts_together,
    steps,
)

if __name__ == "__main__":
    main()
