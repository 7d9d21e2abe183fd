"""``python -m pyro_moe``, also under `torchrun`."""

import sys

from pyro_moe.cli import main

if __name__ == "__main__":
    sys.exit(main())
