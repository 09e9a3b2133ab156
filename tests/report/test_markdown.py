"""Markdown, drawn by a CommonMark parser with tables and raw HTML switched on."""

from __future__ import annotations

import re
from datetime import date

from markdown_it import MarkdownIt

from backdrift.core.alerts import alerts
from backdrift.core.results import Failure, ScanDocument, Verdict
from backdrift.core.static import Acceptance
from backdrift.report.markdown import render_markdown

from .sample import document, report
from .test_sarif import SEEN

TRICKS = (
    "<script>alert(1)</script> ![x](https://evil.example/x.png) [a](javascript:b) `c` **d** | e\n# f\n"
    "&lt;g&gt; https://evil.example www.evil.example @someone #1 ~~h~~ $i$ \\| \u202e\x1b[31m _j_"
)
OWN_TAGS = {
    "h2",
    "h3",
    "p",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "ul",
    "li",
    "strong",
    "em",
    "code",
}


def draw(text: str) -> str:
    return str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def test_it_says_what_matters() -> None:
    (alert,) = alerts(report())
    item = Acceptance(
        fingerprint=alert.fingerprint, rule="BD001", expires=date(2027, 1, 31), reason="known"
    )
    failed = [Failure(path="bad", message="no weights there", exit_code=3)]
    whole = document(report(accepted=[item]), report(Verdict.NO_EVIDENCE), failures=failed)
    whole.notices.append("baseline: nothing here matches")
    page = draw(render_markdown(whole))
    assert page.count("<tr>") == 3
    words = re.sub(r"<[^>]*>", "", page)
    only_looked = ScanDocument(reports=[], inspections=[SEEN], exit_code=0)
    assert "BD102 code-in-checkpoint (warning, unet/model.py): a program" in re.sub(
        r"<[^>]*>", "", draw(render_markdown(only_looked))
    )
    for part in ("BD001 backdoored (error, unet/", "Accepted until 2027-01-31", "known", "NOT SCANNED bad"):
        assert part in words
    assert "baseline: nothing here matches" in words
    assert f"Exit code {whole.exit_code}" in words


def test_text_of_a_checkpoint_stays_text() -> None:
    old = report()
    subject = old.subject.model_copy(update={"path": TRICKS})
    finding = old.findings[0].model_copy(update={"reason": TRICKS})
    hostile = old.model_copy(update={"subject": subject, "findings": [finding], "advice": TRICKS})
    text = render_markdown(document(hostile, failures=[Failure(path=TRICKS, message=TRICKS, exit_code=2)]))
    page = draw(text)
    assert {tag.lower() for tag in re.findall(r"<([A-Za-z0-9]+)", page)} <= OWN_TAGS
    assert page.count("<tr>") == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&amp;lt;g&amp;gt;" in page
    for sign in ("://", "www.", "@someone", "\u202e", "\x1b"):
        assert sign not in text
