"""Rights as decision tables: the environment, processes, and what guests may do to files, with real guests.

Holds P-POLICY-1.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import stockade
from stockade import Environment, Filesystem, Mount, Policy, PolicyError, Process
from tests._examples import examples, part
from tests._small_guests import ENVIRONMENT
from tests.conftest import wat
from tests.limits._guests import (
    CREAT,
    DIRECTORY,
    EBADF,
    EINVAL,
    EPERM,
    EXCL,
    MOUNT,
    READ_RIGHTS,
    SUCCESS,
    TRUNC,
    Script,
    kinds,
    tree,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# -- the environment ------------------------------------------------------------------------------------------------

# What of the host's variable a guest sees, by the mode, whether the variable is in `names`, and whether it looks
# like a secret. "refused" is the policy itself: names say nothing in that mode.
PASSES = {
    ("none", "unnamed", "plain"): False,
    ("none", "unnamed", "secret"): False,
    ("none", "named", "plain"): "refused",
    ("none", "named", "secret"): "refused",
    ("allow", "unnamed", "plain"): False,
    ("allow", "unnamed", "secret"): False,
    ("allow", "named", "plain"): True,
    ("allow", "named", "secret"): True,
    ("deny", "unnamed", "plain"): True,
    ("deny", "unnamed", "secret"): False,
    ("deny", "named", "plain"): False,
    ("deny", "named", "secret"): False,
    ("full", "unnamed", "plain"): True,
    ("full", "unnamed", "secret"): False,
    ("full", "named", "plain"): "refused",
    ("full", "named", "secret"): "refused",
}
VARIABLES = {"plain": "LANG", "secret": "DB_PASSWORD"}


def seen_by_a_guest(environment: Environment) -> dict[str, str]:
    """The environment as a guest sees it."""
    text = stockade.Sandbox(Policy(environment=environment)).run(wat(ENVIRONMENT)).stdout.decode()
    return dict(entry.split("=", 1) for entry in text.split("\0")[:-1])


@pytest.mark.parametrize("given_too", [False, True], ids=["not set", "set"])
@pytest.mark.parametrize("row", PASSES, ids=" ".join)
def test_a_variable_of_the_host(row: tuple[str, str, str], given_too: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row with a real guest: a secret is seen only where it is named one by one."""
    mode, named, looks = row
    name = VARIABLES[looks]
    names = (name,) if named == "named" else ("OTHER",) if mode in ("allow", "deny") else ()
    given_ = {name: "given"} if given_too else {}
    monkeypatch.setattr("os.environ", {name: "host's"})

    if PASSES[row] == "refused":
        with pytest.raises(PolicyError) as caught:
            Environment(mode=mode, names=names, set=given_)  # type: ignore[arg-type]
        assert str(caught.value) == f'environment.names has no effect where the mode is "{mode}": leave it out'
        return
    environment = Environment(mode=mode, names=names, set=given_)  # type: ignore[arg-type]
    passed = {name: "host's"} if PASSES[row] else {}

    assert environment.passes(name) is PASSES[row]
    assert environment.of({name: "host's"}) == {**passed, **given_}
    assert seen_by_a_guest(environment) == {**passed, **given_}


NEAR_MISSES = ("lang", "Lang", "LANG_", "LANG2", "LANGUAGE", "LAN", "XLANG", " LANG", "LANG ", "LANG\n", "")


@pytest.mark.parametrize("name", NEAR_MISSES, ids=repr)
def test_names_are_matched_exactly(name: str) -> None:
    """Attack: a variable whose name begins like, or differs in case from, one that is named."""
    assert not Environment(mode="allow", names=("LANG",)).passes(name)
    assert Environment(mode="deny", names=("LANG",)).passes(name)
    assert Environment(mode="allow", names=("LANG",)).passes("LANG")
    assert not Environment(mode="deny", names=("LANG",)).passes("LANG")


