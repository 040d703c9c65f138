"""The bound on a Parquet file's text holds for pages in any order, and is not far above what files have."""

from pathlib import Path

import pytest

from auditor.storage.database import READING_MEMORY, describe_repeated_rows, open_database, scalar
from auditor.storage.parquet_pages import bound_text
from tests.database import connect
from tests.storage.parquet_pages import Page, delta_page, dictionary_page, parquet_of_pages, plain_page, repeated_page

LONG = b"x" * 2_000

PAGES: dict[str, list[Page]] = {
    "a dictionary": [dictionary_page([LONG]), repeated_page(30_000)],
    "plain values before a dictionary": [plain_page([b"a", b"b"]), dictionary_page([LONG]), repeated_page(30_000)],
    "values of one dictionary before another": [
        dictionary_page([b"a"]), repeated_page(9), dictionary_page([LONG]), repeated_page(30_000),
    ],
    "values that are prefixes of each other": [delta_page(LONG, 30_000)],
    "plain values before prefixes": [plain_page([b"a"]), delta_page(LONG, 30_000)],
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_texts_that_values_share_are_counted_wherever_their_page_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("auditor.storage.database.MIN_TEXT_BYTES", 50_000_000)
    path = tmp_path / "fleet.parquet"
    path.write_bytes(parquet_of_pages(PAGES[name]))
    assert path.stat().st_size < 5_000
    with connect() as database:  # it can be read, so the bound is needed
        assert scalar(database, f"SELECT sum(strlen(a)) FROM '{path}'") >= 60_000_000
    with open_database(memory=READING_MEMORY) as database:
        assert "has more than 50,000,000 bytes of text" in str(describe_repeated_rows(database, path))


@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
@pytest.mark.parametrize("version", ["V1", "V2"])
@pytest.mark.parametrize(
    "text", ["'device' || i", "'site' || i % 9", "repeat('a', i % 50)", "if(i % 3 = 0, NULL, 'x' || i)"]
)
def test_the_bound_is_above_the_text_of_files_and_not_far(
    tmp_path: Path, compression: str, version: str, text: str
) -> None:
    path = tmp_path / "a.parquet"
    with connect() as database:
        options = f"FORMAT parquet, COMPRESSION {compression}, PARQUET_VERSION {version}, ROW_GROUP_SIZE 20_480"
        database.execute(f"COPY (SELECT {text} AS a FROM range(50_000) t(i)) TO '{path}' ({options})")
        found = scalar(database, f"SELECT sum(strlen(a)) FROM '{path}'")
        first = "least(nullif(dictionary_page_offset, 0), data_page_offset)"
        chunks = database.execute(f"SELECT {first}, num_values FROM parquet_metadata('{path}')").fetchall()
    with path.open("rb") as file:
        bound = bound_text(file, chunks)
    assert bound is not None
    assert found <= bound <= 60 * found + 1_000_000


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", 1),
        (b"\x15", 1),
        (b"\x19\x1c\x00", 1),  # a list
        (b"\x15" + b"\xff" * 20, 1),
        (b"\x15\x00\x15\x01\x15\x00\x00", 1),  # a negative size
        (b"\x15\x00\x15\x00\x15\x00\x00" * 100, 1),  # pages without values
        (b"\x1c" * 100, 1),
    ],
)
def test_other_content_has_no_bound(tmp_path: Path, content: bytes, values: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert bound_text(file, [(0, values)]) is None


def test_an_offset_that_no_file_has_has_no_bound(tmp_path: Path) -> None:
    path = tmp_path / "a"
    # A page without values that says that it is stored in 2**65 bytes, so that the next one begins there.
    size = b"\x80" * 9 + b"\x08"
    path.write_bytes(b"\x15\x00\x15\x00\x15" + size + b"\x2c\x15\x00\x00\x00")
    with path.open("rb") as file:
        assert bound_text(file, [(0, 1)]) is None
        assert bound_text(file, [(-1, 1)]) is None


def test_pages_without_end_have_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.storage.parquet_pages.MAX_PAGES", 10)
    path = tmp_path / "a"
    path.write_bytes(b"".join(plain_page([b"a"]).content for _ in range(11)))
    with path.open("rb") as file:
        assert bound_text(file, [(0, 10)]) == 50
        assert bound_text(file, [(0, 11)]) is None
