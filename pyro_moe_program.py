"""The program ``pyro-moe``. It can be interrupted in one line while its libraries are imported."""

import signal
import sys


def main() -> int:
    """Run the command line of `pyro_moe.cli`. SIGTERM is handled like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from pyro_moe.cli import main as run
    except KeyboardInterrupt:
        print("pyro-moe: interrupted", file=sys.stderr)
        return 130
    return run()
