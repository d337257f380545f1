"""A process that uses workers in surroundings that are given: `python _surroundings.py SPEC`, with SPEC as JSON.

`user`, who it is to be, and `home`, a folder of that user's; `refused`, system calls that a container's filter refuses,
and how, where bits of the first argument are set, or whatever it is. It answers with JSON.
"""

from __future__ import annotations

import errno
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = json.loads(sys.argv[1])
sys.path[:0] = [os.path.join(HERE, "..", "..", "src"), os.path.join(HERE, "..", "..")]


def contained() -> None:
    """Puts this process, and all that it starts, behind a filter such as a container has."""
    from stockade.jail._filter import _assemble, _give, _head, _load, _load_argument
    from stockade.jail._libc import number_of
    from stockade.jail._seccomp import _install, _platform
    from stockade.system import prctl

    numbers = {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}
    code = _head(_platform())
    for name, mask, how in SPEC["refused"]:
        verdict = _give(0x50000 | getattr(errno, how))
        number = numbers.get(name) or number_of(name)
        part = [_load_argument(0), (0x45, 0, 1, mask), verdict, _load(0)] if mask else [verdict]
        code += [(0x15, 0, len(part), number), *part]
    prctl(38, 1)
    _install(_assemble([*code, _give(0x7FFF0000)]))


def reveal(folder: str) -> None:
    """Has a folder be reached by all users, in this process and those that it starts: Python may be in root's home."""
    from stockade.jail._libc import syscall
    from stockade.jail._namespaces import _keep_mounts, _mount

    way = [folder]
    while way[-1] != "/":
        way.append(os.path.dirname(way[-1]))
    hidden = next((here for here in reversed(way) if not os.stat(here).st_mode & 0o001), None)
    if hidden is None:
        return
    syscall("unshare", 0x0002_0000)
    _keep_mounts()
    held = os.open(folder, os.O_PATH)
    _mount(b"none", os.fsencode(hidden), b"tmpfs", 0, b"mode=0755")
    os.makedirs(folder)
    _mount(b"/proc/self/fd/%d" % held, os.fsencode(folder), None, 0x1000, None)
    os.close(held)


def main() -> None:
    if SPEC.get("user"):
        reveal(sys.base_prefix)
        os.setgroups([])
        os.setresgid(SPEC["user"], SPEC["user"], SPEC["user"])
        os.setresuid(SPEC["user"], SPEC["user"], SPEC["user"])
        os.environ["XDG_CACHE_HOME"] = SPEC["home"]
        os.environ["HOME"] = SPEC["home"]
    if SPEC.get("refused"):
        contained()

    from stockade import IsolationError, Policy, Sandbox
    from stockade.doctor import diagnose, gather_facts
    from stockade.isolation import at_least, backend, best, strength
    from tests.conftest import HELLO, wat

    box = Sandbox(isolation="process")
    report = box.run(wat(HELLO))
    process = backend("process")
    given = strength(process)
    try:
        at_least(given + 1)
        demanded = ""
    except IsolationError as problem:
        demanded = str(problem)
    around = backend("bubblewrap")
    in_bubblewrap: list[str] | None = None
    if not around.available():
        try:
            in_bubblewrap = sorted(around.check())
        except IsolationError as problem:
            demanded += str(problem)
    diagnosis = diagnose(gather_facts(), Policy())
    print(
        json.dumps(
            {
                "outcome": report.outcome,
                "stdout": report.stdout.decode(),
                "walls": sorted(process.check()),
                "strength": given,
                "bubblewrap": in_bubblewrap,
                "best": best().name,
                "demanded": demanded,
                "missing": diagnosis.missing(),
                "advice": {finding.name: finding.advice for finding in diagnosis.findings if finding.advice},
                "scores": diagnosis.scores,
            }
        )
    )
    box.close()


main()
