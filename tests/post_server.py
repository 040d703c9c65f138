"""A server in a thread that receives what is posted: for tests whose audits and hooks have an event loop or process."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Receive = Callable[[str, Mapping[str, str], bytes], int | None]
"""Returns the status for a path, headers and a body; None: the connection ends without a response."""


@contextmanager
def post_server(receive: Receive, body: bytes = b"") -> Iterator[int]:
    """Run a server whose responses have this body until the block ends, and yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted = self.rfile.read(int(self.headers["Content-Length"]))
            status = receive(self.path, dict(self.headers.items()), posted)
            if status is None:
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  its own name
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
