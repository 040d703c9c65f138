import math
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from auditor.analysis.drift import diff_runs
from auditor.errors import RunNotWritableError, UsageError
from auditor.query.describe import describe_warning
from auditor.query.devices import select_devices
from auditor.query.filters import DeviceFilter
from auditor.query.run import Run
from auditor.query.sql import query_run
from auditor.storage import xlsx as workbook
from auditor.storage.xlsx import CUT, MAX_CELL_CHARACTERS, write_xlsx
from auditor.text.extras import describe_extra
from tests.runs.run_folders import HOSTILE, build, edit_manifest, every_status, named, ok

MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"

Cells = list[list[Any]]


def unescaped(text: str) -> str:
    """A text as Excel reads it (ECMA-376, 22.9.2.19)."""
    return re.sub(r"_x([0-9A-Fa-f]{4})_", lambda found: chr(int(found[1], 16)), text)


def column_of(reference: str) -> int:
    at = 0
    for letter in re.sub(r"\d", "", reference):
        at = 26 * at + ord(letter) - 64
    return at - 1


def value_of(cell: ET.Element) -> Any:
    kind, value = cell.get("t"), cell.find(f"{MAIN}v")
    assert cell.find(f"{MAIN}f") is None, "a formula"
    if kind == "inlineStr":
        (text,) = cell.findall(f"{MAIN}is/{MAIN}t")
        return unescaped(text.text or "")
    assert value is not None
    assert value.text is not None
    assert kind in (None, "n", "b"), kind
    return bool(int(value.text)) if kind == "b" else float(value.text)


