"""Tells what of the specification's tests is refused, passes or runs otherwise: `python -m tests.spec DIR`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from tests.spec._check import check
from tests.spec._run import compare


def main(folder: Path) -> int:
    """Prints what was found; returns 1 where that is anything."""
    scripts = sorted(folder.rglob("*.wast"))
    told, ran = check(scripts), compare(scripts)
    for title, found in (
        ("modules whose text could not be translated", told.unreadable),
        ("modules on which engine and specification differ", told.strange),
        ("valid modules that are refused for what they import", told.unlinked),
        ("invalid modules that pass", told.passed),
        ("valid modules that are refused", told.refused),
    ):
        print(f"{title}: {len(found):,}")
        for place, reason in found:
            print(f"  {place}: {reason}")
    print(f"refused {len(told.refused):,} of {told.valid:,} valid modules, and {len(told.unlinked):,} for imports")
    print(f"passed {len(told.passed):,} of {told.invalid:,} invalid modules")
    for reason, count in Counter(reason.split(" at byte ")[0] for _, reason in told.refused).most_common():
        print(f"{count:6,} {reason}")
    for place, bare, guarded in ran.different:
        print(f"  {place}: {bare} on the bare engine, {guarded} under the guard")
    print(f"ran {ran.calls:,} calls of {ran.modules:,} modules; {len(ran.different):,} differ from the bare engine")
    return 1 if told.refused or told.passed or ran.different else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
