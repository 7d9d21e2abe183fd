"""Compares a wheel with the checkout that it was built from, run in the checkout.

python .ci/contents.py pyro_moe-….whl
"""

import sys
import tomllib
import zipfile
from pathlib import Path

folders = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
expected = {
    Path(package.replace(".", "/"), path.relative_to(folder)).as_posix()
    for package, folder in folders["package-dir"].items()
    for path in Path(folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
} | {f"{module}.py" for module in folders["py-modules"]}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = [name for name in wheel.namelist() if not name.endswith("/")]
got = {name for name in names if ".dist-info/" not in name}
missing, extra = sorted(expected - got), sorted(got - expected)
if missing or extra:
    sys.exit(f"expected the files of the checkout in the wheel; missing: {missing}; more: {extra}")
if not any(name.endswith("/LICENSE") for name in names):
    sys.exit("expected LICENSE in the wheel; got none")