@pytest.mark.parametrize("name", ["*", "LANG*", "L?NG", "[A-Z]ANG", ".*"])
def test_names_are_no_patterns(name: str) -> None:
    """Attack: a star in a list gives out the whole environment; here it is a letter like any other."""
    environment = Environment(mode="allow", names=(name,))

    assert environment.of({"LANG": "C", "HOME": "/", name: "itself"}) == {name: "itself"}


SECRETS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION", "AZURE_CLIENT_ID", "GOOGLE_APPLICATION_CREDENTIALS"),
    *("GITHUB_TOKEN", "github_token", "DB_PASSWORD", "DB_PASSWD", "MYSQL_PWD", "PGPASSWORD", "SECRET", "Client_Secret"),
    *("OPENAI_API_KEY", "APIKEY", "ACCESSKEY", "SSH_PRIVATE_KEY", "SSH_AUTH_SOCK", "SESSION_ID", "COOKIE"),
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "PYTHONSTARTUP", "NODE_OPTIONS"),
    *("PERL5LIB", "RUBYOPT", "BASH_ENV", "IFS"),
    *("DB_PASS", "SMTP_PASS", "GPG_PASSPHRASE", "ENCRYPTION_KEY", "STRIPE_KEY"),
    *("DATABASE_URL", "DATABASE_URL_REPLICA", "POSTGRES_URI", "REDIS_URL", "REDIS_TLS_URL", "MONGODB_URI", "AMQP_URL"),
    *("CELERY_BROKER_URL", "SQLALCHEMY_DATABASE_URI", "JDBC_URL", "SENTRY_DSN", "DSN", "AZURE_CONN_STR"),
    *("STORAGE_CONNECTION_STRING", "GITHUB_PAT", "PAT", "STRIPE_SK", "SK", "KUBECONFIG", "KUBE_CONTEXT", "NETRC"),
    *("HTTPS_PROXY", "http_proxy", "ALL_PROXY", "DOCKER_CONFIG", "DOCKER_HOST", "PGPASSFILE", "SSH_AGENT_PID"),
    *("GNUPGHOME", "VAULT_ADDR", "TF_VAR_region", "SLACK_WEBHOOK", "TLS_PEM", "DB_CREDS", "MFA_PIN", "KEY2", "SALT"),
    *("CLOUDSDK_CONFIG", "OAUTH_CLIENT", "AUTHORIZATION", "KRB5_KEYTAB", "JAVA_TOOL_OPTIONS", "PASSWORD_FILE"),
)
HARMLESS = (
    "LANG",
    "HOME",
    "PATH",
    "TERM",
    "TZ",
    "USER",
    "TMPDIR",
    "LC_ALL",
    "KEYBOARD",
    "SOLD_OUT",
    "MONKEY",
    "COMPASS",
    "PATTERN",
    "PATH_INFO",
    "SKIP",
    "ASK",
    "PINNED",
    "HOMEPAGE_URL",
    "PROXY_COUNT",
    "GIT_AUTHOR_NAME",
    "BASALT",
    "DATABASE_POOL",
    "ENVIRONMENT",
    "DESCRIPTION",
)
HIDDEN = (
    "https://user:password@proxy:3128",
    "postgres://app@db.internal/app",
    "//registry:secret@npm.example/".replace("//", "https://"),
    "Server=db;User Id=app;Password=hunter2;",
    "host=db password='hunter2'",
    "https://api.example/v1?api_key=0123456789",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    "Bearer 0123456789abcdef",
    "ghp_" + "0aB" * 12,
    "github_pat_11ABCDEFG",
    "glpat-" + "x" * 20,
    "sk_" + "live_0123456789",
    "rk_" + "test_0123456789",
    "xoxb" + "-1-2-3",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "AIza" + "S" * 35,
    "npm_" + "a" * 36,
    "hf_" + "a" * 34,
    "sk-" + "proj-0123456789abcdef",
    '{"type": "service_account", "private_key": "x"}',
    "https://hooks.slack.com/services/T0/B0/x",
)
OPEN = (
    *(
        "",
        "C",
        "/usr/bin:/bin",
        "https://example.com/a@b",
        "me@example.com",
        "host:22",
        "1.2.3",
        "eyJ",
        "a=b;c=d",
        "sk-1",
    ),
    *("ghp_", "tokenize", "AKIA", "https://example.com:8080/?q=1#x@y", "-----BEGIN-----", "xoxo", "mask-image"),
)


