"""Send rows from journals to the tracking store, after their run has ended or died."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import first_line
from runner.security import secrets, trust
from runner.system import processes
from runner.tracking import journal, outbox, replay
from runner.tracking.store import heartbeat, parent_runs, runs
from runner.tracking.store.retry import Policy

FORGET = "; it is forgotten by removing the file that names it from what is pending"


class Sent(NamedTuple):
    """The result for a folder: the run's id, and one line that says what is left and why, or None."""

    run_id: str | None
    left: str | None


def send(folder: Path, pending: Path, timeout: float, warn: Callable[[str], None]) -> Sent:
    """Replay the journal of a folder whose lock is held. The store has `timeout` seconds to accept something.

    If all is sent, the run's entry in the outbox `pending` is removed.
    """
    path = folder / journal.FILE
    whole, size = journal.tail(path)
    if whole == 0:
        return Sent(None, f"{path} cannot be read from its beginning on")
    if whole < size:
        warn(f"{path} is cut or damaged after {whole} of {size} bytes; what follows is dropped")
    began = time.monotonic()
    player = replay.Player(folder, pending, Policy(timeout, lambda: began))
    with path.open("rb") as file:
        left = replay.play(player, learned(journal.frames(file)))
    return Sent(player.run and player.run.run_id, left)


def gone(folder: Path, watch: bool, holder: Mapping[str, Any]) -> bool:
    """Return whether the run of a journal has ended or is dead. Its lock is free here, but not all machines share locks.

    A run of another machine has a heartbeat in the store. With `watch` this heartbeat is watched; else `heartbeat.reap` judges
    it. A run that is not in the store has no heartbeat, and is sent with `watch` only: by the user.
    """
    with (folder / journal.FILE).open("rb") as file:
        if processes.same_machine(holder) or outbox.came_to(journal.frames(file))["status"] != "RUNNING":
            return True
    said = runs.Begin.of(journal.first(folder / journal.FILE) or {})
    client, experiment_id = said.opened()
    if (run_id := runs.found(client, experiment_id, said.run_key)) is None:
        return watch
    run = client.get_run(run_id)
    beat, every = run.data.tags.get(heartbeat.BEAT), float(run.data.tags.get(heartbeat.EVERY, 0))
    if run.info.status != "RUNNING" or beat is None:
        return True
    if watch:
        secrets.tell(
            f"run {run_id} may be going on on host {holder.get('host')}: it is watched for {heartbeat.patience(every):g} s"
        )
    return watch and heartbeat.still(client, run_id, beat, every)


def learned(frames: Iterator[journal.Frame]) -> Iterator[journal.Frame]:
    """Yield the frames, and have the password of their store masked in all messages."""
    for frame in frames:
        if frame.message.word == "begin":
            secrets.learn(frame.message.fields.get("keys"))
        yield frame


def one(
    folder: Path,
    pending: Path,
    timeout: float,
    warn: Callable[[str], None],
    stores: Collection[str] = (),
    watch: bool = False,
) -> Sent:
    """Send the journal of a folder; raises Held if a process works on it. Only `stores`, which the user named, get passwords.

    With `watch`, a run that may be going on on another machine is watched; else its status in the store is believed.
    """
    if journal.away(folder):
        return Sent(None, f"the folder is away, and so is its run; mount it, or move it back, and send it then{FORGET}")
    if not (folder / journal.FILE).exists():
        return Sent(None, f"{folder / journal.FILE} is not there: all was sent, or nothing was recorded here")
    if journal.foreign(folder / journal.FILE):
        return Sent(None, f"{folder / journal.FILE} cannot be read from its beginning on, and is left as it is")
    keys = (journal.first(folder / journal.FILE) or {}).get("keys", {})
    if (untold := trust.spooled(str(keys.get("uri", "sqlite:")), stores, folder)) is not None:
        return Sent(None, untold)
    try:
        lock = journal.Lock(folder, "sending", gone=partial(gone, folder, watch))
    except journal.Held:
        raise
    except Exception as error:
        return Sent(None, first_line(error))
    try:
        return send(folder, pending, timeout, warn)
    except Exception as error:
        return Sent(None, first_line(error))
    finally:
        lock.release(remove=not (folder / journal.FILE).exists())


def pointed(pending: Path) -> Iterator[Path]:
    """Yield the folders in the outbox that have something to send, or are unavailable. Entries of sent runs are removed."""
    for key, folder in journal.pointers(pending):
        if journal.away(folder) or (folder / journal.FILE).exists():
            yield folder
        else:
            journal.Pointer(pending, key).remove(folder)


def quietly(pending: Path, own: Path, uri: str = "") -> None:
    """Send what earlier runs left, except the run of the folder `own`, whose store `uri` the user trusts. Errors are logged."""
    log = logging.getLogger(__name__)
    try:
        for folder in pointed(pending):
            with suppress(journal.Held):
                sent = one(folder, pending, 0, log.info, [uri]) if folder != own else None
                if sent and sent.left is None:
                    log.info("sent run %s, which was pending in %s", sent.run_id, folder)
        for run_id, left in parent_runs.end_pending(pending, 0, [uri]):
            log.info("the sweep's run %s %s", run_id, "has been ended" if left is None else f"is not ended: {left}")
    except Exception as error:
        log.info("what is pending is not sent: %s", first_line(error))


def left_by(identities: Set[str], pending: Path, timeout: float, uri: str = "") -> bool:
    """Send what dead processes left of runs with these config digests. Return whether a recorder is still sending one."""
    busy = False
    for folder in [run.folder for run in outbox.of(pending, identities)]:
        try:
            one(folder, pending, timeout, logging.getLogger(__name__).info, [uri])
        except journal.Elsewhere:
            continue
        except journal.Held as held:
            # Another command may run a job with the same config digest.
            busy |= held.holder.get("role") == "sending" or not processes.there(held.holder)
    return busy
