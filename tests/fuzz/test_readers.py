"""The fuzz targets as property tests: a few corrupted files of every kind; ``make fuzz`` runs for minutes."""

from collections.abc import Sequence
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.client.decoders import MAX_BODY_BYTES
from tests.fuzz import decoder, fleets, run_folders
from tests.fuzz import settings as settings_files

TARGETS = [(decoder, 400), (fleets, 25), (settings_files, 150), (run_folders, 25)]


@st.composite
def corrupted(draw: st.DrawFn, seeds: Sequence[bytes], fragments: Sequence[bytes]) -> bytes:
    """A valid file, truncated or with a few bytes replaced, doubled or removed."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        until = min(len(content), at + draw(st.sampled_from([0, 0, 1, 1, 2, 8, 64, len(content)])))
        fragment = draw(st.sampled_from(fragments) | st.binary(max_size=4) | st.just(content[at:until] * 2))
        content = content[:at] + fragment + content[until:]
    return content


@pytest.mark.parametrize(("target", "examples"), TARGETS, ids=[target.__name__.split(".")[-1] for target, _ in TARGETS])
@pytest.mark.slow
def test_readers_keep_their_contract_for_any_bytes(target: ModuleType, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(corrupted(target.seeds(), target.FRAGMENTS))
    def check(data: bytes) -> None:
        assert target.read(data)

    check()


@pytest.mark.parametrize("target", [decoder, fleets, settings_files])
def test_seeds_are_valid(target: ModuleType) -> None:
    assert any(target.read(seed) in {"Page", "devices", "settings"} for seed in target.seeds())


HUGE = {
    "arrays": b"[" * MAX_BODY_BYTES,
    "objects": (b'{"a":' * MAX_BODY_BYTES)[:MAX_BODY_BYTES],
    "digits": b'{"code":' + b"9" * (MAX_BODY_BYTES - 9) + b"}",
    "code": b'{"code":"' + b"x " * (MAX_BODY_BYTES // 2 - 6) + b'"}',
    "message": b'{"code":"a","message":"' + b"server string to sign i " * (MAX_BODY_BYTES // 24 - 2) + b'"}',
    "blank": b'{"requestId":"' + b" " * (MAX_BODY_BYTES - 17) + b'"}',
    "controls": b'{"code":"a","errorMessage":"' + b"\\u0000" * (MAX_BODY_BYTES // 6 - 6) + b'"}',
    "names": b'{"success":true,"data":[' + b'{"moduleName":"m","moduleVersion":1},' * 200_000 + b"1]}",
    "keys": b'{"success":true,"data":{' + b",".join(b'"%d":1' % number for number in range(500_000)) + b"}}",
    "html": b"<p>" * (MAX_BODY_BYTES // 3),
}
HEADERS = [
    b"",
    b"\nDate: " + b" " * 8000 + b"x",
    b"\nDate: " + b"," * 8000,
    b"\nDate: " + b"9" * 8000,
    b"\nRetry-After: " + b":" * 8000,
    b"\nDate: Tue, 19 Nov " + b"2" * 5000 + b" 09:47:43 +" + b"9" * 3000,
]


@pytest.mark.parametrize("name", sorted(HUGE))
def test_a_body_of_the_largest_size_is_read_in_bounded_time(name: str) -> None:
    assert len(HUGE[name]) <= MAX_BODY_BYTES
    for status in (b"200", b"429"):
        assert decoder.read(status + b"\n\n" + HUGE[name])


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_of_the_largest_size_is_read_in_bounded_time(header: bytes) -> None:
    assert decoder.read(b"429" + header + b"\n\n{}") == "ThrottledError"
