"""The tables of the README, made from benchmarks/results.

python benchmarks/table.py prints them; with --write they go into README.md, between its markers.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from baselines import METHODS as REGRESSORS
from record import RESULTS, slug

from pyro_moe.table1 import METHODS, PAPER, Y_DIMS

README = Path(__file__).parents[1] / "README.md"
LENGTHS = (1, 2, 5, 10)
Groups = dict[tuple[str, ...], list[dict]]

# Of others, as their papers and the benchmarks of their authors report them: RMSE, log-likelihood.
UCI = {
    "concrete": {"deep ensembles": (6.03, -3.06), "MC-dropout": (4.83, -2.94)},
    "energy": {"deep ensembles": (2.09, -1.38), "MC-dropout": (0.54, -1.21)},
    "yacht": {"deep ensembles": (1.58, -1.18), "MC-dropout": (0.67, -1.25)},
}


def main() -> None:
    """Print the tables, or put them into the README."""
    text = README.read_text()
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
        README.write_text(text)


def grouped(prefix: str, size: int) -> Groups:
    """Results of a kind by the next words of their file names, the seed left out."""
    groups: Groups = defaultdict(list)
    for path in sorted(RESULTS.glob(f"{prefix}*.json")):
        words = path.stem.split("-")[:size]
        groups[tuple(words)].append(json.loads(path.read_text()))
    return dict(sorted(groups.items()))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard error, if there are several values."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def clustering() -> Groups:
    """Results of the clustering stories."""
    groups = {}
    for data in ("digits", "mnist", "spiral"):
        groups |= grouped(f"{data}-", 3)
    return {key: results for key, results in groups.items() if "accuracy" in results[0]}


def clusters() -> str:
    """Test accuracy and held-out bounds."""
    head = ("data", "method", "start", "seeds", "test accuracy", "lowest")
    rows = []
    for (data, story, start), results in clustering().items():
        accuracy = [result["accuracy"] for result in results]
        elbos = [result["test_elbo"] for result in results if "test_elbo" in result]
        rows.append(
            (
                data,
                story,
                start.replace("_", " "),
                len(results),
                spread(accuracy, 4),
                f"{min(accuracy):.4f}",
                f"{statistics.mean(elbos):.2f}" if elbos else "",
                f"{statistics.mean(result['seconds'] for result in results):.0f}",
            )
        )
    return table((*head, "test ELBO, nats/row", "seconds a run"), rows)


def starts() -> str:
    """What the paper's §8.1 claims of DMVAE and VaDE, over every single start."""
    head = ("data", "story", "starts", "of them at 0.99 or more")
    rows = []
    for (data, story, _), results in clustering().items():
        curves = [curve for result in results for curve in result.get("curves", [])]
        if not curves:
            continue
        good = sum(curve[-1] >= 0.99 for curve in curves)
        epochs = statistics.mean(epochs_to(curve, 0.95) for curve in curves)
        seconds = [row["seconds"] for result in results for row in result["history"]]
        median = f"{statistics.median(seconds):.2f}"
        rows.append((data, story, len(curves), good, f"{epochs:.1f}", median))
    return table((*head, "epochs to 95 % of the last accuracy", "seconds an epoch, median"), rows)


def epochs_to(curve: list[float], share: float) -> int:
    """The first epoch from which a curve stays above a share of its last value."""
    below = [epoch for epoch, value in enumerate(curve, 1) if value < share * curve[-1]]
    return max(below, default=0) + 1


def table1() -> str:
    """Errors of Table 1 by data, method and M, beside the paper's."""
    groups, baselines = grouped("table1-", 4), grouped("baselines-", 4)
    rows: list[tuple[str, ...]] = []
    for data in ("spiral", "mnist"):
        rows.append((data, "variance of the target", "", *variances(groups, data)))
        for (of, name), errors in PAPER.items():
            if of == data:
                rows.append((data, f"paper, {name}", "", *(f"{error:.4g}" for error in errors)))
        rows += [errors_of(groups, "table1", data, name) for name in METHODS]
        rows += [errors_of(baselines, "baselines", data, name) for name in REGRESSORS]
    rows = [row for row in rows if any(row[3:])]
    return table(("data", "method", "seeds", *(f"M={m}" for m in Y_DIMS)), rows)


