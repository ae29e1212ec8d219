"""`python -m runner.verify RUN`: repeat a recorded run from its record, and compare every row."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from runner import records
from runner.cli import entry
from runner.config import parameters, schema, validation
from runner.errors import UserError
from runner.loop import Ending
from runner.records import DIFFERENT, SAME, Parser, Recorded, parting
from runner.security import secrets, targets
from runner.system import quiet, startup
from runner.trace import Trace, join

# Endings with an external cause: the repeated run must take as many steps as the recorded one.
FROM_OUTSIDE = (Ending.TIME_LIMIT, Ending.INTERRUPTED)


def parser() -> Parser:
    """Return the command's options."""
    about = (
        "Run a recorded run again, as its record says, and compare every row; nothing is recorded. It runs what the record "
        "names, so the store has to be one that you trust. Exit code 0: the same rows, 1: others, 2: it cannot be told."
    )
    made = Parser("verify", about, parting.TOLERANCE.partition("; by default")[0] + "; by default 0")
    made.add_argument("run", metavar="RUN", help="a run's id, or the beginning of it")
    where = f"where a picture goes; {parting.FOLDER}/RUN-again.png where the rows are others, and none where they are the same"
    made.add_argument("--picture", type=Path, metavar="FILE", help=where)
    return made


def report(words: Sequence[str] | None = None) -> int:
    """Print whether a repeated run gives the recorded rows; return the exit code."""
    chosen = parser().parse_args(words)
    run = records.read(records.client(chosen.tracking_uri), chosen.run)
    cfg = configuration(run)
    again = Recorded("again", "from its record", run.params, parameters.provenance(), run.config, rows(cfg)[: len(run.rows)])
    secrets.tell(f"A  {run.run_id}  {run.name}, as it was recorded")
    secrets.tell_lines("B  run again from its record\n")
    secrets.tell_lines(versions(run, again))
    found = parting.compared(run, again, chosen.tolerance or 0.0)
    secrets.tell_lines(parting.told(found), end="")
    if chosen.picture or not found.equal:
        parting.draw(chosen.picture, found, run, again)
    return SAME if found.equal else DIFFERENT


def configuration(run: Recorded) -> DictConfig:
    """Return the configuration in a run's config.yaml, changed so that the repeated run is not recorded.

    Raises UserError if it differs from the run's parameters, if it is wrong, or if the run did not end.
    """
    if "ending" not in run.tags:
        raise UserError(f"run {run.run_id} came to no end that could come out again: {run.tags.get('error', 'it is running')}")
    plain = yaml.safe_load(run.config)
    said = {key: value[: len(run.params.get(key, ""))] for key, value in parameters.flat(plain).items()}
    keys = {key for key in said.keys() | run.params.keys() if parameters.is_param(key) or key in run.params}
    if unlike := sorted(key for key in keys if said.get(key) != run.params.get(key)):
        raise UserError(f"run {run.run_id}: config.yaml and the run's parameters differ in {', '.join(unlike)}")
    if faults := [fault for group, each in plain.items() for fault in targets.faults(str(group), each)]:
        raise UserError(f"run {run.run_id}: config.yaml: {'; '.join(faults)}")
    cfg = OmegaConf.merge(OmegaConf.structured(schema.Config), OmegaConf.create(run.config))
    assert isinstance(cfg, DictConfig)
    cfg.tracking = {"_target_": "runner.tracking.Nothing"}
    if run.tags["ending"] in FROM_OUTSIDE:
        # The last row of an interrupted run is an ordinary step, not an ending.
        ends = len(run.rows) - (run.tags["ending"] != Ending.INTERRUPTED)
        cfg.stopping.time_limit, cfg.max_iterations = None, max(ends, 1)
    validation.check(cfg, {}, ())
    return cfg


def rows(cfg: Any) -> Trace:
    """Return the rows of a configuration's run."""
    with quiet.tensorflow(), startup.without_optional_imports():
        from runner import experiment
        from runner.config.parts import parts

    ready = parts(cfg)
    taken: list[Trace] = []
    try:
        experiment.run(ready, [taken.append])
    finally:
        ready.program.execution.close()
    return join(taken)


def versions(run: Recorded, again: Recorded) -> str:
    """Return, as text, the versions and the commit of a recorded run that differ from the present ones."""
    was, now = run.versions, again.versions
    unlike = [f"{key} was {was.get(key) or '-'}, is {now[key] or '-'}" for key in now if was.get(key) != now[key]]
    return ("; ".join(unlike) or "versions and commit are the same") + "\n"


def main() -> int:
    """Return the exit code: 0 if the repeated run has the same rows, 1 if it has others, 2 if they cannot be compared."""
    schema.register()
    if str(entry.PLUGINS) not in sys.path and entry.PLUGINS.is_dir():
        sys.path.append(str(entry.PLUGINS))
    try:
        with targets.named(sys.argv):
            return records.answered(report)
    except UserError as error:
        entry.complain(error)
        return records.TROUBLE


if __name__ == "__main__":
    entry.command(main)
