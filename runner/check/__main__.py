"""`python -m runner.check`."""

from runner.check.command import main
from runner.cli import entry

if __name__ == "__main__":
    entry.command(main)
