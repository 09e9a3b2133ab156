"""Entry point: the commands, and the exit codes that they share."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType

import typer

from backdrift.cli import (
    amplify,
    attack,
    baseline,
    bench,
    calibrate,
    declare,
    demo,
    detect,
    doctor,
    evaluate,
    invert,
    listing,
    repair,
    restore,
    rules,
    sample,
    scan,
    schema,
    train,
    zoo,
)
from backdrift.cli._options import Closed, forget_output

EXIT_ERROR = 2
EXIT_USAGE = 4
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

app = typer.Typer(
    name="backdrift",
    help="Find backdoors in diffusion models.",
    epilog=(
        "Exit codes: 0 no evidence, 1 backdoored, 2 error or inconclusive, 3 nothing scannable, 4 usage, "
        "130 interrupted, 143 terminated."
    ),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    *(scan, demo, invert, detect, repair, calibrate),
    *(train, attack, amplify, evaluate, sample, restore, declare, listing),
):
    app.command(name=module.NAME)(module.main)
for module in (baseline, doctor, schema):
    app.command(name=module.NAME)(module.main)
app.command(name="rules")(rules.main)
app.command(name="explain")(rules.explain)
app.add_typer(zoo.app, name="zoo")
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from backdrift import __version__

        typer.echo(__version__)
        raise typer.Exit


class _Terminated(BaseException):
    """SIGTERM, as an exception: temporary files are cleared away."""


def run() -> None:
    """Runs the command line and exits; no error ends in a traceback or in exit code 1."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.stdout = Closed() if sys.stdout is None else sys.stdout
    if sys.stderr is None:  # whoever closed it does not want it, nor any file in its place
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    # a terminal that lacks a letter still gets the rest
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="backslashreplace")
    sys.exit(_flushed(call(sys.argv[1:])))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _flushed(code: int) -> int:
    """``code``, or 2 in place of 0 when what was printed did not arrive."""
    try:
        sys.stdout.flush()
    except OSError as error:
        forget_output()
        return _fail(f"cannot write standard output: {error.strerror}", code or EXIT_ERROR)
    return code


def call(arguments: list[str]) -> int:
    """Exit code of the command line ``arguments``."""
    try:
        code = _invoke(arguments)
    except typer.Exit as ended:
        code = ended.exit_code
    except typer.TyperException as error:
        return _fail(error.format_message() or "nothing to do: see --help", EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except _Terminated:
        return _fail("terminated", EXIT_TERMINATED)
    except Exception as error:
        if os.environ.get("BACKDRIFT_DEBUG"):
            raise
        return _fail(_line(error), int(getattr(error, "exit_code", _code_of(error))))
    return code if isinstance(code, int) else 0


def _invoke(arguments: list[str]) -> object:
    """What typer's own ``main`` does, but for its exit code 1 when standard output is closed."""
    with typer.main.get_command(app).make_context("backdrift", list(arguments)) as context:
        return context.command.invoke(context)


def _code_of(error: Exception) -> int:
    return EXIT_USAGE if isinstance(error, ValueError) else EXIT_ERROR


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        unnamed = (
            "cannot write standard output"
            if error.errno in (errno.EPIPE, errno.ENOSPC, errno.EBADF)
            else "failed"
        )
        return f"{error.filename or unnamed}: {error.strerror}"
    return (
        text
        if isinstance(error, ValueError) or hasattr(error, "exit_code")
        else (f"{type(error).__name__}: {text} (set BACKDRIFT_DEBUG=1 for the traceback)")
    )


def _fail(message: str, code: int) -> int:
    typer.echo(f"backdrift: {message}", err=True)
    return code
