"""The whole table of the engine: all benchmarks of this folder, one after the other.

    python benchmarks/engine/everything.py --tables FOLDER

A peer that is not on this machine is left out with a word. After it, the tables of the page are
written by `python benchmarks/table.py --write`.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Run every benchmark, also if another fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", help="tables of flexmix and mixtools, see em.py")
    tables = parser.parse_args().tables
    if shutil.which("Rscript") is None:
        print("no Rscript on this machine: mixtures of experts without R's flexmix beside them")
    if tables is None:
        print("no --tables: no EM of mixtures of experts")
    commands = [
        ["steps.py"],
        ["em.py", *(["--tables", tables] if tables else [])],
        ["small_tables.py"],
        ["predict.py"],
        ["starts.py"],
        *(["scaling.py", work] for work in ("memory", "processes", "cost")),
    ]
    for name, *words in commands:
        print(f"\n{name} {' '.join(words)}", flush=True)
        if subprocess.run([sys.executable, str(FOLDER / name), *words], check=False).returncode:  # noqa: S603
            print(f"{name} failed")


if __name__ == "__main__":
    main()
