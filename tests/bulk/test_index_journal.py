"""The journal of a discovery by the index, cut anywhere: it continues after the last complete line."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.bulk.index_journal import IndexJournal, IndexPosition, TieFrame
from auditor.bulk.index_results import write_index_results
from auditor.config.settings import FleetSource
from auditor.fleet.gaps import discovery_progress
from auditor.models import IndexedDevice, ListPage, ModuleVersion, Product
from auditor.storage.database import MAX_LINE_BYTES
from tests.database import connect

ALL = FleetSource(products="all")


def row(number: int, **tags: str) -> IndexedDevice:
    modules = (ModuleVersion("default", f"1.{number}"),)
    return IndexedDevice(
        f"lamp-{number}", f"id{number}", "ONLINE", f"t{number}", None, modules=modules, tags=tuple(tags.items())
    )


def write(path: Path) -> list[tuple[int, IndexPosition, int]]:
    """Write a journal; return its size, the position and the rows after each page of the product."""
    found = []
    with IndexJournal(path, ALL) as journal:
        journal.record_products(ListPage((Product("k1", "Lamps", 30),), None, 1, None))
        product = journal.products["k1"]
        for number in range(30):
            frames = [TieFrame("lamp", 7, ["a", ""])] if number % 4 == 1 else []
            position = IndexPosition(f"t{number}", [f"lamp-{number}"], "t5" if frames else None, frames)
            journal.record_rows(product, [row(number)], position, read_at=1.5, ended=number == 29)
            found.append((path.stat().st_size, journal.position("k1"), product.rows))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_cut_journal_continues_after_its_last_line(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "index.jsonl"
    pages = write(path)
    cut = random.Random(seed).randrange(pages[0][0], pages[-1][0] + 1)
    with path.open("r+b") as file:
        file.truncate(cut)
    size, position, rows = max((page for page in pages if page[0] <= cut), key=lambda page: page[0])
    with IndexJournal(path, ALL) as journal:
        assert path.stat().st_size == size
        assert journal.position("k1") == position
        assert journal.products["k1"].rows == rows
        assert journal.finished == (rows == 30)
        assert discovery_progress(journal).devices == rows


def test_a_fleet_has_a_bounded_number_of_attributes(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl"
    for _ in range(2):  # the second time, names are those of the file
        with IndexJournal(path, ALL) as journal:
            journal.record_products(ListPage((Product("k1", None, None),), None, 1, None))
            product = journal.products["k1"]
            for number in range(60):
                new = row(number, **{f"tag{number}": "x", "site": "a1", "nickname": "y"})
                journal.record_rows(product, [new], IndexPosition(), read_at=0.0)
    text = path.read_text()
    assert text.count('"site":"a1"') == 120
    assert '"nickname":"y"' not in text
    assert sum(f'"tag{number}"' in text for number in range(60)) == 31


def large_page(modules: int) -> list[IndexedDevice]:
    """Return a page of 50 devices with so many modules each."""
    versions = tuple(ModuleVersion(f"module-{number:03}", "1.0.0-production-build") for number in range(modules))
    return [replace(row(number), modules=versions) for number in range(50)]


def test_a_page_of_many_versions_is_read_back_from_several_lines(tmp_path: Path) -> None:
    path, out = tmp_path / "index.jsonl", tmp_path / "results.parquet"
    with IndexJournal(path, ALL) as journal:
        journal.record_products(ListPage((Product("k1", None, None),), None, 1, None))
        journal.record_rows(journal.products["k1"], large_page(400), IndexPosition("t"), read_at=0.0, ended=True)
    lines = path.read_bytes().splitlines()
    assert len(lines) > 2
    assert max(len(line) for line in lines) < MAX_LINE_BYTES
    write_index_results(path, out, "eu")
    with connect() as database:
        found = database.execute(f"SELECT count(*), sum(total) FROM '{out}'").fetchall()
    assert found == [(50, 50 * 400)]


def test_a_page_without_its_last_line_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl"
    with IndexJournal(path, ALL) as journal:
        journal.record_products(ListPage((Product("k1", None, None),), None, 1, None))
        journal.record_rows(journal.products["k1"], [row(99)], IndexPosition("t"), read_at=0.0)
        size = path.stat().st_size
        journal.record_rows(journal.products["k1"], large_page(400), IndexPosition("u"), read_at=0.0, ended=True)
    content = path.read_bytes()
    path.write_bytes(content[: content.rstrip().rindex(b"\n") + 1])
    with IndexJournal(path, ALL) as journal:
        assert path.stat().st_size == size
        assert (journal.rows, journal.finished, journal.position("k1")) == (1, False, IndexPosition("t"))
        journal.record_rows(journal.products["k1"], large_page(400), IndexPosition("u"), read_at=0.0, ended=True)
        assert (journal.rows, journal.finished) == (51, True)


def test_a_device_whose_versions_fit_into_no_line_has_none(tmp_path: Path) -> None:
    path, out = tmp_path / "index.jsonl", tmp_path / "results.parquet"
    with IndexJournal(path, ALL) as journal:
        journal.record_products(ListPage((Product("k1", None, None),), None, 1, None))
        devices = [large_page(20_000)[0], row(1)]
        journal.record_rows(journal.products["k1"], devices, IndexPosition("t"), read_at=0.0, ended=True)
    write_index_results(path, out, "eu")
    with connect() as database:
        assert database.execute(f"SELECT device_name FROM '{out}'").fetchall() == [("lamp-1",)]
