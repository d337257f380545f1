"""Lets `python -m stockade` do what `stockade` does."""

import sys
from pathlib import Path

if sys.path and sys.path[0] in ("", str(Path.cwd())) and not sys.flags.safe_path:
    # What a guest may write to a mounted working folder must never be imported.
    del sys.path[0]

from stockade.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
