"""Entry point of `python -m runner.report`."""

from runner.report.command import main
from runner.security import streams

if __name__ == "__main__":
    streams.command(main)
