"""Tables at 80 columns: no identifier is split or cut without a mark, and one line says what was left out."""

import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from auditor.analysis.recorded_changes import record_changes
from auditor.cli.app import main
from auditor.cli.output import Column, print_columns
from auditor.models import Device
from auditor.runs.manifest import read_manifest, write_manifest
from auditor.runs.selection_info import ExitReason
from tests.runs.run_folders import build, build_once, ok

PRODUCT = "a1B2c3D4e5F"
MODULE = "wifi-esp32"

COMMANDS = (
    ("inventory", "audits"),
    ("inventory", "audits", "--module", MODULE),
    ("inventory", "audits", "--group-by", "device_status,module_version"),
    ("devices", "audits"),
    ("diff", "audits", "--last"),
    ("diff", "audits", "--last", "--devices"),
    ("diff", "audits", "--since", "last~1"),
    ("diff", "audits", "--since", "last~1", "--devices"),
    ("runs", "audits"),
    ("device", "NAME", "audits"),
    ("policy", "audits", "rules.toml"),
    ("policy", "audits", "rules.toml", "--devices"),
    ("sql", "audits", "SELECT * FROM modules"),
    ("sql", "audits", "SELECT device_name, module_name, module_version, product_key, iot_id FROM device_modules"),
    ("history", "audits"),
)

RULES = f'[[rule]]\nname = "all of them are new"\nmodule = "{MODULE}"\nminimum = "99"\n'
"""Every device violates it."""


def write_runs(directory: Path, names: list[str], versions: tuple[str, str]) -> set[str]:
    """Write two runs, and return all identifiers in them."""
    devices = [Device("demo", PRODUCT, name, f"{number:032x}") for number, name in enumerate(names)]
    build_once(directory, ("narrow terminals", names, versions), lambda: _write_runs(directory, devices, versions))
    runs = {path.name for path in directory.iterdir()}
    (directory.parent / "rules.toml").write_text(RULES)
    return {PRODUCT, MODULE, *versions, *names, *runs, *(str(each.iot_id) for each in devices)}


def _write_runs(directory: Path, devices: list[Device], versions: tuple[str, str]) -> None:
    for day, version in zip((22, 23), versions, strict=True):
        folder = directory / f"202611{day}T020000Z-nightly-europe"
        build(folder, devices, [ok(device, (MODULE, version)) for device in devices])
        reason = ExitReason(
            "too_many_failed", f"1 of 9 devices failed with auditor.Timeout, such as {devices[0].device_name}"
        )
        started_at = f"2026-11-{day}T02:00:00.000Z"
        manifest = replace(read_manifest(folder), started_at=started_at, exit_code=1, exit_reason=reason)
        write_manifest(folder, manifest)
        write_manifest(folder, record_changes(folder, manifest))


def use_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Make standard output a terminal of a width, without colours."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for name, value in (("COLUMNS", str(width)), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], list[str]]:
    assert main(arguments) in {0, 1, 4}
    output = capsys.readouterr()
    return output.out.splitlines(), output.err.splitlines()


def broken(lines: list[str], identifiers: set[str]) -> list[str]:
    """Return the texts that are a part of an identifier, without the mark of a cut."""
    words = {word for line in lines for word in line.split() if len(word) > 4}
    return [
        word
        for word in words
        for name in identifiers
        if word in name and word not in identifiers and not any(word in whole.split() for whole in identifiers)
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_identifiers_of_common_length_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["meter-0017-b7", "灯-meter-22", "boiler :bug: 7"]
    identifiers = write_runs(tmp_path / "audits", names, ("1.12.0-rc.1", "1.12.0"))
    command = tuple(names[2] if word == "NAME" else word for word in command)
    whole, _ = printed(capsys, *command)
    use_terminal(monkeypatch, 80)
    lines, notes = printed(capsys, *command)
    assert max(map(cell_len, lines)) <= 80
    assert broken(lines, identifiers) == []
    text, wide = "\n".join(lines), "\n".join(whole)
    assert "…" not in text
    for name in names:
        assert (name in text) == (name in wide)
        assert name in text or command[0] != "devices"
    left_out = [note for note in notes if note.startswith("note: lines of 80 characters: no space for ")]
    assert len(left_out) <= (max(map(cell_len, whole)) > 80)
    if not left_out:
        shown, all_words = ({word.strip(",") for word in each.split()} for each in (text, "\n".join(whole[1:])))
        assert shown >= all_words


@pytest.mark.parametrize("command", [each for each in COMMANDS if each[0] != "history"], ids=" ".join)
def test_long_identifiers_are_cut_with_a_mark_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    use_terminal(monkeypatch, 80)
    names = [f"building-7-floor-{number}-{'meter' * 9}" for number in range(3)]
    versions = ("4.12.0-rc.1+build.20261122.abcdef0123", "4.12.0-rc.2+build.20261123.abcdef0123")
    identifiers = write_runs(tmp_path / "audits", names, versions)
    lines, notes = printed(capsys, *(names[2] if word == "NAME" else word for word in command))
    assert max(map(cell_len, lines)) <= 80
    assert broken(lines, identifiers) == []
    assert any("what ends with … is cut" in note for note in notes) == ("…" in "".join(lines))


CELLS = st.text(st.sampled_from("ab c灯"), max_size=30).map(str.strip)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=9), st.integers(20, 120), st.data())
def test_any_table_fits_and_is_whole_or_says_what_is_missing(
    cells: list[list[str]], width: int, data: st.DataObject
) -> None:
    drops = data.draw(st.lists(st.none() | st.integers(0, 9), min_size=len(cells), max_size=len(cells)))
    columns = [Column(f"n{at}", list(each), drop=drops[at]) for at, each in enumerate(cells)]
    out, err = io.StringIO(), io.StringIO()
    console = Console(file=out, width=width, markup=False, emoji=False)
    with (
        mock.patch("auditor.cli.output.open_console", return_value=console),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        print_columns(columns)
    *common, header, first, second = out.getvalue().splitlines()
    assert max(map(cell_len, (*common, header, first, second))) <= width
    headers, above, note = header.split(), " ".join(" ".join(common).split()), err.getvalue()
    assert above.startswith("in each row:") == bool(common)
    missing: list[str] = []
    for column in columns:
        told = any(column.cells) and f"{column.name} {' '.join(str(column.cells[0]).split())}" in above
        assert not told or column.cells[0] == column.cells[1]
        if column.name not in headers and any(column.cells) and not told:
            missing.append(column.name)
    if "…" not in out.getvalue():
        assert ("no space for " + ", ".join(missing) + ";" in note) == bool(missing)
        for column in columns:
            if column.name in headers:
                assert all(str(cell) in line for cell, line in zip(column.cells, (first, second), strict=True))
    else:
        assert "what ends with … is cut" in note
    assert bool(note) == bool(missing or "…" in out.getvalue())
