"""Odd attributes go from a fleet file through a run, its comparison, metrics and report, unchanged or escaped, and inert."""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from auditor.analysis.drift import diff_runs
from auditor.analysis.history import read_history
from auditor.fleet.names import strip_invisible
from auditor.hooks.metric_samples import MAX_LABEL_LENGTH
from auditor.hooks.prometheus import render_metrics
from auditor.query.filters import DeviceFilter
from auditor.report.filters import display_text
from auditor.report.render import write_report
from auditor.storage.tables import ResultTable
from auditor.text.formats import TableFormat
from auditor.text.formatting import safe
from tests.database import connect
from tests.fleet.test_attributes import NAME, ODD_TEXTS, TEXT, as_csv, read
from tests.runs.run_folders import build, edit_manifest, named, ok

FOLDERS = itertools.count()

Values = tuple[str, ...]


class _Cells(HTMLParser):
    """The header and the body of the table of attributes, and the tags of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.rows: list[list[str]] = []
        self._inside, self._cell = False, False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._inside = self._inside or ("id", "groups") in attrs
        self._cell = self._inside and tag in {"td", "th"}
        if self._inside and tag == "tr":
            self.rows.append([])
        if self._cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "section"
        self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def label(text: str) -> str:
    return safe(text[:MAX_LABEL_LENGTH])[:MAX_LABEL_LENGTH]


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(NAME, min_size=1, max_size=4, unique=True), st.lists(TEXT, min_size=1, max_size=5, unique=True))
@pytest.mark.slow
def test_random_attributes_are_the_same_everywhere(tmp_path: Path, names: list[str], texts: list[str]) -> None:
    _check_everywhere(tmp_path, names, texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [slice(4), pytest.param(slice(-4, None), marks=pytest.mark.slow)], ids=["first", "last"]
)
def test_odd_attributes_are_the_same_everywhere(tmp_path: Path, part: slice) -> None:
    names = [text for text in ODD_TEXTS if strip_invisible(text) == text]
    _check_everywhere(tmp_path, names[part], ODD_TEXTS)


def _check_everywhere(tmp_path: Path, names: Sequence[str], texts: Sequence[str]) -> None:
    folder = tmp_path / str(next(FOLDERS))
    folder.mkdir()
    values: list[Values] = [
        tuple(texts[(number + at) % len(texts)] for at in range(len(names))) for number in range(len(texts))
    ]
    given_ = [dict(zip(names, each, strict=True)) for each in values]
    attributes = read(folder, "fleet.csv", as_csv([{"iot_id": f"iot-{n}"} | each for n, each in enumerate(given_)]))
    assert attributes == given_
    old, new = (_write_run(folder / "audits" / day, attributes, day) for day in ("1", "2"))
    _check_comparison(old, new, names, values)
    _check_metrics(new, names, values)
    _check_report(new, folder / "page.html", names, values)


def _write_run(folder: Path, attributes: Sequence[Mapping[str, str] | None], version: str) -> Path:
    fleet = [named(number) for number in range(len(attributes))]
    outcomes = [ok(device, ("ble", f"{version}.0")) for device in fleet]
    build(folder, fleet, outcomes, details=[{"attributes": each} for each in attributes], afresh=True)
    edit_manifest(folder, lambda manifest: replace(manifest, started_at=f"2026-11-0{version}T02:00:00.000Z"))
    return folder


def _check_comparison(old: Path, new: Path, names: Sequence[str], values: Sequence[Values]) -> None:
    with diff_runs(old, new, group_by=names) as drift:
        assert drift.groups is not None
        at = drift.groups.columns.index("upgraded")
        assert at == len(names)
        assert Counter({row[:at]: row[at] for row in drift.groups}) == Counter(values)
        _check_formats(drift.groups, old.parent.parent, at, values)
    with read_history(old.parent, group_by=names) as history:
        first = history.table.columns.index("devices") - len(names)
        counts = Counter({(row[1], *row[first : first + len(names)]): row[-2] for row in history.table})
        assert counts == Counter((run.name, *each) for run in (old, new) for each in values)
    name, text = names[0], values[0][0]
    if f"{name}={text}".partition("=")[0] == name and not name.endswith("!"):
        with diff_runs(old, new, criteria=DeviceFilter(where=(f"{name}={text}",))) as drift:
            assert drift.counts.upgraded == sum(each[0] == text for each in values)


def _check_formats(table: ResultTable, folder: Path, width: int, values: Sequence[Values]) -> None:
    for form in get_args(TableFormat):
        table.write(folder / f"out.{form}", form)
    rows = orjson.loads((folder / "out.json").read_bytes())["groups"]
    lines = [orjson.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    with connect() as database:
        stored: list[tuple[Any, ...]] = database.execute(f"FROM '{folder}/out.parquet'").fetchall()
    for found in ([tuple(row.values()) for row in rows], [tuple(row.values()) for row in lines], stored):
        assert {row[:width] for row in found} == set(values)
    with (folder / "out.csv").open(newline="") as file:
        cells = {row[0] for row in itertools.islice(csv.reader(file), 1, None)}
    # A quote in front of what a spreadsheet takes for a formula is all that differs.
    assert {cell.replace("'", "") for cell in cells} == {each[0].replace("'", "") for each in values}
    assert not any(re.match(r"[=+@\t\r\n-]", cell) for cell in cells)


def _check_metrics(run: Path, names: Sequence[str], values: Sequence[Values]) -> None:
    text = render_metrics(run, group_by=names).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    labels = {each.labels["label"]: each.labels["attribute"] for each in samples if each.name == "auditor_group_label"}
    assert list(labels.values()) == [label(name) for name in names]
    assert all(re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*|_[a-zA-Z0-9][a-zA-Z0-9_]*", each) for each in labels)
    for name in ("auditor_group_devices", "auditor_group_version_devices"):
        found = Counter(
            {tuple(each.labels[one] for one in labels): each.value for each in samples if each.name == name}
        )
        assert found == Counter(tuple(map(label, each)) for each in values)


def _check_report(run: Path, path: Path, names: Sequence[str], values: Sequence[Values]) -> None:
    reader, plain = _Cells(), _Cells()
    now = datetime(2026, 11, 3, tzinfo=UTC)
    reader.feed(write_report(run, path, now=now, group_by=names).read_text())
    plain.feed(write_report(run, path, now=now).read_text())
    assert reader.rows[0][: len(names)] == [display_text(name) for name in names]
    shown = Counter(tuple(row[: len(names)]) for row in reader.rows[1:])
    assert shown == Counter(tuple(map(display_text, each)) for each in values)
    for tag, more in {"script": 0, "style": 0, "img": 0, "h1": 0, "section": 1, "a": 1}.items():
        assert reader.tags[tag] == plain.tags[tag] + more
