"""``python -m backdrift`` is the command line."""

from backdrift.cli.main import run

if __name__ == "__main__":
    run()
