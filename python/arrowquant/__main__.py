"""``python -m arrowquant``: the command-line tool."""

import sys

from . import _core


def main() -> int:
    """Runs the tool with the arguments of this process; its exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    return _core.run_tool(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
