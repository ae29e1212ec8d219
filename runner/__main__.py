"""`python -m runner`."""

from runner.cli.entry import command

if __name__ == "__main__":
    command()
