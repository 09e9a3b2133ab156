"""``python -m backdrift`` is the command line."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # ``python -m`` looks for modules in the working folder first, and that may be a stranger's checkpoint.
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]
    from backdrift.cli.main import run

    run()
