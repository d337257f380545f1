"""Lets `python -m stockade` do what `stockade` does."""

import sys

from stockade import _start

if sys.path and sys.path[0] in ("", _start.START_FOLDER) and not sys.flags.safe_path:
    # Nothing more is imported from the working folder. This package was, and what Python needs to find it.
    _start.LEFT_OUT.append(sys.path.pop(0))

from stockade.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
