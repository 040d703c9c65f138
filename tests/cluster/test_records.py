"""Parts of a shard: their lines, those of failed devices apart."""

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
