"""Messages between two processes or in a file: a word, fields as JSON, and arrays as raw bytes; no pickle."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np


class Message(NamedTuple):
    """A message: the word that names its kind, its fields, and its arrays by name."""

    word: str
    fields: dict[str, Any]
    arrays: dict[str, np.ndarray]


def send(to: Connection, word: str, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Send a message. Blocks while the other side has not read the one before."""
    shapes = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    to.send_bytes(json.dumps([word, fields, shapes]).encode())
    for array in arrays.values():
        to.send_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def receive(of: Connection) -> Message:
    """Wait for the next message and return it; raises EOFError if the other side is gone."""
    word, fields, shapes = json.loads(of.recv_bytes())
    arrays = {}
    for name, dtype, shape in shapes:
        arrays[name] = np.frombuffer(of.recv_bytes(), dtype).reshape(shape)
    return Message(word, fields, arrays)


# The first bytes of a packed message: the length of its JSON.
LENGTH = struct.Struct("<I")


def packed(word: str, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return a message as bytes."""
    shapes = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    head = json.dumps([word, fields, shapes]).encode()
    parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays.values()]
    return b"".join([LENGTH.pack(len(head)), head, *parts])


def unpacked(data: bytes) -> Message:
    """Return the message of these bytes; the inverse of `packed`."""
    at = LENGTH.size + LENGTH.unpack_from(data)[0]
    word, fields, shapes = json.loads(data[LENGTH.size : at])
    arrays = {}
    for name, dtype, shape in shapes:
        kind, count = np.dtype(dtype), math.prod(shape)
        arrays[name] = np.frombuffer(data, kind, count, at).reshape(shape)
        at += kind.itemsize * count
    return Message(word, fields, arrays)
