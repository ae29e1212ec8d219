"""A proxy on 127.0.0.1 in front of a real server, with faults: each request passes a function that may spoil it."""

from __future__ import annotations

import base64
import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# What is done to a request, by its method, its path and how many of that path came before: one of the words below, or None.
Fault = Callable[[str, str, int], str | None]
# Answer 500 after the server has done it, or before; close the connection after that; refuse it with 503 and Retry-After;
# answer late.
AFTER, BEFORE, DROP, BUSY, SLOW = "after", "before", "drop", "busy", "slow"
LATE = 1.5


@contextmanager
def faulty(uri: str, fault: Fault, login: str | None = None) -> Iterator[str]:
    """Give the address of a proxy to a server, which asks for a login, `user:password`, where there is one."""
    asked = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
    target, seen, lock = urlsplit(uri).netloc, Counter(), threading.Lock()

    def forward(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(target)
        sent = {key: value for key, value in headers.items() if key.lower() not in ("host", "connection")}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        content = answer.read()
        kept = {key: value for key, value in answer.getheaders() if key.lower() == "content-type"}
        connection.close()
        return answer.status, content, kept

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            if asked and path != "/health" and self.headers.get("Authorization") != asked:
                return self.reply(401, b"who are you", {"WWW-Authenticate": "Basic"})
            with lock:
                word, seen[path] = fault(self.command, path, seen[path]), seen[path] + 1
            if word == BUSY:
                return self.reply(503, b"busy", {"Retry-After": "1"})
            if word == BEFORE:
                threading.Timer(LATE, forward, [self.command, self.path, dict(self.headers), body]).start()
                return self.reply(500, b"not yet", {})
            status, content, kept = forward(self.command, self.path, dict(self.headers), body)
            if word == DROP:
                self.close_connection = True
                return None
            if word == SLOW:
                time.sleep(LATE)
            return self.reply(500, b"spoiled", {}) if word == AFTER else self.reply(status, content, kept)

        def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
