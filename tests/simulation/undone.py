"""Takes a safeguard out and looks whether the simulation notices: `python -m tests.simulation.undone`.

A simulation that cannot fail proves nothing. Each entry is a place in the code and what stands there without the
safeguard; the line of each tells the first seed that fails.

Some safeguards are outside of worlds, for what they guard is not in them; tests of their own take their place:

- Worlds have no file system. That the folder which was checked is the one that is granted, whatever is renamed
  meanwhile, is tried on real folders (`tests/execution/test_mounts.py`).
- Nobody in a world names a run: tasks have random names, all others are numbered. That a name which is given is never
  taken for a number is tried without threads, for nothing of it is a matter of time
  (`tests/sandbox/test_lifetimes.py`).
- Plans are made before a world begins, for the compiler is another process, and no model of it. That modules are
  compiled by turns, and so many at once, is tried on its queue (`tests/worker/test_compile_queue.py`), by hand and
  with real ones.
- Nothing in a world has a terminal: no command is run in it (`tests/cli/`).
- No world is forked, for a child would have the threads of the system that stand for those of the world, but for one.
  Real processes are (`tests/engine/test_forks.py`, `make stress`).
- A handler of a signal comes between two lines, and raises where a function begins. Python also looks for signals
  where a loop begins anew; what is raised there is tried with real alarms (`tests/sandbox/test_signals.py`) and read
  from the bytecode (`tests/test_back_jumps.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).resolve().parents[2]
_MOST_SEEDS = 4000


class Undone(NamedTuple):
    what: str
    file: str
    old: str
    new: str


ALL = (
    Undone(
        "a second cancel does not end the waiting",
        "runner/loop.py",
        """    while not over.done():
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError as problem:
            cancelled = problem
            control.cancel()
""",
        """    try:
        await asyncio.shield(over)
    except asyncio.CancelledError as problem:
        cancelled = problem
        control.cancel()
        await asyncio.wait([over])
""",
    ),
    Undone(
        "a session is its call's until the guest has halted",
        "sandbox/_session.py",
        """            yield GO_ON
            if self._guest.ended""",
        """            yield GO_ON
            self._occupancy.holder = None
            if self._guest.ended""",
    ),
    Undone(
        "a wakeup for stdin is acted upon only while the guest is parked",
        "execution/_halted.py",
        """        self._serve()
        yield from self._wait_until(self._within_share())
""",
        """        if self._state is not None and self._state.wait().stdin and self._streams is not None:
            self._streams.answer(self._state)
        self._serve()
        yield from self._wait_until(self._within_share())
""",
    ),
    Undone(
        "steps are asked once more before the first wait",
        "runner/_coroutine.py",
        """                around, control.on_wake = control.on_wake, woken.ring
                continue
""",
        """                around, control.on_wake = control.on_wake, woken.ring
""",
    ),
    Undone(
        "a wakeup while a step is taken is not lost",
        "runner/_executor.py",
        """        elif item.woken or until <= GO_ON:""",
        """        elif until <= GO_ON:""",
    ),
    Undone(
        "a ticker that cannot start is started later",
        "engine/_ticker.py",
        """            try:
                start_thread(thread)
            except RuntimeError as problem:""",
        """            try:
                self._thread = thread
                start_thread(thread)
            except RuntimeError as problem:""",
    ),
    Undone(
        "a deadline holds while output is not taken",
        "execution/loop_streams.py",
        """            if self._control.cancelled or time.monotonic() >= last:
                return False
            yield last
""",
        """            if self._control.cancelled:
                return False
            yield float("inf")
""",
    ),
    Undone(
        "processor time is that of the thread that took the step",
        "execution/_run.py",
        """                break
            yield from self._pause(until)
""",
        """                break
            yield until
""",
    ),
    Undone(
        "output is delivered one piece at a time",
        "execution/loop_streams.py",
        """        while self._calls and not self._awaiting and self._problem""",
        """        while self._calls and self._problem""",
    ),
    Undone(
        "a dropped store is freed",
        "engine/_store.py",
        """    __del__ = free
