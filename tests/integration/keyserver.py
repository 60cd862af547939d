"""A key server for tests: one JWKS document over HTTP, in its own process.

``python -m tests.integration.keyserver PORT FILE``: serves FILE at any path, and counts requests in FILE.count.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class _Handler(BaseHTTPRequestHandler):
    document: Path

    def do_GET(self) -> None:
        with self.document.with_suffix(".count").open("a") as count:
            count.write("x")
        body = self.document.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    _Handler.document = Path(sys.argv[2])
    HTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
