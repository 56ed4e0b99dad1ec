"""The demo's page and what it asks for, by the standard library's own server."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from graphprune.demo.pair import FAINT, Pair
from graphprune.detection.boxes import CONFIDENT
from graphprune.errors import GraphPruneError, UsageError

#: Address -> file of the page, and its type.
FILES: Mapping[str, tuple[str, str]] = {
    "/": ("demo.html", "text/html; charset=utf-8"),
    "/demo.css": ("demo.css", "text/css; charset=utf-8"),
    "/demo.js": ("demo.js", "text/javascript; charset=utf-8"),
}
#: Nothing comes from elsewhere; pictures come within answers.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"


class Server(ThreadingHTTPServer):
    """Shows a pair of models.

    Parameters
    ----------
    host, port
        Where it listens; port 0 is any that is free, which ``server_address`` then tells.

    Raises
    ------
    UsageError
        The port is taken, or the host is not this machine.
    """

    daemon_threads = True

    def __init__(self, pair: Pair, host: str, port: int) -> None:
        self.pair = pair
        #: One picture at a time: both models are timed, and videos are read in order.
        self.turn = threading.Lock()
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(f"--port {port} is taken: give another one, or --port 0 for any that is free") from error
            raise UsageError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from error

    @property
    def address(self) -> str:
        """What to open."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; answers tell all others."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path in FILES:
            name, kind = FILES[asked.path]
            self._send(HTTPStatus.OK, kind, files("graphprune.demo").joinpath("page", name).read_bytes())
            return
        try:
            if asked.path == "/about":
                self._json(HTTPStatus.OK, self.server.pair.about())
            elif asked.path == "/picture":
                number, score = _picture(parse_qs(asked.query))
                with self.server.turn:
                    found = self.server.pair.show(number, score)
                self._json(HTTPStatus.OK, found or {"end": True, "count": self.server.pair.pictures.count})
            else:
                self._json(HTTPStatus.NOT_FOUND, {"error": f"{asked.path} is not here"})
        except ValueError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except (GraphPruneError, OSError) as error:
            if not isinstance(error, ConnectionError):
                self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        except Exception as error:  # the runtime's exceptions share no base class; the page must not wait for ever
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": " ".join(f"{type(error).__name__}: {error}".split())})

    def _json(self, status: HTTPStatus, found: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(found, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
                            ("Content-Security-Policy", POLICY), ("X-Content-Type-Options", "nosniff")):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: a picture a line would hide what the command said."""


def _picture(query: Mapping[str, list[str]]) -> tuple[int, float]:
    """Number and least score of what is asked for."""
    number, score = int(query.get("n", ["0"])[0]), float(query.get("score", [str(CONFIDENT.score)])[0])
    if number < 0 or not FAINT <= score <= 1:
        raise ValueError(f"n={number}, score={score}: n is 0 or more, score {FAINT} to 1")
    return number, score
