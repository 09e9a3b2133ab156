"""The HTML report of a hostile checkpoint in a real browser: nothing runs, nothing is fetched."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backdrift.core.results import Report
from backdrift.report.html import render_html

from .sample import document, report
from .test_report import BROWSER, browse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine"),
]

ATTACK = """<script>document.title='PWNED'</script><img src=x onerror="document.title='PWNED'">
<svg onload="document.title='PWNED'"></svg><img src="{beacon}"><link rel=stylesheet href="{beacon}">
<iframe src="javascript:document.title='PWNED'"></iframe><iframe src="{beacon}"></iframe>
<object data="{beacon}"></object><style>@import '{beacon}'; body {{ background: url({beacon}) }}</style>
<meta http-equiv="refresh" content="0; url={beacon}"><base href="{beacon}">
<form action="{beacon}"><button autofocus onfocus="document.title='PWNED'"></button></form>"""
BREAKOUTS = (
    "",
    '"',
    "'",
    '">',
    "'>",
    "</title>",
    "</style>",
    "</textarea>",
    "-->",
    "</details>",
    "{{ 7*7 }}",
)
INVISIBLE = "\u202e\u2066\u200b\x1b[31m\x00\x07\ufeff\ud800"
FIXED = {"verdict", "suspicious_when", "rule", "level", "expires", "schema_version"}


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and writes down what was asked for."""

    asked: list[str]

    def __init__(self, *arguments: Any, asked: list[str], **options: Any) -> None:
        self.asked = asked
        super().__init__(*arguments, **options)

    def log_message(self, *_: object) -> None:
        self.asked.append(self.path)


@dataclasses.dataclass
class Site:
    folder: Path
    address: str
    asked: list[str]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder), asked=asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Site(folder, f"http://127.0.0.1:{server.server_port}", asked)
    server.shutdown()
    thread.join()
    server.server_close()


def spoiled(value: Any, text: str, key: str = "") -> Any:
    """A report in which every text, names of settings among them, is the attacker's."""
    if isinstance(value, dict):
        free = key in ("schedule", "network", "config", "versions", "seeds")
        return {text + k if free else k: spoiled(v, text, k) for k, v in value.items()}
    if isinstance(value, list):
        return [spoiled(item, text, key) for item in value]
    return text if isinstance(value, str) and key not in FIXED else value


def hostile_page(beacon: str) -> str:
    attack = "".join(start + ATTACK.format(beacon=beacon) for start in BREAKOUTS) + INVISIBLE
    old = report()
    new = Report.model_validate(spoiled(old.model_dump(mode="json"), attack))
    new.evidence = [dataclasses.replace(e, weights=attack, sampler=attack) for e in old.evidence]
    whole = document(new, new)
    whole.notices.append(attack)
    return render_html(whole)


def look(site: Site, tmp_path: Path, page: str) -> str:
    (site.folder / "report.html").write_text(page, encoding="utf-8")
    (site.folder / "beacon").write_text("seen")
    options = ("--virtual-time-budget=4000", "--dump-dom")
    return browse(tmp_path / "profile", f"{site.address}/report.html", *options)


def test_nothing_of_a_hostile_checkpoint_runs(site: Site, tmp_path: Path) -> None:
    page = hostile_page(f"{site.address}/beacon")
    assert not re.search("[\u202e\u2066\u200b\x1b\x00\x07\ufeff\ud800]", page)
    drawn = look(site, tmp_path, page)
    assert set(site.asked) == {"/report.html"}
    assert "<title>backdrift: 2 reports</title>" in drawn
    assert not re.search(r"<(script|iframe|object|form|base|link|button)\b", drawn)
    assert set(re.findall(r"<img[^>]*? src=\"(.{10})", drawn)) == {"data:image"}


@pytest.mark.parametrize("policy", [True, False], ids=["with CSP", "without, as a control"])
def test_the_policy_holds_where_escaping_would_not(site: Site, tmp_path: Path, policy: bool) -> None:
    """The attack as markup in the page: the policy alone stops it, and without the policy it works."""
    page = render_html(document(report()))
    run = f"<script>document.title='PWNED'</script><img src='{site.address}/beacon'>"
    page = page.replace("<main>", f"<main>{run}")
    if not policy:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    drawn = look(site, tmp_path, page)
    assert ("<title>PWNED</title>" in drawn) == (not policy)
    assert ("/beacon" in site.asked) == (not policy)
