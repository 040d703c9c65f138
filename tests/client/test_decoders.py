"""Pages as they are documented: read fast, and to the very same page that the patient reader makes of them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.client.decoders import decode_documented_page
from auditor.client.responses import parse_module_page, parse_response
from auditor.errors import PlatformError
from auditor.models import Page
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import device_params, get, signed_query

SAMPLES = Path(__file__).with_name("samples")
TUYA, ALIBABA = ((SAMPLES / name / "body").read_bytes() for name in ("page_tuya", "page_alibaba"))


def patient(body: bytes) -> Page | None:
    try:
        return parse_module_page(parse_response(200, {}, body, now=0.0))
    except PlatformError:
        return None


@pytest.mark.parametrize("body", [TUYA, ALIBABA])
def test_the_documented_example_is_read_in_both_spellings(body: bytes) -> None:
    page = decode_documented_page(body)
    assert page is not None
    assert page == patient(body)
    assert [each.module.module_name for each in page.reported] == ["ble"]


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
@pytest.mark.anyio
async def test_what_the_simulated_platform_answers_is_as_documented(dialect: Any) -> None:
    world = World(seed=3, devices=50)
    read = 0
    async with Simulator(world, dialect=dialect) as platform:
        for index in range(20):
            body = (await get(platform, signed_query(device_params(world.device(index))))).body
            assert decode_documented_page(body) == patient(body)
            read += decode_documented_page(body) is not None
    assert read > 10


LEAVES: st.SearchStrategy[object] = st.sampled_from(
    [None, True, False, 0, 1, 2, -1, 1.0, 1.5, 2**53, 2**53 + 1, 2**70, "", "1", "x", "true", "a b", "\u6a21", [], {}]
)


def places(value: object, at: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*at, key))


@settings(max_examples=600, deadline=None)
@given(st.sampled_from([TUYA, ALIBABA]), st.data())
def test_of_any_answer_it_reads_what_the_patient_reader_reads_or_nothing(body: bytes, data: st.DataObject) -> None:
    document = orjson.loads(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from([each for each in places(document) if each]))
        parent = document
        for key in at[:-1]:
            parent = parent[key]
        change = data.draw(st.sampled_from(["put", "delete", "rename", "add"]))
        if change == "put":
            parent[at[-1]] = data.draw(LEAVES)
        elif isinstance(parent, dict):
            value = parent.pop(at[-1]) if change != "add" else data.draw(LEAVES)
            if change != "delete":
                name = str(at[-1])
                swapped = name.swapcase()[0] + name[1:]
                parent[data.draw(st.sampled_from([swapped, name.upper(), name.lower(), f"{name}2"]))] = value
    changed = orjson.dumps(document) if -(2**63) <= largest(document) < 2**64 else body
    page = decode_documented_page(changed)
    assert page is None or page == patient(changed)


def largest(document: object) -> int:
    if isinstance(document, dict | list):
        inner = document.values() if isinstance(document, dict) else document
        return max((largest(each) for each in inner), default=0)
    return document if isinstance(document, int) else 0


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from([TUYA, ALIBABA]),
    st.integers(0, 600),
    st.integers(0, 20),
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"\\ud800", b"\xff", b"\x00", b"01", b"1e3", b"1.0", b"-0", b'"total":3,', b"[" * 99, b"\\u0020"]
        ),
    ),
)
@example(ALIBABA, 0, 0, b"\xef\xbb\xbf")
def test_of_any_bytes_it_reads_what_the_patient_reader_reads_or_nothing(
    body: bytes, at: int, cut: int, put: bytes
) -> None:
    changed = body[:at] + put + body[at + cut :]
    page = decode_documented_page(changed)
    assert page is None or page == patient(changed)


def test_deep_nesting_is_none_of_its_business() -> None:
    assert decode_documented_page(b'{"data":' * 100_000) is None
    assert decode_documented_page(re.sub(rb'"total": ?\d+', b'"total":' + b"9" * 5000, TUYA)) is None
