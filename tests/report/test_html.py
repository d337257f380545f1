"""The report as HTML: one file, no script, nothing from elsewhere, and no text of a guest's that is more than text.

Holds P-REPORT-4.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import msgspec
import pytest

import stockade
from stockade import Report
from stockade.report import Sample
from tests.conftest import HELLO, wat
from tests.report._reports import busy, endings, hostile
from tests.report.test_report import FULL, make

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_ELEMENTS = {
    *("html", "head", "meta", "link", "title", "style", "body", "h1", "h2", "h3", "p", "span", "table", "tr", "th"),
    *("td", "pre", "svg", "rect", "line", "polyline", "path", "text"),
}
_ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "scope", "viewbox", "role"),
    *("aria-label", "aria-hidden", "preserveaspectratio", "width", "height", "x", "y", "x1", "x2", "y1", "y2", "d"),
    "points",
}


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.other: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    def handle_pi(self, data: str) -> None:
        self.other.append(data)

    def unknown_decl(self, data: str) -> None:
        self.other.append(data)


def check(html: str) -> Page:
    """Checks that a page is whole, and holds and names nothing but what it should."""
    page = Page(html)
    assert page.open == []
    assert page.other == []
    assert {name for name, _ in page.elements} <= _ELEMENTS
    for name, attributes in page.elements:
        assert set(attributes) <= _ATTRIBUTES, (name, attributes)
        assert attributes.get("href") in (None, "data:,"), "the one link is to an empty icon that is in the page itself"
    style = re.search("<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert not re.search(r"url|@import|@font-face|expression|javascript", style[1])
    metas = [attributes for name, attributes in page.elements if name == "meta"]
    (policy,) = [meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Nothing invisible, and nothing that turns the direction of the line.
    assert all(character.isprintable() or character == "\n" for character in html)
    return page


@pytest.mark.parametrize("report", [FULL, make(), hostile(), make(value=b"\xff" * 16)])
def test_a_page_holds_and_names_nothing_from_elsewhere(report: Report) -> None:
    """No script, no handler, no style of an element, no address: whatever the guest is called and has written."""
    check(report.to_html())


def test_pages_of_real_runs_hold_and_name_nothing_from_elsewhere(tmp_path: Path) -> None:
    """However they ended."""
    for report in (*endings(tmp_path).values(), busy()):
        page = check(report.to_html())
        assert str(report.outcome) in page.texts
        assert "Limits" in page.texts


def test_hostile_text_is_shown_as_text() -> None:
    """Attack: markup in the names of module and policy, in output, paths, calls and traps. All is there to read."""
    page = check(hostile().to_html())
    shown = "".join(page.texts)

    assert shown.count("<script>alert(1)</script>") > 10
    assert "\\x1b[2J\\u202eevil\\u2066\\x00" in shown
    assert not any(name in ("script", "img") for name, _ in page.elements)


def test_plots_have_every_sample_and_mark() -> None:
    """Memory, fuel, bytes and calls over time; violations and alerts where they happened."""
    report = busy()
    page = check(report.to_html())

    lines = [attributes["points"] for name, attributes in page.elements if name == "polyline"]
    assert len(lines) == 6, "memory, fuel, read, written, output, calls"
    assert all(len((line or "").split()) == len(report.samples) for line in lines)
    titles = {"Memory over time", "Fuel over time", "Bytes in and out over time", "Calls over time"}
    labels = {attributes.get("aria-label") for name, attributes in page.elements if name == "svg"}
    assert titles <= labels
    marks = [attributes["class"] for name, attributes in page.elements if name == "path"]
    assert marks.count("alert") == len(report.alerts) + 1, "and one in the legend"


def coordinates(page: Page) -> list[float]:
    """All numbers of the drawings."""
    told = []
    for name, attributes in page.elements:
        if name in ("polyline", "line", "rect", "path", "text"):
            for key in ("points", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "d"):
                told += re.findall(r"-?[\d.]+|nan|inf", attributes.get(key) or "")
    return [float(number) for number in told]


@pytest.mark.parametrize("seconds", [0.0, 1e-12, float("nan"), float("inf"), -1.0, 5e8])
def test_a_run_of_any_length_is_drawn(seconds: float) -> None:
    """No time at all, or what is no time: nothing is divided by it, and nothing is drawn outside."""
    samples = tuple(Sample(at=at, memory_bytes=memory) for at, memory in ((0.0, 0), (seconds, 2**62), (1.0, -5)))
    usage = msgspec.structs.replace(FULL.usage, wall_seconds=seconds)
    page = check(msgspec.structs.replace(FULL, samples=samples, usage=usage).to_html())

    assert all(-20 <= number <= 740 for number in coordinates(page))


def test_a_page_stays_small() -> None:
    """Attack: 64 MiB of output, and 512 samples; the page is for reading."""
    samples = tuple(Sample(at=number / 100, memory_bytes=number, calls=number) for number in range(512))
    report = make(stdout=b"x" * (64 << 20), stderr=b"\x00" * (1 << 20), samples=samples, usage=busy().usage)

    html = report.to_html()

    assert len(html) < 300_000
    assert "64.0 MiB, of which the beginning and the end are shown." in html


def test_a_report_without_samples_says_how_to_have_them() -> None:
    """And has what it has: limits, violations, output."""
    with stockade.Sandbox() as box:
        report = box.run(wat(HELLO))
    page = check(report.to_html())

    assert report.samples == ()
    assert not any(name == "polyline" for name, _ in page.elements)
    assert "hello, world\n" in page.texts or report.stdout.decode() in page.texts


# -- in a browser -----------------------------------------------------------------------------------------------------

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


def browse(address: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens a page in a browser of its own, and closes it."""
    assert CHROMIUM is not None
    return subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-extensions", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={folder / 'profile'}", "--window-size=900,1200"),
            *("--enable-logging=stderr", "--log-level=0", *options, address),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


