"""Runs the first Python example of a page, as a reader does who copies it.

python .ci/example.py README.md
"""

import re
import sys
from pathlib import Path

page = Path(sys.argv[1])
found = re.search(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
if found is None:
    sys.exit(f"expected a Python example in {page}; got none")
exec(compile(found[1], f"{page}, its first example", "exec"), {"__name__": "__main__"})  # noqa: S102
