"""Time and peak memory of publishing a run to PostgreSQL, whose server shares the machine with the client.

python benchmarks/publishing_postgresql.py [DEVICES [DIRECTORY]]

Devices have 4 modules each. With a directory, the newest run that it contains is published, instead of a new one. The
server has its default settings, and it is durable.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from daily_questions import build_all

from tests.publish.postgresql_server import Server, run_server

DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "128MB",
    "autovacuum": "on",
}

PUBLISH = """
import sys
from pathlib import Path
from auditor.concurrency import TimeLimit
from auditor.publish.postgresql import PostgresqlDestination, PostgresqlSettings
settings = PostgresqlSettings(host=sys.argv[1], port=int(sys.argv[2]), database="postgres", user="admin")
PostgresqlDestination(settings).publish(Path(sys.argv[3]), TimeLimit(3_600))
"""


def server_seconds(server: Server) -> float:
    """Return the seconds of a processor that the server used, those of ended sessions included."""
    used = 0
    for pid in (server.process.pid, *_children(server.process.pid)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += sum(map(int, fields[11:15] if pid == server.process.pid else fields[11:13]))
    return used / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def publish(server: Server, run: Path, note: str) -> None:
    begun, used = time.monotonic(), server_seconds(server)
    process = subprocess.Popen([sys.executable, "-c", PUBLISH, str(server.folder), str(server.port), str(run)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    seconds, used = time.monotonic() - begun, server_seconds(server) - used
    client = usage.ru_utime + usage.ru_stime
    (size,) = server.query("SELECT pg_size_pretty(sum(pg_total_relation_size(oid))) FROM pg_class WHERE relkind = 'r'")[
        0
    ]
    print(
        f"{note}: {seconds:.1f} s, {usage.ru_maxrss / 1024:.0f} MB; processor: {client:.1f} s client, "
        f"{used:.1f} s server; database {size}; exit {status}",
        flush=True,
    )


def main(devices: int, directory: Path) -> None:
    if not any(directory.iterdir()):
        build_all(directory, devices, 1)
    run = max(directory.iterdir(), key=lambda path: path.name)
    with run_server(settings=DURABLE) as server:
        publish(server, run, f"{run.name}, for the first time")
        publish(server, run, "again, in place of itself")
        (rows,) = server.query("SELECT count(*), count(DISTINCT ordinal) FROM auditor.modules")
        print(f"{rows[0]:,} rows of modules, {rows[1]:,} of them distinct")
        begun = time.monotonic()
        versions = server.query(
            "SELECT module_name, module_version, count(*) FROM auditor.current_modules GROUP BY 1, 2"
        )
        print(f"versions counted in current_modules: {len(versions)} in {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) > 2:
        main(size, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory(prefix="auditor-publishing-") as temporary:
            main(size, Path(temporary))
