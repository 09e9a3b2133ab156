"""``backdrift demo``: scans the two shipped models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backdrift.cli._options import Quiet, Seed

NAME = "demo"


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML report.")] = Path(
        "backdrift-demo.html"
    ),
    budget: Annotated[str, typer.Option("--budget", help="quick, standard or deep.")] = "quick",
    quiet: Quiet = False,
    seed: Seed = 0,
) -> int:
    """Scan two tiny shipped models, one clean and one backdoored; exit 0 when both verdicts are right."""
    from importlib import resources

    from backdrift.cli._options import check_folder, write_text
    from backdrift.cli._progress import progress_bar
    from backdrift.core.results import ScanDocument, Verdict, combined_exit_code
    from backdrift.report.console import render_console
    from backdrift.report.formats import render
    from backdrift.scanner import scan

    check_folder(output)
    expected = {"backdoored": Verdict.BACKDOORED, "clean": Verdict.NO_EVIDENCE}
    reports = []
    with resources.as_file(resources.files("backdrift").joinpath("models")) as folder:
        for name in expected:
            with progress_bar(name, quiet) as progress:
                command = f"backdrift demo --budget {budget} --seed {seed}"
                path = folder / name
                reports.append(scan(path, budget=budget, seed=seed, progress=progress, command=command))
    document = ScanDocument(
        reports=reports, exit_code=combined_exit_code([report.exit_code for report in reports])
    )
    write_text(render(document, "html"), output)
    right = all(r.verdict == wanted for r, wanted in zip(reports, expected.values(), strict=True))
    if not quiet:
        write_text(render_console(document), None)
        typer.echo("both verdicts are right" if right else "a verdict is wrong")
        typer.echo(f"report: {output.resolve()}")
    return 0 if right else 2
