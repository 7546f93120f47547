"""Serve the interactive page on this machine: ``ncp-callbacks view runs/``."""

from __future__ import annotations

import http.server
import sys
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .api import Answer, answer
from .index import Source
from .page import served_page
from .static_files import module_text

__all__ = ["make_server"]

_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'self'; img-src 'self' data: blob:; frame-ancestors 'self'",
}


def make_server(source: Source, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Return a server on 127.0.0.1, which ``serve_forever()`` starts.

    Args:
        source: The log.
        port: Its port; 0 for any that is free.

    Raises:
        OSError: The port is in use.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # A page from elsewhere could ask under its own name (DNS rebinding).
            host = self.headers.get("Host", "")
            if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
                self._send(Answer(403, "text/plain", b"this server answers this machine only"))
                return
            url = urlsplit(self.path)
            try:
                found = _answer(source, url.path.lstrip("/"), dict(parse_qsl(url.query)))
            except Exception as error:  # The page tells it, and goes on with what it has.
                text = f"the server failed: {type(error).__name__}: {error}"
                found = Answer(500, "text/plain; charset=utf-8", text.encode())
            self._send(found)

        def _send(self, found: Answer) -> None:
            self.send_response(found.status)
            self.send_header("Content-Type", found.type)
            self.send_header("Content-Length", str(len(found.body)))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, *_: Any) -> None:
            """Say nothing for each request."""

    return _Server(("127.0.0.1", port), Handler)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that has left doesn't wait for its answer.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _answer(source: Source, name: str, arguments: dict[str, str]) -> Answer:
    if name == "":
        return Answer(200, "text/html; charset=utf-8", served_page().encode())
    if name.endswith(".js"):
        try:
            return Answer(200, "text/javascript; charset=utf-8", module_text(name).encode())
        except KeyError:
            return Answer(404, "text/plain", b"there is no such file")
    return answer(source, name, arguments)
