"""What traces cost: audits at 1,000 requests a second, alternately without and with a collector.

python benchmarks/tracing.py [--rounds N] [--devices N]

The server has a core of its own, and so has the audit. Print the medians of processor time and duration.
"""

import argparse
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import speed

LIMIT = "1000"
VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Collector(BaseHTTPRequestHandler):
    """Accepts everything."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collector() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", type=int, default=40_000)
    options = parser.parse_args()
    speed.LIMITS["auditor_limited"] = LIMIT
    figures: dict[bool, list[speed.Figure]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as temporary, speed.server() as port, collector() as address:
        for number in range(options.rounds):
            for traced in (number % 2 == 0, number % 2 == 1):
                os.environ.pop(VARIABLE, None)
                if traced:
                    os.environ[VARIABLE] = address
                folder = Path(temporary, f"{number}-{traced}")
                figures[traced].append(speed.measure("auditor_limited", port, options.devices, folder))
    print("| | devices/s | CPU µs each |\n|---|---:|---:|")
    for traced, found in figures.items():
        name, middle = "with" if traced else "without", speed.median(found)
        print(f"| {name} a collector | {middle.devices_per_second:,.0f} | {middle.cpu_microseconds:,.1f} |")
    pairs = zip(figures[False], figures[True], strict=True)
    ratios = [traced.cpu_microseconds / plain.cpu_microseconds - 1 for plain, traced in pairs]
    spread = f"rounds: {min(ratios):+.1%} to {max(ratios):+.1%}"
    print(f"processor time with a collector: {statistics.median(ratios):+.1%} ({spread})")


if __name__ == "__main__":
    main()
