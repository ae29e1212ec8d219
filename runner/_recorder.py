"""Entry point of the recorder process, `python -m runner._recorder CONNECTION PULSE`, which a run or a sweep starts."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from runner.tracking.pulse import Pulse
from runner.tracking.server import main
from runner.tracking.sweep_client import Arrays, Fields


def losses(fields: Fields, _: Arrays) -> Fields:
    """Return the configurations that name the losses of a sweep's runs."""
    from runner.report.command import configurations

    return {"configs": configurations(fields["uri"], fields["run_id"])}


def report(fields: Fields, _: Arrays) -> Fields:
    """Write the report of a sweep, and return the report's lines."""
    from runner.report.command import of_sweep

    return {"lines": of_sweep(fields["uri"], fields["run_id"], fields.get("facts"))}


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), Pulse(int(sys.argv[2])), {"sweep_losses": losses, "sweep_report": report})