def read(path: Path) -> tuple[dict[str, Cells], dict[str, ET.Element], int]:
    """Sheets with their cells, as XML, and which of them comes up first."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        book = ET.fromstring(archive.read("xl/workbook.xml"))
        relations = ET.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
        targets = {each.get("Id"): each.get("Target") for each in relations}
        sheets, trees = {}, {}
        for sheet in book.iter(f"{MAIN}sheet"):
            tree = ET.fromstring(archive.read(f"xl/{targets[sheet.get(RELATION)]}"))
            rows: Cells = []
            for row in tree.iter(f"{MAIN}row"):
                rows += [[] for _ in range(int(row.get("r", 0)) - len(rows))]
                for cell in row:
                    at = column_of(cell.get("r", ""))
                    rows[-1] += [None] * (at + 1 - len(rows[-1]))
                    rows[-1][at] = value_of(cell)
            name = sheet.get("name") or ""
            sheets[name], trees[name] = rows, tree
        assert not [name for name in archive.namelist() if "hyperlink" in name.lower() or "external" in name.lower()]
        view = next(book.iter(f"{MAIN}workbookView"))
        return sheets, trees, int(view.get("activeTab", 0))


def written(
    folder: Path, columns: Sequence[str], rows: Sequence[Sequence[object]], head: Mapping[str, object] | None = None
) -> dict[str, Cells]:
    path = folder / "out.xlsx"
    write_xlsx(path, name="rows", columns=columns, rows=rows, head=head or {})
    return read(path)[0]


def test_numbers_stay_numbers_and_text_stays_text(tmp_path: Path) -> None:
    row = (1, -7, 0.25, True, None, "007", "1.10", "1e5", "https://example.com/", "=1+1", "{=A1}", "")
    sheets = written(tmp_path, [f"c{at}" for at in range(len(row))], [row])
    assert sheets["rows"][0] == [f"c{at}" for at in range(len(row))]
    assert sheets["rows"][1] == list(row)
    assert [type(value) for value in sheets["rows"][1][:4]] == [float, float, float, bool]


def test_numbers_that_excel_does_not_have_are_text(tmp_path: Path) -> None:
    sheets = written(tmp_path, ["n"], [(2**53 - 1,), (2**53 + 1,), (-(2**63),), (math.nan,), (-math.inf,)])
    assert [row[0] for row in sheets["rows"][1:]] == [2**53 - 1, str(2**53 + 1), str(-(2**63)), "nan", "-inf"]


NASTY = [
    *HOSTILE,
    "\ufffe\uffff", "_x0041_", "\udc80lone", "]]>", "<b>&amp;</b>", "\x7f\x85\u2028", "'quoted", "<r><t>x</t>",
]  # fmt: skip


def test_hostile_text_is_read_back_unchanged(tmp_path: Path) -> None:
    sheets = written(tmp_path, ["=name", "\0"], [(text, text) for text in NASTY])
    lone = [text.replace("\udc80", "?") for text in NASTY]
    assert sheets["rows"] == [["=name", "\0"], *([text, text] for text in lone)]


def test_text_is_never_taken_for_xlsxwriter_markup(tmp_path: Path) -> None:
    sheets = written(tmp_path, ["version"], [("<r><t>forged</t></r>",), ("<r></broken></r>",)])
    assert sheets["rows"][1:] == [["'<r><t>forged</t></r>"], ["'<r></broken></r>"]]


def test_long_text_is_cut_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fits, long, wide = "x" * MAX_CELL_CHARACTERS, "y" * (MAX_CELL_CHARACTERS + 1), "😀" * MAX_CELL_CHARACTERS
    sheets = written(tmp_path, ["a", "b", "c"], [(fits, long, wide)])
    first, second, third = sheets["rows"][1]
    assert first == fits
    assert (len(second), second[-len(CUT) :]) == (MAX_CELL_CHARACTERS, CUT)
    assert third.removesuffix(CUT) == "😀" * (len(third) - len(CUT))
    assert MAX_CELL_CHARACTERS - 2 <= len(third.encode("utf-16-le")) / 2 <= MAX_CELL_CHARACTERS
    assert sheets["About"][-1][0] == "cells cut"
    assert sheets["About"][-1][1].startswith("2: Excel holds 32,767 characters")
    assert "cells too long for Excel were cut" in "".join(capsys.readouterr())


def test_rows_continue_on_the_next_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbook, "MAX_SHEET_ROWS", 10)
    for count, names in ((10, ["rows", "About"]), (21, ["rows", "About", "rows 2", "rows 3"]), (0, ["rows", "About"])):
        write_xlsx(tmp_path / "x", name="rows", columns=["n"], rows=[(n,) for n in range(count)], head={})
        sheets, trees, _ = read(tmp_path / "x")
        assert list(sheets) == names
        found = [row for name in names if name != "About" for row in sheets[name][1:]]
        assert found == [[n] for n in range(count)]
        assert all(sheets[name][0] == ["n"] for name in names if name != "About")
        assert ["rows", count] in sheets["About"]
        for name in names:
            if name != "About":
                assert (
                    next(trees[name].iter(f"{MAIN}autoFilter")).get("ref") == f"A1:A{len(sheets[name])}" or count == 0
                )


def test_column_names_are_bold_and_frozen_and_columns_are_wide_enough(tmp_path: Path) -> None:
    write_xlsx(
        tmp_path / "x", name="rows", columns=["n", "long", "share"], head={},
        rows=[(1_234_567_890, "v" * 30, 0.5), (1, "w" * 500, 1 / 3)],
    )  # fmt: skip
    _, trees, active = read(tmp_path / "x")
    pane = next(trees["rows"].iter(f"{MAIN}pane"))
    assert (pane.get("ySplit"), pane.get("state")) == ("1", "frozen")
    widths = [float(each.get("width", 0)) for each in trees["rows"].iter(f"{MAIN}col")]
    assert widths[0] > 13
    assert 50 < widths[1] < 70
    assert next(trees["rows"].iter(f"{MAIN}c")).get("s") not in (None, "0")
    assert active == 0


def test_the_second_sheet_describes_the_rows_and_is_active_if_there_are_warnings(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    whole = build(tmp_path / "whole", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    for path, active in ((folder, 1), (whole, 0)):
        with Run(path) as run:
            run.write_inventory(tmp_path / "out.xlsx", "xlsx")
            sheets, _, shown = read(tmp_path / "out.xlsx")
            assert list(sheets) == ["inventory", "About"]
            about = [tuple(row) for row in sheets["About"]]
            counts = run.devices
            assert {("run", path.name), ("state", run.manifest.state), ("devices failed", counts.failed)} < set(about)
            assert [value for label, value in about if label == "warnings"] == (
                list(map(describe_warning, run.warnings)) or ["none"]
            )
            assert sheets["inventory"][1:] == [
                [v.account, v.product_key, v.module_name, v.module_version, v.devices, v.share]
                for v in run.inventory()
            ]  # fmt: skip
        assert shown == active


def test_devices_sql_and_drift_are_written_too(tmp_path: Path) -> None:
    old, new = every_status(tmp_path / "old").folder, every_status(tmp_path / "new").folder
    edit_manifest(new, lambda manifest: replace(manifest, started_at="2026-11-23T02:00:00.000Z"))
    path = tmp_path / "out.xlsx"
    with select_devices(new, DeviceFilter(module="ble")) as selected:
        selected.table.write(path, "xlsx")
        sheets, _, shown = read(path)
        rows = [[*row, *[None] * (len(selected.table.columns) - len(row))] for row in sheets["rows"]]
        assert rows == [list(selected.table.columns), *([*row] for row in selected.table)]
        assert shown == 1
    with query_run(new, "SELECT DATE '2026-11-22' AS day, 1 AS \"=one\"") as answer:
        answer.table.write(path, "xlsx")
        assert read(path)[0]["rows"] == [["day", "=one"], ["2026-11-22", 1]]
    with diff_runs(old, new) as drift:
        drift.modules.write(path, "xlsx")
        sheets, _, _ = read(path)
        assert sheets["modules"][1:] == [list(row) for row in drift.modules]
        labels = [row[0] for row in sheets["About"]]
        assert {"old run", "new run", "old devices ok", "new warnings"} < set(labels)


def test_lists_of_objects_are_written_as_tables(tmp_path: Path) -> None:
    runs = [
        {"run": name, "devices": {"ok": at}, "warnings": [{"kind": "partial", "message": text} for text in "ab"[:at]]}
        for at, name in enumerate("xyz")
    ]
    sheets = written(tmp_path, ["n"], [], {"name": "nightly", "runs": runs})
    assert sheets["About"] == [
        ["name", "nightly"], ["rows", 0], [], ["runs"], ["run", "devices ok", "warnings"],
        ["x", 0, "none"], ["y", 1, "a"], ["z", 2, "a; b"],
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["gone/file.xlsx", "/dev/full", "."])
def test_an_unwritable_file_is_reported_in_a_sentence(tmp_path: Path, path: str) -> None:
    folder = every_status(tmp_path / "run").folder
    with Run(folder) as run, pytest.raises(RunNotWritableError, match="cannot be written"):
        run.write_inventory(tmp_path / path, "xlsx")


def test_rows_that_fail_half_way_leave_no_file(tmp_path: Path) -> None:
    with query_run(every_status(tmp_path / "run").folder, "SELECT CASE WHEN range < 3000 THEN 1 ELSE error('no') END FROM range(5000)") as answer:  # fmt: skip
        with pytest.raises(UsageError, match="the query fails"):
            answer.table.write(tmp_path / "out.xlsx", "xlsx")
        assert not (tmp_path / "out.xlsx").exists()


def test_more_columns_than_a_sheet_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="16,384 at most"):
        written(tmp_path, [f"c{at}" for at in range(16_385)], [])


@pytest.fixture
def without_xlsxwriter(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setitem(sys.modules, "xlsxwriter", None)


def test_a_missing_extra_is_an_error_with_the_command_to_install_it(
    tmp_path: Path, without_xlsxwriter: Callable[[], None]
) -> None:
    without_xlsxwriter()
    with (
        Run(every_status(tmp_path / "run").folder) as run,
        pytest.raises(UsageError, match=re.escape(describe_extra("report"))),
    ):
        run.write_inventory(tmp_path / "out.xlsx", "xlsx")