def errors_of(groups: Groups, kind: str, data: str, name: str) -> tuple[str, ...]:
    """A row of the table: seeds, one number where all cells have as many, and errors by M."""
    cells = [groups.get((kind, data, slug(name), str(m)), []) for m in Y_DIMS]
    numbers = [str(len(cell)) for cell in cells]
    seeds = numbers[0] if len(set(numbers)) == 1 else "/".join(numbers)
    return data, name, seeds, *(of_errors(cell) for cell in cells)


def variances(groups: Groups, data: str) -> Iterable[str]:
    """The mean variance of the target over the seeds of DVMoE, by M."""
    for m in Y_DIMS:
        cell = groups.get(("table1", data, "dvmoe", str(m)), [])
        yield f"{statistics.mean(r['variance'] for r in cell):.4g}" if cell else ""


def of_errors(cell: list[dict]) -> str:
    """Mean error ± standard error, and the largest where seeds differ much."""
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
    for data, name, default, seeds in (
        ("spiral", "VaDE-MoE", 2, 3),
        ("spiral", "DVMoE", 2, 3),
        ("mnist", "DVMoE", 10, 1),
    ):
        groups, cells = grouped(f"table1-{data}-", 4), []
        for length in LENGTHS:
            suffix = "" if length == default else f"_z{length}"
            cell = groups.get(("table1", data, slug(name) + suffix, "1"), [])
            cells.append(of_errors(cell[:seeds]))  # the seeds that every length has
        rows.append((data, name, seeds, *cells))
    return table(("data, M=1", "method", "seeds", *(f"L={length}" for length in LENGTHS)), rows)


def classes() -> str:
    """Accuracy and log-loss on test rows."""
    rows = []
    for (_, data, method), results in grouped("classification-", 3).items():
        scores = [result["scores"] for result in results]
        accuracy = spread([score["accuracy"] for score in scores], 4)
        loss = spread([score["log_loss"] for score in scores], 3)
        seconds = f"{statistics.mean(score['seconds'] for score in scores):.0f}"
        rows.append((data, method.replace("_", " "), len(scores), accuracy, loss, seconds))
    return table(("data", "method", "seeds", "test accuracy", "log loss", "seconds"), rows)


def uci() -> str:
    """RMSE and log-likelihood over the standard splits, beside what others report."""
    rows = []
    for (_, data, method), results in grouped("uci-", 3).items():
        measured = [spread([r[key] for r in results], 3) for key in ("rmse", "log_likelihood")]
        rows.append((data, f"ours, {method}", len(results), *measured))
        for other, (rmse, log_likelihood) in UCI[data].items():
            rows.append((data, other, 20, rmse, log_likelihood))
    return table(("data", "method", "splits", "test RMSE", "test log-likelihood"), rows)


def uci_choice() -> str:
    """What methods were chosen by: scores of held-out training rows."""
    rows = []
    for (_, data, method), (result,) in grouped("inner-", 3).items():
        runs = result["runs"]
        scores = [spread([r[key] for r in runs], 3) for key in ("log_likelihood", "rmse")]
        rows.append((data, method, len(runs), *scores))
    return table(("data", "method", "splits", "held-out log-likelihood", "held-out RMSE"), rows)


def intervals() -> str:
    """Coverage of 90 % intervals on data of the fitted family."""
    rows = []
    for (_, name), (result,) in grouped("intervals-", 2).items():
        runs = result["runs"]
        covered = spread([run["coverage"] for run in runs], 3)
        fitness = spread([run["log_likelihood"] for run in runs], 3)
        rows.append((name.replace("_", " "), len(runs), covered, fitness))
    return table(("story", "seeds", "90 % intervals cover", "test log-likelihood"), rows)


def checks() -> str:
    """How often a predictive check raises an alarm at level 0.05."""
    rows = []
    for (_, kind, name), (result,) in grouped("checks-", 3).items():
        runs = result["runs"]
        alarmed = [run["most_surprising"] for run in runs if run["p_value"] <= result["level"]]
        first = statistics.mode(alarmed) if kind == "wrong" else ""
        rate = f"{result['alarms']:.2f} ± {result['standard_error']:.2f}"
        rows.append((kind, name.replace("_", " "), len(runs), rate, first))
    return table(("story", "", "simulations", "alarms", "named first most often"), rows)


MADE = (clusters, starts, table1, latent_lengths, classes, uci, uci_choice, intervals, checks)

if __name__ == "__main__":
    main()
