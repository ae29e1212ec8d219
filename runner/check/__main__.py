"""`python -m runner.check`."""

from runner import __main__ as runner
from runner.check.command import main

if __name__ == "__main__":
    runner.command(main)
