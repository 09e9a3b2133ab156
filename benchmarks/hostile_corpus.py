"""What hostile checkpoints get out of the scanner: every folder of the corpus, and mutated files.

    python benchmarks/hostile_corpus.py [--mutations 10000] [--seed 0]

Writes results/hostile/corpus.json and docs/hostile.md. A problem (a payload that ran, a traceback, an
undocumented exit code, more than one line, a hang) is in both, and ends the script with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hostile.attempt import attempt, built, open_it  # noqa: E402
from hostile.corpus import Case, cases  # noqa: E402
from hostile.mutate import Mutator  # noqa: E402
from tiny import tiny_checkpoint  # noqa: E402

QUICK = ("--budget", "quick", "--detector", "purediffusion", "-q", "--timeout", "300")
SLOW = 20.0
MUTATION_SECONDS = 10.0


def run_case(case: Case, good: Path, place: Path) -> dict[str, Any]:
    """Every command line for one folder: exit codes by command, and what went wrong."""
    codes: dict[str, int] = {}
    problems, slowest = [], 0.0
    with built(case, good, place) as (folder, marker):
        lines = {"look": ["--static-only"], "dry run": ["--dry-run"]}
        if case.refused:
            lines["scan"] = [*QUICK]
        if case.pickle:
            lines["scan --allow-pickle"] = [*QUICK, "--allow-pickle"]
        for name, options in lines.items():
            seen = attempt(marker, "scan", folder, *options)
            codes[name] = seen.code
            problems += [f"{name}: {problem}" for problem in seen.problems()]
            slowest = max(slowest, seen.seconds if name == "look" else 0.0)
    if codes["look"] not in case.codes:
        problems.append(f"look: exit code {codes['look']}, not one of {case.codes}")
    if slowest > SLOW:
        problems.append(f"look: {slowest:.0f} s")
    facts = {"kind": case.kind, "name": case.name, "advisory": case.advisory}
    return {**facts, "exit_codes": codes, "seconds": round(slowest, 2), "problems": problems}


def run_mutations(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Mutated files, planned and loaded in this process."""
    mutator, codes, kinds = Mutator(folder, seed), Counter[str](), Counter[str]()
    slowest, problems = 0.0, []
    for number in range(count):
        kind = mutator.write()
        try:
            code, message, seconds = open_it(folder)
        except Exception as error:
            problems.append(f"{number} ({kind}): {type(error).__name__}: {error}")
            code, message, seconds = -1, "", 0.0
        if not message.isprintable() or seconds > MUTATION_SECONDS:
            problems.append(f"{number} ({kind}): {seconds:.1f} s, {message!r}")
        codes[str(code)] += 1
        kinds[kind] += 1
        slowest = max(slowest, seconds)
        mutator.restore()
    return {
        "count": count,
        "seed": seed,
        "files": dict(sorted(kinds.items())),
        "exit_codes": dict(sorted(codes.items())),
        "slowest_seconds": round(slowest, 2),
        "problems": problems,
    }


def table(found: dict[str, Any]) -> str:
    """The page in docs."""
    rows, mutations = found["folders"], found["mutations"]
    commands = sum(len(r["exit_codes"]) for r in rows)
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    lines = [
        "# Hostile checkpoints",
        "",
        f"{len(rows)} folders, each with one trick, {commands:,} command lines, and "
        f"{mutations['count']:,} mutated configs, headers and indexes (seed {mutations['seed']}). "
        f"Payloads that ran: {found['payloads_that_ran']}. Problems of any kind: {found['problems']}.",
        "",
        "Made by `python benchmarks/hostile_corpus.py`; every exit code is in "
        "`results/hostile/corpus.json`. A payload makes a file when it runs, and a test shows for all but "
        "three that they do when they are unpickled. A problem is a payload that ran, a traceback, an "
        "undocumented exit code, "
        "more or less than one line on standard error, control characters on the terminal, or a look that "
        f"takes more than {SLOW:.0f} s. Exit codes: 0 no finding of level error, 1 one, 2 refused, 3 not "
        "covered.",
        "",
        "| trick | folders | exit codes of `--static-only` | of `scan` | slowest look, s | problems |",
        "|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        mine = [r for r in rows if r["kind"] == kind]
        slowest = max(r["seconds"] for r in mine)
        bad = sum(bool(r["problems"]) for r in mine)
        looks, scans = _codes(mine, "look"), _codes(mine, "scan")
        lines.append(f"| {kind} | {len(mine)} | {looks} | {scans} | {slowest:.2f} | {bad} |")
    codes = ", ".join(f"{code}: {count:,}" for code, count in mutations["exit_codes"].items())
    advisories = sorted({r["advisory"] for r in rows} - {""})
    lines += [
        "",
        f"Mutated files, by exit code: {codes}; slowest {mutations['slowest_seconds']} s; problems: "
        f"{len(mutations['problems'])}. What 0 counts was loaded as a model.",
        "",
        f"Tricks of published advisories: {'; '.join(advisories)}.",
        "",
        f"Largest process that scanned: {found['child_mib']:,} MiB, most of it torch. Limits that held "
        f"here ({found['platform']}): {', '.join(found['limits_held'])}.",
        "",
    ]
    return "\n".join(lines)


def _codes(rows: list[dict[str, Any]], command: str) -> str:
    count = Counter(
        code for r in rows for name, code in r["exit_codes"].items() if name.startswith(command)
    )
    return ", ".join(f"{code}: {n}" for code, n in sorted(count.items())) or "-"


def as_json(found: dict[str, Any]) -> str:
    """The results, one line for each folder."""
    rows = ",\n".join(json.dumps(row) for row in found["folders"])
    rest = json.dumps({key: value for key, value in found.items() if key != "folders"}, indent=1)
    return rest.removesuffix("\n}") + f',\n "folders": [\n{rows}\n]}}\n'


def main() -> int:
    """Runs the corpus and the mutations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from backdrift.isolation.parent import probe

    begun, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        good = tiny_checkpoint(Path(scratch) / "good")
        (Path(scratch) / "case").mkdir()
        for number, case in enumerate(cases()):
            rows.append(run_case(case, good, Path(scratch) / "case"))
            if number % 25 == 0:
                print(f"{number} folders, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        mutations = run_mutations(options.mutations, options.seed, good)
    found = {
        "folders": rows,
        "mutations": mutations,
        "payloads_that_ran": sum("a payload ran" in problem for r in rows for problem in r["problems"]),
        "problems": sum(bool(r["problems"]) for r in rows) + len(mutations["problems"]),
        "child_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "limits_held": [limit.name for limit in probe() if limit.held],
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "seconds": round(time.monotonic() - begun),
    }
    target = ROOT / "results" / "hostile" / "corpus.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(as_json(found), encoding="utf-8")
    (ROOT / "docs" / "hostile.md").write_text(table(found), encoding="utf-8")
    print(f"{found['problems']} problems; wrote {target} and docs/hostile.md")
    return int(found["problems"] > 0)


if __name__ == "__main__":
    sys.exit(main())
