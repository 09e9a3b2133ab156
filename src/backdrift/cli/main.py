"""Entry point: the commands, and the exit codes that they share."""

from __future__ import annotations

import os
import sys

import typer

from backdrift.cli import (
    amplify,
    attack,
    bench,
    declare,
    demo,
    detect,
    evaluate,
    invert,
    listing,
    repair,
    restore,
    sample,
    scan,
    train,
    zoo,
)

EXIT_ERROR = 2
EXIT_USAGE = 4

app = typer.Typer(
    name="backdrift",
    help="Find backdoors in diffusion models.",
    epilog=(
        "Exit codes: 0 no evidence, 1 backdoored, 2 error or inconclusive, 3 nothing scannable, 4 usage."
    ),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    *(scan, demo, invert, detect, repair),
    *(train, attack, amplify, evaluate, sample, restore, declare, listing),
):
    app.command(name=module.NAME)(module.main)
app.add_typer(zoo.app, name="zoo")
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from backdrift import __version__

        typer.echo(__version__)
        raise typer.Exit


def run() -> None:
    """Runs the command line and exits; no error ends in a traceback or in exit code 1."""
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Exit code of the command line ``arguments``."""
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="backdrift", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(error.format_message() or "nothing to do: see --help", EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:
        if os.environ.get("BACKDRIFT_DEBUG"):
            raise
        return _fail(_line(error), int(getattr(error, "exit_code", _code_of(error))))
    return code if isinstance(code, int) else 0


def _code_of(error: Exception) -> int:
    return EXIT_USAGE if isinstance(error, ValueError) else EXIT_ERROR


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        text
        if isinstance(error, ValueError) or hasattr(error, "exit_code")
        else (f"{type(error).__name__}: {text} (set BACKDRIFT_DEBUG=1 for the traceback)")
    )


def _fail(message: str, code: int) -> int:
    typer.echo(f"backdrift: {message}", err=True)
    return code
