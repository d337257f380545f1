"""Lets `python -m stockade` do what `stockade` does."""

from stockade.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
