"""The recorder as a run calls it: rows go to the spool in the run's folder, and another process plays that to the store.

That process imports MLflow and opens the store on another core while TensorFlow is imported here, and records rows while the
next are computed. The run never waits for it between its first step and its last.
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

# What is said of more unsent rows than `tracking.max_unsent` lets a spool hold, where a store takes them, and where none does.
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

    `run` raises UserError for a key that is out of its range, and where the tracking store cannot be used.
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
        """Start the recorder process, to open the store, and to import what draws; raises UserError."""
        if self.keys["offline"]:
            return
        trust.store("tracking.uri", self.keys["uri"], "MLFLOW_TRACKING_URI")
        said = {"uri": self.keys["uri"], "draws": draws, "cwd": str(started.folder())}
        Process.of_this_process().say("prepare", said)

    @contextmanager
    def run(self, about: About) -> Iterator[Recorder]:
        """Give the recorder of a run. An exception within ends the run as FAILED."""
        contract.check(self.keys["every"], self.keys["full_loss_every"], self.max_unsent)
        session = Session(about, self.keys, self.max_unsent)
        session.begin()
        try:
            yield session.recorder()
        except BaseException as error:
            # What went wrong matters more than a recorder that cannot be told of it.
            with suppress(UserError):
                session.fail(*contract.abandoned(error))
            raise
        session.end()

    def sweep(self) -> Any:
        """Return the recorder of a sweep as a whole."""
        trusted(self.keys["pending"], self.keys["uri"])
        keys = {**self.keys, "pending": str(started.absolute(self.keys["pending"]))}
        if not keys.pop("offline"):
            return SweepRecorder(Process.of_this_process, **keys)
        from runner.tracking.sweep_offline import OfflineSweep

        return OfflineSweep(**keys)


def trusted(pending: str, uri: str) -> None:
    """Raise UserError where a file of the configuration names what only the user may."""
    trust.folder("tracking.pending", pending)
    trust.store("tracking.uri", uri, "MLFLOW_TRACKING_URI")


class Session:
    """One run of this process: its spool, and the recorder process that plays it."""

    def __init__(self, about: About, keys: Mapping[str, Any], max_unsent: float) -> None:
        """Prepare a run; with more than `max_unsent` GiB in its spool alone it waits."""
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
        """Begin the run, or go on with an interrupted one; raises UserError where the store cannot be used."""
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
        """Return the interrupted run that is to be continued, with its lock, or None."""
        if not self.about.resume or "identity" not in self.about.tags:
            return None
        if self.process is None:
            return first_free(outbox.interrupted(self.pointer.path.parent, self.about.tags["identity"]))
        return first_free(self.process.ask("find", self.said)["runs"], self.is_silent)

    def is_silent(self, run: Mapping[str, Any], holder: Mapping[str, Any]) -> bool:
        """Tell whether a run whose lock is held here is dead, wherever it was; `holder` had the lock before."""
        watch, log = run["silent"], logging.getLogger(__name__)
        # Locks hold among the containers of one machine, whatever they are called; not always from one machine to another.
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
        """Begin, or go on with, the spool of a folder."""
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
        """Let go of the run in a process that was forked: its lock is this one's as long as any has it."""
        os.close(self.spool.file)
        os.close(self.lock.file)

    def discard(self) -> None:
        """Leave nothing of a run that did not begin; the spool of an interrupted one stays."""
        self.stay()
        self.spool.close()
        new = self.folder == self.about.folder
        if new:
            self.pointer.remove(self.folder)
            self.spool.path.unlink()
        self.lock.release(remove=new)

    def recorder(self) -> Recorder:
        """Return what the run calls."""
        return Recorder(
            self.record,
            self.finish,
            self.ids["run_id"],
            self.ids["experiment_id"],
            self.uri,
            # What has no room here is not all that is said of the run: it has ended.
            lambda drawing: self.spool.say("report", drawing.fields, drawing.arrays),
            self.folder,
            self.recorded,
            lambda: journal.rows(self.folder),
        )

    def finish(self, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Spool how the run ended; nothing that comes after takes that back."""
        self.say("finish", {"tags": tags, "metrics": metrics})
        self.finished = True

    def record(self, rows: Trace) -> None:
        """Spool the rows that are not there yet."""
        rows = rows[max(0, self.recorded - rows.start) :]
        if len(rows):
            self.say("record", *journal.row_fields(rows))
            self.ring()
            self.wait()

    def wait(self) -> None:
        """Wait while more lies unsent than a disk should hold, unless a signal has come; where nothing is sent, end the run.

        Raises UserError where a run cannot be ended as by a signal.
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
        """Return how many bytes of the spool are in the store, or will never be in this run's time, as the recorder says."""
        taken = 0.0 if self.process is None else self.process.pulse.taken()
        return taken if taken < math.inf else 0.0

    def taking(self) -> bool:
        """Tell whether a recorder takes rows: one is there, it moves, and it has not given the run up."""
        process = self.process
        return process is not None and time.monotonic() - process.pulse.moved() <= STILL and process.pulse.taken() < math.inf

    def say(self, word: str, fields: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
        """Spool a message; raises UserError where there is no room for it, which is then all that is said of it."""
        try:
            self.spool.say(word, fields, arrays)
        except UserError:
            self.full = True
            raise

    def ring(self) -> None:
        """Tell the recorder process that there is more, and hear what it has to say; without it the run goes on."""
        if self.process is None:
            return
        try:
            self.process.ring()
        except UserError as error:
            self.process = None
            logging.getLogger(__name__).warning("%s; the run goes on, and is sent at its end", first_line(error))

    def fail(self, status: str, tags: Mapping[str, str]) -> None:
        """End a run that has no result: by its spool, or, where that has no room, by word to the recorder process."""
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
        """End the run, and say what could not be sent."""
        # Where there is no room for this word any more, the pipe's serves.
        with suppress(UserError):
            self.spool.say("end", {})
        self.send()

    def send(self) -> None:
        """Let go of the run when all was sent, or say what was not."""
        if (left := self.sent({})) and not self.full:
            text = "run %s could not be sent as a whole, %s; send it with: python -m runner.sync %s"
            logging.getLogger(__name__).warning(text, self.ids["run_id"], left, self.folder)
        self.close()

    def close(self) -> None:
        """Let go of the run."""
        self.stay()
        self.spool.close()
        self.lock.release(remove=not self.spool.path.exists())

    def sent(self, failure: Mapping[str, Any]) -> str | None:
        """Wait until all was sent; returns None, or in one line what is left, and why. `failure` is not in the spool."""
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
    """Return the lock of a new run's folder; raises UserError where another run is in it, or it is not a run's."""
    folders.claim(folder, "set hydra.run.dir=another")
    try:
        return journal.Lock(folder, "run", patience=journal.PATIENCE)
    except journal.Held as held:
        holder = f"process {held.holder.get('pid')} on {held.holder.get('host')}"
        raise UserError(f"{folder} is the folder of a run of {holder}; wait for it, or set hydra.run.dir=another") from held


def first_free(
    runs: list[dict[str, Any]], dead: Callable[[dict[str, Any], Mapping[str, Any]], bool] = lambda run, holder: True
) -> tuple[dict[str, Any], journal.Lock] | None:
    """Return the first of these interrupted runs that nobody is at, and that is dead, with its lock.

    Raises UserError where one is being continued.
    """
    for run in runs:
        folder = Path(run["folder"])
        # A store may name any folder: it is that of this run where its spool says so.
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
        # Another has continued it meanwhile, to its end.
        lock.release(remove=True)
    return None