""",
        "",
    ),
    Undone(
        "a store in a cycle is freed after all that looks at it",
        "engine/_store.py",
        """            self._store = _stores[self._number]
            del _stores[self._number]
""",
        """            _stores.pop(self._number).free()
""",
    ),
    Undone(
        "what a handler of a signal interrupts is taken off the ticker's list",
        "engine/_instance.py",
        """        finally:
            if innermost is not None:
                innermost[0] = before
            try:
                ticker.running.pop(self, None)
            finally:
                if watched is not None:
                    ticker.watched.pop(watched, None)
""",
        """        finally:
            if innermost is not None:
                innermost[0] = before
            import sys

            if sys.exc_info()[0] is None:
                ticker.running.pop(self, None)
""",
    ),
    Undone(
        "a cancellation counts from the beginning of the call",
        "sandbox/_session.py",
        """            self._control.start(None)
            self._snapshot = None
""",
        """            self._control.start(None)
            self._control.cancelled = False
            self._snapshot = None
""",
    ),
    Undone(
        "no callback or host function cancels the task that awaits",
        "execution/_run.py",
        """                if is_cancellation(problem):
                    raise blamed(problem, "a callback or a host function") from problem
""",
        "",
    ),
    Undone(
        "what no thread can take on is not counted",
        "runner/_executor.py",
        """                        self._refuse(item)
                        break
""",
        """                        break
""",
    ),
    Undone(
        "a guest that has ended within a host function is not answered",
        "execution/_calling_out.py",
        """                    if reentry.ended is not None:
                        reentry.check()
                    instance.wake()
""",
        """                    instance.wake()
""",
    ),
    Undone(
        "a coroutine function that is done wakes the run",
        "runner/_awaited.py",
        """            self._task = None
            self._wake_run()
""",
        """            self._task = None
""",
    ),
    Undone(
        "a deadline holds while a coroutine function is awaited",
        "execution/_calling_out.py",
        """            elif not awaited.asked:
                yield from self._pause(control.deadline)
""",
        """            elif not awaited.asked:
                yield from self._pause(FOREVER)
""",
    ),
    Undone(
        "who looks at a guest looks at the instance that was there",
        "execution/_reporting.py",
        """            waits = instance.is_parked
""",
        """            waits = self._instance.is_parked
""",
    ),
    Undone(
        "the handler of a signal finds no lock that its own thread holds",
        "scheduling/_scheduler.py",
        """        self._lock = new_lock()
""",
        """        self._lock = threading.Lock()
""",
    ),
    Undone(
        "a task that was lost while it was begun is told that it failed",
        "scheduling/_scheduler.py",
        """            if run.beginner == me or (""",
        """            if (""",
    ),
)


def main() -> int:
    """Undoes each in turn; returns an exit status."""
    missed = 0
    wanted = sys.argv[1:]
    for number, undone in enumerate(ALL):
        if wanted and str(number) not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "src")
            shutil.copytree(_ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
            file = source / "stockade" / undone.file
            text = file.read_text(encoding="utf-8")
            assert undone.old in text, undone.what
            changed = text.replace(undone.old, undone.new, 1)
            if "while self._calls and self._problem" in changed:
                changed = changed.replace("                    self._awaiting = True\n", "")
            file.write_text(changed, encoding="utf-8")
            script = (
                "import sys\nfrom tests.simulation._scenes import simulate\n"
                f"for seed in range({_MOST_SEEDS}):\n"
                "    try: simulate(seed)\n"
                "    except BaseException as problem:\n"
                "        print(f'seed {seed}: {str(problem)[:110]}'); sys.exit()\n"
            )
            try:
                found = subprocess.run(
                    [sys.executable, "-c", script],
                    env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": f"{source}{os.pathsep}{_ROOT}"},
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    timeout=400,
                ).stdout.strip()
            except subprocess.TimeoutExpired:
                found = "the simulation hangs"
        missed += not found
        print(f"{number:2} {undone.what}: {found or 'not noticed'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
