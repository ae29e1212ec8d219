"""The recorder in the run's process: rows go to the journal in the run's folder; the recorder process replays it.

The recorder process imports MLflow and opens the store on another core while TensorFlow is imported here, and records rows
while the next ones are computed. Between its first step and its last, the run waits for it only while more than `max_unsent`
GiB of rows are unsent.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.errors import UserError, first_line
from runner.security import trust
from runner.system import folders, forks, processes, signals, started
from runner.trace import Trace
from runner.tracking import contract, journal, outbox, store
from runner.tracking.contract import About, Recorder
from runner.tracking.process import STILL, Process
from runner.tracking.store import heartbeat
from runner.tracking.sweep_client import SweepRecorder

# Warnings if a journal holds more unsent rows than `tracking.max_unsent`: SLOWLY if rows are being sent, FULL if not.
SLOWLY = (
    "the tracking store takes rows more slowly than they are made: the run waits whenever %.3g GiB of them are unsent; "
    "record fewer metrics with tracking.every=100"
)
FULL = (
    "%.3g GiB of rows are spooled in %s, and none are being sent: the run is interrupted, and loses none of them; "
    "the same command goes on with it, with more room by tracking.max_unsent=%.3g"
)


class Mlflow:
    """Records every row in MLflow: one run, its rows as metrics, and all of them in `trajectory.parquet`.

    Rows go to a journal in the run's folder, from where the recorder process sends them to the store; with `offline` they stay
    in the journal. The quantities that a loss measures come with the rows of every `full_loss_every`-th step.

    `run` raises UserError for a key that is out of its range, and if the tracking store cannot be used.
    """

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        name: str | None,
        every: int,
        max_coordinates: int,
        full_loss_every: int,
        offline: bool = False,
        pending: str = str(contract.PENDING),
        max_unsent: float = 1,
        flush_timeout: float = 20,
        heartbeat: float = 10,
    ) -> None:
        self.max_unsent = max_unsent
        keys = {"uri": uri, "experiment": experiment, "name": name, "every": every, "max_coordinates": max_coordinates}
        keys |= {"full_loss_every": full_loss_every, "offline": offline, "pending": pending}
        self.keys = contract.named({**keys, "flush_timeout": flush_timeout, "heartbeat": heartbeat})

    def prepare(self, *, draws: bool) -> None:
        """Start the recorder process, which opens the store and, with `draws`, imports the plotting code; raises UserError."""
        if self.keys["offline"]:
            return
        trust.store("tracking.uri", self.keys["uri"], "MLFLOW_TRACKING_URI")
        said = {"uri": self.keys["uri"], "draws": draws, "cwd": str(started.folder())}
        Process.of_this_process().say("prepare", said)

    @contextmanager
    def run(self, about: About) -> Iterator[Recorder]:
        """Yield the recorder of a run. An exception within ends the run with the status of `contract.abandoned`."""
        contract.check(self.keys["every"], self.keys["full_loss_every"], self.max_unsent)
        session = Session(about, self.keys, self.max_unsent)
        session.begin()
        try:
            yield session.recorder()
        except BaseException as error:
            # The error itself matters more than an error of the recorder.
            with suppress(UserError):
                session.fail(*contract.abandoned(error))
            raise
        session.end()

    def sweep(self) -> Any:
        """Return the recorder of a whole sweep."""
        trusted(self.keys["pending"], self.keys["uri"])
        keys = {**self.keys, "pending": str(started.absolute(self.keys["pending"]))}
        if not keys.pop("offline"):
            return SweepRecorder(Process.of_this_process, **keys)
        from runner.tracking.sweep_offline import OfflineSweep

        return OfflineSweep(**keys)


def trusted(pending: str, uri: str) -> None:
    """Raise UserError if a configuration file names an outbox or a store that only the user may name."""
    trust.folder("tracking.pending", pending)
    trust.store("tracking.uri", uri, "MLFLOW_TRACKING_URI")


class Session:
    """One run of this process: its journal, and the recorder process that replays it."""

    def __init__(self, about: About, keys: Mapping[str, Any], max_unsent: float) -> None:
        """Prepare a run. The run waits while more than `max_unsent` GiB of its journal are unsent."""
        trusted(keys["pending"], keys["uri"])
        self.about = replace(about, folder=started.absolute(about.folder))
        self.uri, self.offline, self.timeout = keys["uri"], keys["offline"], keys["flush_timeout"]
        where = {"uri": store.absolute(self.uri), "pending": str(started.absolute(keys["pending"]))}
        said = {"about": contract.fields_of(self.about), "keys": {**keys, **where}}
        self.said: dict[str, Any] = said | {"run_key": uuid.uuid4().hex, "host": socket.gethostname()}
        self.pointer = journal.Pointer(Path(where["pending"]), self.said["run_key"])
        self.ids: dict[str, Any] = {"run_id": None, "experiment_id": None}
        self.process: Process | None = None
        self.full = self.waited = self.finished = False
        self.most = max_unsent * 2**30

    def begin(self) -> None:
        """Begin the run, or continue an interrupted one; raises UserError if the store cannot be used."""
        self.process = None if self.offline else Process.of_this_process()
        interrupted = self.interrupted()
        if interrupted is None:
            self.lock = own_lock(self.about.folder)
            journal.set_aside(self.about.folder, self.pointer.path.parent)
            self.open(self.about.folder)
            run_id = None
        else:
            run, self.lock = interrupted
            run_id = run["run_id"]
            self.said["run_key"] = run["run_key"]
            self.pointer = journal.Pointer(self.pointer.path.parent, run["run_key"])
            self.open(Path(run["folder"]))
        if self.process is not None:
            where = {"at": self.spool.at, "folder": str(self.folder), "run_id": run_id}
            try:
                self.ids = self.process.ask("begin", {**self.said, **where})
            except BaseException:
                self.discard()
                raise

    def interrupted(self) -> tuple[dict[str, Any], journal.Lock] | None:
        """Return the interrupted run to continue, with its lock, or None."""
        if not self.about.resume or "identity" not in self.about.tags:
            return None
        if self.process is None:
            return first_free(outbox.interrupted(self.pointer.path.parent, self.about.tags["identity"]))
        return first_free(self.process.ask("find", self.said)["runs"], self.is_silent)

    def is_silent(self, run: Mapping[str, Any], holder: Mapping[str, Any]) -> bool:
        """Return whether a run whose lock is held here is dead, on any machine. `holder` had the lock before."""
        watch, log = run["silent"], logging.getLogger(__name__)
        # Containers of one machine share locks, whatever their host names. Two machines do not always share them.
        if watch is None or processes.same_machine(holder):
            return True
        assert self.process is not None
        wait = heartbeat.patience(watch["every"])
        log.warning("run %s may be going on on host %s: it is watched for %g s", run["run_id"], watch["host"], wait)
        silent = self.process.ask("watch", {**watch, "uri": self.uri, "run_id": run["run_id"]})["silent"]
        text = "is silent, and is continued here" if silent else "is going on: this is another run of the same configuration"
        log.warning("run %s %s", run["run_id"], text)
        return silent

    def open(self, folder: Path) -> None:
        """Create or continue the journal of a folder, and add the run to the outbox; raises UserError."""
        self.folder, self.spool = folder, journal.Spool(folder)
        self.recorded = self.spool.recorded
        self.stay = forks.leaving(self.leave)
        self.spool.say("begin", self.said)
        try:
            self.pointer.write(folder)
        except OSError as error:
            where = self.pointer.path.parent
            text = f"tracking.pending {where} cannot be written: {error.strerror}; set it with tracking.pending=another folder"
            raise UserError(text) from error

    def leave(self) -> None:
        """Close the journal and the lock in a forked process: a lock is held as long as any process has its file open."""
        os.close(self.spool.file)
        os.close(self.lock.file)

    def discard(self) -> None:
        """Remove the journal, lock and outbox entry of a run that did not begin. The journal of an interrupted run stays."""
        self.stay()
        self.spool.close()
        new = self.folder == self.about.folder
        if new:
            self.pointer.remove(self.folder)
            self.spool.path.unlink()
        self.lock.release(remove=new)

    def recorder(self) -> Recorder:
        """Return the recorder that the run calls."""
        return Recorder(
            self.record,
            self.finish,
            self.ids["run_id"],
            self.ids["experiment_id"],
            self.uri,
            # Not `self.say`: a report comes after the end, so a missing one must not suppress the warning of `send`.
            lambda drawing: self.spool.say("report", drawing.fields, drawing.arrays),
            self.folder,
            self.recorded,
            lambda: journal.rows(self.folder),
        )

    def finish(self, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Append to the journal how the run ended; a later failure does not change that."""
        self.say("finish", {"tags": tags, "metrics": metrics})
        self.finished = True

    def record(self, rows: Trace) -> None:
        """Append the rows to the journal that are not in it yet."""
        rows = rows[max(0, self.recorded - rows.start) :]
        if len(rows):
            self.say("record", *journal.row_fields(rows))
            self.ring()
            self.wait()

    def wait(self) -> None:
        """Wait while too many rows are unsent and no signal has come. If no rows are being sent, interrupt the run.

        Raises UserError if the run cannot be interrupted as by a signal.
        """
        while self.spool.end - self.taken() > self.most and not signals.came():
            if not self.taking():
                bound = self.most / 2**30
                text = FULL % (bound, self.folder, 4 * bound)
                if not signals.interrupt():
                    raise UserError(text)
                logging.getLogger(__name__).warning(text)
                return
            if not self.waited:
                self.waited = True
                logging.getLogger(__name__).warning(SLOWLY, self.most / 2**30)
            time.sleep(0.05)
            self.ring()

    def taken(self) -> float:
        """Return how many bytes of the journal are sent; 0 without a recorder process, or if it has given the run up."""
        taken = 0.0 if self.process is None else self.process.pulse.taken()
        return taken if taken < math.inf else 0.0

    def taking(self) -> bool:
        """Return whether rows are being sent: the recorder process runs, and has not given the run up."""
        process = self.process
        return process is not None and time.monotonic() - process.pulse.moved() <= STILL and process.pulse.taken() < math.inf

    def say(self, word: str, fields: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
        """Append a message to the journal. If that fails, raise UserError, after which `send` logs no further warning."""
        try:
            self.spool.say(word, fields, arrays)
        except UserError:
            self.full = True
            raise

    def ring(self) -> None:
        """Notify the recorder process of new rows and read its messages. If it has failed, the run goes on without it."""
        if self.process is None:
            return
        try:
            self.process.ring()
        except UserError as error:
            self.process = None
            logging.getLogger(__name__).warning("%s; the run goes on, and is sent at its end", first_line(error))

    def fail(self, status: str, tags: Mapping[str, str]) -> None:
        """End a run without a result: by its journal, or by the pipe to the recorder process if the journal has no room."""
        if self.finished:
            self.end()
            return
        said = {"status": status, "tags": tags}
        try:
            self.spool.say("fail", said)
            self.spool.say("end", {})
        except UserError:
            self.sent(said)
            self.close()
            return
        self.send()

    def end(self) -> None:
        """End the run, and log a warning if something could not be sent."""
        # If the journal has no room for this message, the one by the pipe suffices.
        with suppress(UserError):
            self.spool.say("end", {})
        self.send()

    def send(self) -> None:
        """Wait until the run is sent, log a warning if something is left, and close the run."""
        if (left := self.sent({})) and not self.full:
            text = "run %s could not be sent as a whole, %s; send it with: python -m runner.sync %s"
            logging.getLogger(__name__).warning(text, self.ids["run_id"], left, self.folder)
        self.close()

    def close(self) -> None:
        """Close the journal, and release the lock."""
        self.stay()
        self.spool.close()
        self.lock.release(remove=not self.spool.path.exists())

    def sent(self, failure: Mapping[str, Any]) -> str | None:
        """Wait until all is sent. Return None, or one line that says what is left and why. `failure` is not in the journal."""
        if self.offline:
            return None
        try:
            if self.process is not None:
                self.process.say("end", failure)
                return self.process.answer(self.timeout)["left"]
        except UserError:
            pass
        try:
            where = {"folder": str(self.folder), "pending": str(self.pointer.path.parent)}
            return Process.of_this_process().ask("send", {**where, "timeout": self.timeout})["left"]
        except UserError as error:
            return first_line(error)


def own_lock(folder: Path) -> journal.Lock:
    """Return the lock of a new run's folder; raises UserError if another run holds it, or the folder is not a run's."""
    folders.claim(folder, "set hydra.run.dir=another")
    try:
        return journal.Lock(folder, "run", patience=journal.PATIENCE)
    except journal.Held as held:
        holder = f"process {held.holder.get('pid')} on {held.holder.get('host')}"
        raise UserError(f"{folder} is the folder of a run of {holder}; wait for it, or set hydra.run.dir=another") from held


def first_free(
    runs: list[dict[str, Any]], dead: Callable[[dict[str, Any], Mapping[str, Any]], bool] = lambda run, holder: True
) -> tuple[dict[str, Any], journal.Lock] | None:
    """Return the first of these interrupted runs that is dead and that no process works on, with its lock.

    Raises UserError if one is being continued.
    """
    for run in runs:
        folder = Path(run["folder"])
        # A store may name any folder. It is this run's folder if its journal has the run's key.
        if (journal.first(folder / journal.FILE) or {}).get("run_key") != run["run_key"]:
            continue

        def gone(holder: Mapping[str, Any], run: dict[str, Any] = run, file: Path = folder / journal.FILE) -> bool:
            return not file.exists() or dead(run, holder)

        try:
            lock = journal.Lock(folder, "continued", journal.PATIENCE, gone)
        except journal.Elsewhere:
            continue
        except journal.Held as held:
            if held.holder.get("role") == "continued":
                holder = f"process {held.holder['pid']} on {held.holder['host']}"
                which = run["run_id"] or f"in {run['folder']}"
                raise UserError(f"run {which} is being continued by {holder}; wait for it, or set resume=false") from held
            continue
        if (folder / journal.FILE).exists():
            return run, lock
        # Another process has continued and completed the run meanwhile.
        lock.release(remove=True)
    return None