@pytest.mark.parametrize("name", SECRETS)
def test_what_looks_like_a_secret_passes_only_by_its_name(name: str) -> None:
    """Attack: `deny` and `full` leak whatever nobody thought of."""
    assert not Environment(mode="full").passes(name)
    assert not Environment(mode="deny", names=("HOME",)).passes(name)
    assert Environment(mode="allow", names=(name,)).passes(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_looks_like_no_secret_passes(name: str) -> None:
    """The twin of the above: not everything is a secret."""
    assert Environment(mode="full").passes(name)
    assert Environment(mode="deny", names=("OTHER",)).passes(name)


@pytest.mark.parametrize("value", HIDDEN)
def test_what_has_a_secret_for_a_value_passes_only_by_its_name(value: str) -> None:
    """The attack: a secret under a name that tells nothing, a proxy's or a database's password in its address."""
    host = {"PLAIN": value, "LANG": "C"}

    assert Environment(mode="full").of(host) == {"LANG": "C"}
    assert Environment(mode="deny", names=("OTHER",)).of(host) == {"LANG": "C"}
    assert Environment(mode="allow", names=("PLAIN", "LANG"), secrets="never").of(host) == {"LANG": "C"}
    assert Environment(mode="allow", names=("PLAIN",)).of(host) == {"PLAIN": value}
    assert Environment(set={"PLAIN": value}).of({}) == {"PLAIN": value}


@pytest.mark.parametrize("value", OPEN)
def test_what_has_no_secret_for_a_value_passes(value: str) -> None:
    """The twin: not everything is a secret."""
    assert Environment(mode="full").of({"PLAIN": value}) == {"PLAIN": value}


def test_a_narrower_policy_does_not_bring_a_withheld_value_to_light() -> None:
    """The attack: a task names a variable that its sandbox passes on only where it is no secret."""
    host = {"HOMEPAGE": "https://user:password@host/", "LANG": "C"}
    asked = Environment(mode="allow", names=("HOMEPAGE", "LANG"))

    narrowed = Policy(environment=Environment(mode="full")).narrow(Policy(environment=asked)).environment

    assert narrowed == Environment(mode="allow", names=("HOMEPAGE", "LANG"), secrets="never")
    assert narrowed.of(host) == {"LANG": "C"}
    assert asked.of(host) == host


@pytest.mark.parametrize("mode", ["none", "deny", "full"])
def test_never_is_for_names_that_are_passed_on(mode: str) -> None:
    """What would say nothing is refused."""
    with pytest.raises(PolicyError) as caught:
        Environment(mode=mode, secrets="never")  # type: ignore[arg-type]

    assert str(caught.value) == f'environment.secrets has no effect where the mode is "{mode}": leave it out'


def test_long_values_are_looked_at_in_no_time() -> None:
    """The attack: a value that makes a pattern go back again and again; all of these are done in linear time."""
    for value in (
        "a" * 100_000,
        "://" * 50_000,
        "eyJ" * 50_000,
        "-----BEGIN " * 10_000,
        "password" * 20_000,
        " " * 100_000,
    ):
        assert Environment(mode="full").of({"PLAIN": value}) in ({}, {"PLAIN": value})


_NAMES = st.text(alphabet="ABab_*=1 \n", max_size=4)


@settings(max_examples=examples(200))
@given(
    mode=st.sampled_from(["none", "allow", "deny", "full"]),
    names=st.lists(_NAMES.filter(lambda name: bool(name) and "=" not in name), max_size=4),
    host=st.dictionaries(_NAMES, st.text(max_size=3), max_size=6),
    given_=st.dictionaries(_NAMES.filter(lambda name: bool(name) and "=" not in name), st.just("given"), max_size=2),
)
@example(mode="allow", names=["A"], host={"A": "1", "a": "2"}, given_={})
def test_a_guest_sees_what_is_passed_and_what_is_given(
    mode: str, names: list[str], host: dict[str, str], given_: dict[str, str]
) -> None:
    """Nothing of the host's beyond the names, and nothing of them changed."""
    if mode in ("none", "full"):
        names = []
    seen = Environment(mode=mode, names=tuple(names), set=given_).of(host)  # type: ignore[arg-type]
    expected = {
        "none": {},
        "allow": {name: value for name, value in host.items() if name in names},
        "deny": {name: value for name, value in host.items() if name not in names},
        "full": host,
    }[mode]

    assert seen == {**expected, **given_}


# -- processes ------------------------------------------------------------------------------------------------------

GIT = "/usr/bin/git"
COMMANDS = {
    "itself": (GIT, True),
    "longer": ("/usr/bin/git-shell", False),
    "below": ("/usr/bin/git/../sh", False),
    "shorter": ("/usr/bin/gi", False),
    "folder": ("/usr/bin", False),
    "other case": ("/usr/bin/GIT", False),
    "name only": ("git", False),
    "relative": ("usr/bin/git", False),
    "other spelling": ("/usr//bin/git", False),
    "roundabout": ("/usr/bin/../bin/git", False),
    "slash at the end": ("/usr/bin/git/", False),
    "with an argument": ("/usr/bin/git status", False),
    "with another command": ("/usr/bin/git; rm -rf /", False),
    "line break": ("/usr/bin/git\n", False),
    "NUL": ("/usr/bin/git\0/sh", False),
    "pattern": ("/usr/bin/*", False),
    "empty": ("", False),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_by_mode(kind: str) -> None:
    """Attack: `git*` as a prefix lets `git-anything` and `git; sh` run."""
    command, same = COMMANDS[kind]

    assert not Process().permits(command)
    assert Process(mode="commands", commands=("/bin/true", GIT)).permits(command) is same
    assert Process(mode="full").permits(command)


def test_a_star_in_a_command_is_a_letter_like_any_other() -> None:
    """There are no patterns."""
    process = Process(mode="commands", commands=("/usr/bin/git*",))

    assert process.permits("/usr/bin/git*")
    for command in (GIT, "/usr/bin/git-shell", "/usr/bin/gitk"):
        assert not process.permits(command)


@pytest.mark.parametrize("command", ["git*", "git", "./git", "~/git", "", "/usr/bin/../bin/git", "/usr/./git", "*"])
def test_commands_are_absolute_paths(command: str) -> None:
    """Attack: a bare name is whatever stands first in someone's PATH."""
    with pytest.raises(PolicyError) as caught:
        Process(mode="commands", commands=(command,))

    assert str(caught.value) == (
        f'process.commands[0] is {command!r}: it must be an absolute path, such as "/usr/bin/git"'
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("mode = 'commands'", 'process.commands is empty: name the commands, or set the mode to "none"'),
        ("commands = ['/bin/a']", 'process.commands has no effect where the mode is "none": leave it out'),
        (
            "mode = 'full'\ncommands = ['/bin/a']",
            'process.commands has no effect where the mode is "full": leave it out',
        ),
        ("mode = 'all'", 'process.mode is \'all\': it must be "none", "commands" or "full"'),
        ("command = ['/bin/a']", "process.command is not known: did you mean commands?"),
    ],
)
def test_mistakes_with_processes_are_named(document: str, message: str) -> None:
    """An empty list is never taken for all."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads(f"[process]\n{document}")

    assert str(caught.value) == message


# -- files ----------------------------------------------------------------------------------------------------------

OLD = 1_000_000_000
"""When everything in the mount was last changed, in seconds."""
ENOTSUP = 58


class Operation(NamedTuple):
    """Something that a guest tries with files.

    Attributes:
        write: Writes it into a script; its last call is the one that matters.
        read_only: The errno of that call in a read-only mount.
        needs: The rights without which it is refused in a writable mount, the one that is looked at first first.
        change: What it does to the tree.
        done: The errno of the last call where it is permitted.
        adrift: The errno of the last call where there is no mount, so that the descriptors before it were not had.
    """

    write: Callable[[Script], object]
    read_only: int = EPERM
    needs: tuple[str, ...] = ()
    change: Callable[[dict[str, object]], object] = lambda _: None
    done: int = SUCCESS
    adrift: int = EBADF


def moves(old: str, new: str) -> Callable[[dict[str, object]], object]:
    return lambda found: found.update({new: found.pop(old)})


def sets(name: str, content: object) -> Callable[[dict[str, object]], object]:
    return lambda found: found.update({name: content})


def read_a_file(script: Script) -> None:
    script.read(script.open("one", rights=READ_RIGHTS), 10)


def list_a_folder(script: Script) -> None:
    script.call("fd_readdir", script.open("folder", DIRECTORY), script.room(256), 256, 0, script.cell().address)


OPERATIONS = {
    # On a descriptor that was not had, the script reads stdin, which is at its end.
    "open for reading": Operation(read_a_file, SUCCESS, adrift=SUCCESS),
    "open through a link": Operation(lambda script: script.open("link", rights=READ_RIGHTS), SUCCESS),
    "list": Operation(list_a_folder, SUCCESS),
    "open for writing": Operation(lambda script: script.open("one")),
    "write": Operation(lambda script: script.write(script.open("one"), b"ONE!"), EBADF, change=sets("one", b"ONE!")),
    "write to what was opened for reading": Operation(
        lambda script: script.write(script.open("one", rights=READ_RIGHTS), b"ONE!"), EBADF, done=EBADF
    ),
    "O_CREAT": Operation(lambda script: script.open("new", CREAT), needs=("create",), change=sets("new", b"")),
    "O_CREAT O_EXCL": Operation(
        lambda script: script.open("new", CREAT | EXCL), needs=("create",), change=sets("new", b"")
    ),
    "O_CREAT for reading": Operation(
        lambda script: script.open("new", CREAT, rights=READ_RIGHTS), needs=("create",), change=sets("new", b"")
    ),
    "O_CREAT of what exists": Operation(lambda script: script.open("one", CREAT)),
    "O_TRUNC": Operation(lambda script: script.open("one", TRUNC), change=sets("one", b"")),
    "O_TRUNC for reading": Operation(
        lambda script: script.open("one", TRUNC, rights=READ_RIGHTS), change=sets("one", b"")
    ),
    "mkdir": Operation(
        lambda script: script.call("path_create_directory", MOUNT, "new"), needs=("create",), change=sets("new", None)
    ),
    "unlink": Operation(
        lambda script: script.call("path_unlink_file", MOUNT, "one"),
        needs=("delete",),
        change=lambda found: found.pop("one"),
    ),
    "unlink a link": Operation(
        lambda script: script.call("path_unlink_file", MOUNT, "link"),
        needs=("delete",),
        change=lambda found: found.pop("link"),
    ),
    "rmdir": Operation(
        lambda script: script.call("path_remove_directory", MOUNT, "folder"),
        needs=("delete",),
        change=lambda found: found.pop("folder"),
    ),
    "rename over a file": Operation(
        lambda script: script.call("path_rename", MOUNT, "one", MOUNT, "two"),
        needs=("create", "delete"),
        change=moves("one", "two"),
    ),
    "rename over a link": Operation(
        lambda script: script.call("path_rename", MOUNT, "one", MOUNT, "link"),
        needs=("create", "delete"),
        change=moves("one", "link"),
    ),
    "rename over a folder": Operation(
        lambda script: script.call("path_rename", MOUNT, "empty", MOUNT, "folder"),
        needs=("create", "delete"),
        change=moves("empty", "folder"),
    ),
    "rename": Operation(
        lambda script: script.call("path_rename", MOUNT, "one", MOUNT, "new"),
        needs=("create", "delete"),
        change=moves("one", "new"),
    ),
    "rename into a folder": Operation(
        lambda script: script.call("path_rename", MOUNT, "one", MOUNT, "folder/new"),
        needs=("create", "delete"),
        change=moves("one", "folder/new"),
    ),
    "hard link": Operation(
        lambda script: script.call("path_link", MOUNT, 0, "one", MOUNT, "new"),
        needs=("symlinks", "create"),
        change=sets("new", b"one"),
    ),
    "symlink": Operation(
        lambda script: script.call("path_symlink", "two", MOUNT, "new"),
        needs=("symlinks", "create"),
        change=sets("new", ("link", "two")),
    ),
    "set times": Operation(
        lambda script: script.call("path_filestat_set_times", MOUNT, 0, "one", 0, (OLD + 1) * 10**9, 4),
        change=sets("one", "touched"),
    ),
    "set times of an open file": Operation(
        lambda script: script.call(
            "fd_filestat_set_times", script.open("one", rights=READ_RIGHTS), 0, (OLD + 1) * 10**9, 4
        ),
        change=sets("one", "touched"),
    ),
    "set size": Operation(
        lambda script: script.call("fd_filestat_set_size", script.open("one"), 1), EBADF, change=sets("one", b"o")
    ),
    "set size of what was opened for reading": Operation(
        lambda script: script.call("fd_filestat_set_size", script.open("one", rights=READ_RIGHTS), 1), done=EINVAL
    ),
    "allocate": Operation(lambda script: script.call("fd_allocate", script.open("one"), 0, 100), EBADF, done=ENOTSUP),
}
RIGHTS = [
    dict(zip(("create", "delete", "symlinks"), values, strict=True))
    for values in itertools.product((True, False), repeat=3)
]


def named(rights: dict[str, bool]) -> str:
    return " ".join(name for name, has in rights.items() if has) or "none of them"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a guest finds in its mount; beside it stands what no guest may see."""
    inside = tmp_path / "inside"
    for name in ("folder", "empty"):
        (inside / name).mkdir(parents=True)
    (inside / "one").write_bytes(b"one")
    (inside / "two").write_bytes(b"two")
    (inside / "link").symlink_to("two")
    (inside / "way out").symlink_to("../outside")
    (tmp_path / "outside").write_bytes(b"secret")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.utime(path, (OLD, OLD), follow_symlinks=False)
    return inside


def everything(folder: Path) -> dict[str, object]:
    """All that a guest could change in a tree and around it, times and link counts too."""
    found: dict[str, object] = {}
    for path in (folder.parent, *folder.parent.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_mode, stat.st_nlink, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found | tree(folder.parent)


@pytest.mark.parametrize(
    ("mode", "rights", "operation"),
    part(list(itertools.product(["none", "ro", "rw"], RIGHTS, OPERATIONS))),
    ids=lambda value: named(value) if isinstance(value, dict) else value,
)
def test_an_operation_by_rights(mode: str, rights: dict[str, bool], operation: str, folder: Path) -> None:
    """What is refused leaves the host's tree untouched to the last bit."""
    wanted = OPERATIONS[operation]
    mounts = () if mode == "none" else (Mount(str(folder), "/", mode),)  # type: ignore[arg-type]
    before = everything(folder)
    contents = tree(folder)
    script = Script()
    wanted.write(script)

    played = script.play(Policy(filesystem=Filesystem(mounts=mounts, **rights)))

    errno = played.errnos[-1]
    if mode == "none":
        # What would fail anyway is no violation, whatever rights it would need.
        assert errno == wanted.adrift
        assert played.report.violations == ()
        assert everything(folder) == before
    elif mode == "ro":
        assert errno == wanted.read_only
        assert everything(folder) == before
    elif missing := [right for right in wanted.needs if not rights[right]]:
        assert errno == EPERM
        assert kinds(played.report.violations) == missing[:1]
        assert everything(folder) == before
    else:
        assert errno == wanted.done
        assert played.report.violations == ()
        wanted.change(contents)
        if contents.get("one") == "touched":
            contents["one"] = b"one"
            assert (folder / "one").stat().st_mtime == OLD + 1
        assert tree(folder) == contents
        assert (folder.parent / "outside").read_bytes() == b"secret"


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_what_is_mounted_is_read(mode: str, folder: Path) -> None:
    """The positive twin of all refusals."""
    script = Script()
    taken, buffer = script.read(script.open("one", rights=READ_RIGHTS), 10)
    played = script.play(Policy(filesystem=Filesystem(mounts=(Mount(str(folder), "/", mode),))))  # type: ignore[arg-type]

    assert played.errnos == [SUCCESS, SUCCESS]
    assert played.memory[buffer : buffer + played.number(taken)] == b"one"


WAYS_OUT = ("../outside", "/etc/passwd", "folder/../../outside", "way out", "./../outside", "folder/../way out", "..")


@pytest.mark.parametrize("path", WAYS_OUT)
@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_what_is_not_mounted_is_not_reached(mode: str, path: str, folder: Path) -> None:
    """Attack: dots, absolute paths and links lead out of the mount, to read or to write."""
    before = everything(folder)
    for flags, rights in ((0, READ_RIGHTS), (CREAT, READ_RIGHTS), (TRUNC, READ_RIGHTS), (DIRECTORY, READ_RIGHTS)):
        script = Script()
        script.open(path, flags, rights=rights)
        mounts = (Mount(str(folder), "/", mode),)  # type: ignore[arg-type]
        played = script.play(Policy(filesystem=Filesystem(mounts=mounts, delete=True, symlinks=True)))

        assert played.errnos == [EPERM]
        assert kinds(played.report.violations) == ["path"]
    assert everything(folder) == before


@pytest.mark.parametrize("call", ["path_link", "path_rename"])
@pytest.mark.parametrize(("first", "second"), [("ro", "rw"), ("rw", "ro"), ("ro", "ro"), ("rw", "rw")])
def test_nothing_is_moved_between_mounts_of_which_one_is_read_only(
    call: str, first: str, second: str, tmp_path: Path
) -> None:
    """Attack: a hard link in a writable mount to a file of a read-only one, which is then written to."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(name.encode())
    before = tree(tmp_path)
    policy = Policy(
        filesystem=Filesystem(
            mounts=(
                Mount(str(tmp_path / "first"), "/first", first),  # type: ignore[arg-type]
                Mount(str(tmp_path / "second"), "/second", second),  # type: ignore[arg-type]
            ),
            delete=True,
            symlinks=True,
        )
    )
    script = Script()
    if call == "path_link":
        script.call("path_link", MOUNT, 0, "first", MOUNT + 1, "new")
    else:
        script.call("path_rename", MOUNT, "first", MOUNT + 1, "new")
    played = script.play(policy)

    if first == second == "rw":
        assert played.errnos == [SUCCESS]
        assert tree(tmp_path)["second/new"] == b"first"
        assert ("first/first" in tree(tmp_path)) is (call == "path_link")
    else:
        assert played.errnos == [EPERM]
        assert kinds(played.report.violations) == ["path"]
        assert tree(tmp_path) == before


def test_rights_are_those_that_were_asked_for() -> None:
    """A mount is for reading, and nothing is deleted or linked, unless the policy says so."""
    policy = Policy.loads("[filesystem]\nmounts = [{ host = '.', guest = '/work' }]")

    assert policy.filesystem == Filesystem(
        mounts=(Mount(".", "/work", "ro"),), create=True, delete=False, symlinks=False
    )
    writable = Policy.loads("[filesystem]\nmounts = [{ host = '.', guest = '/work', mode = 'rw' }]").filesystem
    assert (writable.delete, writable.symlinks) == (False, False)
