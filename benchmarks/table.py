"""The tables of the README, made from benchmarks/results.

python benchmarks/table.py prints them; with --write they go into README.md, between its markers.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from record import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- begin benchmarks/table.py -->", "<!-- end benchmarks/table.py -->"
Groups = dict[tuple[str, str, str], list[dict]]


def main() -> None:
    """Print the tables, or put them into the README."""
    groups = grouped()
    text = "\n\n".join((scores(groups), starts(groups)))
    if "--write" not in sys.argv[1:]:
        print(text)
        return
    before, rest = README.read_text().split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def grouped() -> Groups:
    """Results by data, story and start."""
    groups: Groups = defaultdict(list)
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if "accuracy" in result:
            data, story, start = path.stem.split("-")[:3]
            groups[data, story, start.replace("_", " ")].append(result)
    return dict(sorted(groups.items()))


def scores(groups: Groups) -> str:
    """Test accuracy and held-out bounds."""
    lines = [
        "| data | method | start | seeds | test accuracy, mean ± sd | lowest | test ELBO, nats/row "
        "| seconds a run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (data, story, start), results in groups.items():
        accuracy = [result["accuracy"] for result in results]
        spread = f" ± {statistics.stdev(accuracy):.4f}" if len(accuracy) > 1 else ""
        elbos = [result["test_elbo"] for result in results if "test_elbo" in result]
        elbo = f"{statistics.mean(elbos):.2f}" if elbos else ""
        seconds = statistics.mean(result["seconds"] for result in results)
        lines.append(
            f"| {data} | {story} | {start} | {len(results)} "
            f"| {statistics.mean(accuracy):.4f}{spread} | {min(accuracy):.4f} "
            f"| {elbo} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def starts(groups: Groups) -> str:
    """What the paper's §8.1 claims of DMVAE and VaDE, over every single start."""
    lines = [
        "| data | story | starts | of them at 0.99 or more | epochs to 95 % of the last accuracy "
        "| seconds an epoch, median |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (data, story, _), results in groups.items():
        curves = [curve for result in results for curve in result.get("curves", [])]
        if not curves:
            continue
        good = sum(curve[-1] >= 0.99 for curve in curves)
        epochs = statistics.mean(epochs_to(curve, 0.95) for curve in curves)
        seconds = [row["seconds"] for result in results for row in result["history"]]
        lines.append(
            f"| {data} | {story} | {len(curves)} | {good} | {epochs:.1f} "
            f"| {statistics.median(seconds):.2f} |"
        )
    return "\n".join(lines)


def epochs_to(curve: list[float], share: float) -> int:
    """The first epoch from which a curve stays above a share of its last value."""
    below = [epoch for epoch, value in enumerate(curve, 1) if value < share * curve[-1]]
    return max(below, default=0) + 1


if __name__ == "__main__":
    main()
