"""The formats of a report: what a person, a program and a hostile model make of them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from datetime import date
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from backdrift.core.alerts import alerts
from backdrift.core.results import Failure, ScanDocument, Verdict
from backdrift.core.static import Acceptance, Limit, StaticFinding
from backdrift.report.console import render_console
from backdrift.report.formats import FORMATS, render
from backdrift.report.html import render_html
from backdrift.report.json import render_json, schema

from .sample import bare_report, document, report

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>\u202e\x1b[31m'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def images(page: str) -> list[Image.Image]:
    found = []
    for match in re.finditer(r'<img[^>]*src="data:image/png;base64,([^"]+)"[^>]*>', page):
        assert 'alt="' in match.group(0)
        picture = Image.open(io.BytesIO(base64.b64decode(match.group(1))))
        picture.load()
        found.append(picture)
    return found


@pytest.mark.parametrize("verdict", list(Verdict))
def test_html_shows_the_verdict_and_whole_pictures(verdict: Verdict) -> None:
    page = render_html(document(report(verdict)))
    assert str(verdict) in page
    assert len(images(page)) == (5 if verdict is Verdict.BACKDOORED else 4)
    assert len(page) < 2_000_000
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page)


def test_findings_about_files_and_limits_are_shown() -> None:
    found = report().model_copy(
        update={
            "static": [
                StaticFinding.of("BD101", HOSTILE, "a pickle file"),
                StaticFinding.of("BD308", "", "x"),
            ],
            "limits": [Limit(name="network", held=False, detail="no filter here")],
        }
    )
    page, text = render_html(document(found)), render_console(document(found), width=300)
    assert "BD101 warning" in page
    assert "network (not enforced)" in page
    assert "<img src=x" not in page
    assert "BD308 warning: the model: x" in text
    assert "\x1b" not in text
    assert "Files and limits" not in render_html(document())


def test_the_gravest_findings_about_files_are_shown_first() -> None:
    notes = [StaticFinding.of("BD104", f"{number}.safetensors", "unused") for number in range(9)]
    grave = StaticFinding.of("BD401", "unet/other.safetensors", "NaN")
    text = render_console(document(report().model_copy(update={"static": [*notes, grave]})), width=300)
    assert "files            BD401 error: unet/other.safetensors: NaN; BD104" in text
    assert "and 5 more" in text


def test_html_escapes_what_comes_from_a_model() -> None:
    hostile = report()
    subject = hostile.subject.model_copy(update={"path": HOSTILE, "network": {HOSTILE: HOSTILE}})
    page = render_html(document(hostile.model_copy(update={"subject": subject})))
    assert "<img src=x" not in page
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "onerror=alert(1)&gt;" in page


def test_html_without_evidence_or_scores() -> None:
    page = render_html(document(bare_report()))
    assert "not measured" in page


def test_json_validates_and_round_trips() -> None:
    whole = document(report(), report(Verdict.NO_EVIDENCE))
    text = render_json(whole)
    jsonschema.validate(json.loads(text), schema())
    again = ScanDocument.model_validate_json(text)
    assert render_json(again) == text
    assert "NaN" not in text


def test_console_says_what_matters() -> None:
    text = render_console(document(report()))
    for words in ("BACKDOORED", report().advice.split()[0], "threshold", "exit code"):
        assert words in text
    assert "\x1b" not in text
    failed = [Failure(path="bad", message="no weights there", exit_code=3)]
    several = render_console(document(report(), report(Verdict.NO_EVIDENCE), failures=failed))
    assert "NO EVIDENCE" in several
    assert "no weights there" in several


def test_what_is_accepted_is_said_in_every_format() -> None:
    (alert,) = alerts(report())
    item = Acceptance(
        fingerprint=alert.fingerprint, rule="BD001", expires=date(2027, 1, 31), reason=HOSTILE
    )
    whole = document(report(accepted=[item]))
    whole.notices.append("an entry <b>expired</b>")
    for name in FORMATS:
        text = render(whole, name)
        assert "2027-01-31" in text
        assert "\u202e" not in text
    page = render_html(whole)
    assert "onerror=alert(1)&gt;" in page
    assert "an entry &lt;b&gt;expired&lt;/b&gt;" in page
    several = render_console(document(whole.reports[0], report()))
    assert "BD001 until 2027-01-31" in " ".join(several.split())


def test_formats_dispatch() -> None:
    assert {name: bool(render(document(report()), name)) for name in FORMATS} == dict.fromkeys(
        FORMATS, True
    )


FRAME = """<!doctype html><body style="margin:0"><iframe id="f" src="report.html"
style="width:{width}px;height:900px;border:0"></iframe><pre id="out"></pre><script>
f.onload = () => {{
  const page = f.contentDocument, edge = page.documentElement.clientWidth + 1;
  const wide = [...page.querySelectorAll("*")].filter(
    e => e.getBoundingClientRect().right > edge && !e.closest(".scroll"));
  out.textContent = [page.documentElement.scrollWidth <= edge, wide.map(e => e.outerHTML.slice(0, 80))];
}};
</script>"""


def browse(profile: Path, page: Path | str, *options: str) -> str:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
    quiet = "--disable-background-networking --disable-component-update --disable-sync"
    command = [str(BROWSER), *flags.split(), *quiet.split(), f"--user-data-dir={profile}", *options]
    address = page if isinstance(page, str) else page.as_uri()
    done = subprocess.run([*command, address], check=True, capture_output=True, timeout=90, text=True)
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_a_browser_draws_it(tmp_path: Path, scheme: int) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(render_html(document(report())), encoding="utf-8")
    look = f"--blink-settings=preferredColorScheme={scheme}"
    browse(tmp_path / "profile", page, look, "--window-size=1280,1600", f"--screenshot={shot}")
    with Image.open(shot) as drawn:
        colours = drawn.convert("RGB").getcolors(1 << 20)
        corner = drawn.convert("L").getpixel((2, 2))
    assert colours is not None
    assert len(colours) > 50
    assert isinstance(corner, int)
    assert (corner < 64) == (scheme == 0)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(tmp_path: Path, width: int) -> None:
    """In a frame, because a window of a headless browser is never as narrow as a phone."""
    (tmp_path / "report.html").write_text(render_html(document(report())), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    options = ("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    drawn = browse(tmp_path / "profile", tmp_path / "frame.html", *options)
    assert '<pre id="out">true,</pre>' in drawn
