"""The tables of the README, made from benchmarks/results.

python benchmarks/table.py          # print them
python benchmarks/table.py --write  # put them into README.md, between its markers
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from record import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- begin benchmarks/table.py -->", "<!-- end benchmarks/table.py -->"


def tables() -> str:
    """All tables, in Markdown."""
    groups: dict[tuple[str, str, str], list[dict]] = defaultdict(list)
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if "accuracy" in result:
            data, story, start = path.stem.split("-")[:3]
            groups[data, story, start].append(result)
    lines = [
        "| data | story | start | seeds | test accuracy, mean ± sd | lowest | ELBO, nats/row | "
        "seconds a run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (data, story, start), results in sorted(groups.items()):
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


def main() -> None:
    """Print the tables, or put them into the README."""
    if "--write" not in sys.argv[1:]:
        print(tables())
        return
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