@in_chromium
@pytest.mark.slow
def test_a_browser_renders_it_without_a_complaint(tmp_path: Path) -> None:
    """No message in its console, not even on the hostile one; and what is drawn is there."""
    for report, name in ((busy(), "busy"), (hostile(), "hostile")):
        path = tmp_path / f"{name}.html"
        path.write_text(report.to_html(), encoding="utf-8")
        done = browse(path.as_uri(), tmp_path, "--dump-dom", f"--screenshot={tmp_path / name}.png")
        assert "CONSOLE" not in done.stderr, done.stderr
        assert done.stdout.count("<polyline") == 6
        assert "<script" not in done.stdout
        shot = browse(path.as_uri(), tmp_path, f"--screenshot={tmp_path / name}.png")
        assert "CONSOLE" not in shot.stderr
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000


class _Asked(BaseHTTPRequestHandler):
    """Answers with a page, and keeps what is asked for."""

    def __init__(self, html: bytes, asked: list[str], *args: object) -> None:
        self._html = html
        self._asked = asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self._html)

    def log_message(self, *args: object) -> None:
        pass


def asked_for(html: str, tmp_path: Path) -> tuple[list[str], list[str]]:
    """What a browser asks the server of a page for, and all addresses that it asks anybody for."""
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Asked, html.encode(), asked)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        log = tmp_path / "net.json"
        browse(f"http://127.0.0.1:{server.server_port}/report", tmp_path, "--dump-dom", f"--log-net-log={log}")
        server.shutdown()
    text = log.read_text()
    if not text.rstrip().endswith("}"):
        text = text.rstrip().rstrip(",") + "]}"
    events = json.loads(text)["events"]
    return asked, sorted({event["params"]["url"] for event in events if "url" in event.get("params", {})})


@in_chromium
@pytest.mark.slow
@pytest.mark.parametrize("report", [busy, hostile])
def test_a_browser_asks_nobody_for_anything(report: object, tmp_path: Path) -> None:
    """Not even the server that it has the page from, for an icon."""
    asked, addresses = asked_for(report().to_html(), tmp_path)  # type: ignore[operator]

    assert asked == ["/report"]
    assert not [address for address in addresses if "evil" in address]


@in_chromium
@pytest.mark.slow
def test_what_a_browser_asks_for_is_seen(tmp_path: Path) -> None:
    """The twin: a page that names a picture."""
    asked, _ = asked_for("<!doctype html><img src=/picture.png>", tmp_path)

    assert "/picture.png" in asked
