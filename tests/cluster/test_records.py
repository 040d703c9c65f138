"""Parts of a shard: their lines, those of failed devices apart. Records that threads read."""

import subprocess
import sys

import pytest

from auditor.cluster.records import compress_lines, expand_lines, split_failed
from auditor.models import Device, DeviceFailure, DeviceResult
from auditor.runs.journal import encode_outcome

NAME = '"status":"failed"'
"""A name that looks like a failure; its quotes are escaped in a line."""


def test_lines_of_failed_devices_are_told_apart_whatever_the_names() -> None:
    answered = [
        encode_outcome(
            DeviceResult(
                Device("eu", "k", name, None), status="empty", modules=(), total=0, pages=1, attempts=1, request_id=NAME,
                audited_at=0.0,
            )
        )
        for name in (NAME, "a")
    ]  # fmt: skip
    failed = encode_outcome(
        DeviceFailure(
            Device("eu", "k", "b", None), code="c", message='"status":"ok"', http_status=None, attempts=1,
            request_id=None, failed_at=0.0,
        )
    )  # fmt: skip
    lines = answered[0] + failed + answered[1]
    assert split_failed(lines) == (b"".join(answered), failed)
    assert split_failed(b"".join(answered)) == (b"".join(answered), b"")
    assert expand_lines(compress_lines(lines), "part") == lines


FIRST_RECORDS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from auditor.cluster.records import SHARD_RECORD_DECODER, decode_record
from auditor.errors import InvalidObjectError

sys.setswitchinterval(1e-6)
together = threading.Barrier(16)

def read(_):
    together.wait()
    try:
        decode_record(b'{"manifest":{}}', SHARD_RECORD_DECODER, "record")
    except InvalidObjectError:
        return True

with ThreadPoolExecutor(16) as threads:
    assert all(threads.map(read, range(16)))
"""


@pytest.mark.slow
def test_threads_that_read_the_first_records_of_a_process_do_not_crash_it() -> None:
    """Without decoders that are made at the import, two of three processes die by SIGSEGV."""
    processes = [subprocess.Popen([sys.executable, "-c", FIRST_RECORDS]) for _ in range(3)]
    assert [each.wait(60) for each in processes] == [0, 0, 0]
