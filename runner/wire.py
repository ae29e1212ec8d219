"""Messages between two processes: a word, fields as JSON, and arrays as their bytes; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np


class Message(NamedTuple):
    """What was said."""

    word: str
    fields: dict[str, Any]
    arrays: dict[str, np.ndarray]


def send(to: Connection, word: str, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Send a message; waits while the other side has not read the one before."""
    shapes = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    to.send_bytes(json.dumps([word, fields, shapes]).encode())
    for array in arrays.values():
        to.send_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def receive(of: Connection) -> Message:
    """Return the next message, waiting for it; raises EOFError where the other side has gone."""
    word, fields, shapes = json.loads(of.recv_bytes())
    arrays = {}
    for name, dtype, shape in shapes:
        arrays[name] = np.frombuffer(of.recv_bytes(), dtype).reshape(shape)
    return Message(word, fields, arrays)
