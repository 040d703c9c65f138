"""Hostile content, end to end: it is stored exactly and printed escaped, or rejected by name; the run stays valid."""

import csv
import io
import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from aiohttp import web

import auditor
from auditor.runs.folder import results_name
from auditor.runs.journal import result_blocks
from tests import forked
from tests.database import connect

pytestmark = pytest.mark.anyio

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\0=1", "\ufeff=1", '=HYPERLINK("https://evil.example")']
TEXTS = [
    *FORMULAS,
    "\0", "a\0b", "\x1b[2J\x1b[H", "\x1b]8;;https://evil.example/\x1b\\click\x1b]8;;\x1b\\", "\x9b2J", "\x9d0;title\x9c",
    "safe\u202egnp.exe", "\u2066\u2069", "over\rwrite", "back\b\b\bspace", "two\nlines", "two\r\nlines", "\x0b\x0c\x7f",
    "a\u2028b\u2029c", "next\x85line", "\ufeffmark", "zero\u200bwidth", "\uffff\ufffe", "\U0001f600\U0010ffff",
    "|cmd", "%0a", "a=1", "1-1", " =1",
    "<script>alert(1)</script>", "<b>&amp;", "[bold]rich[/bold]", "[link=https://evil.example]x[/link]", ":smile:",
    '"unpaired', "'", "a,b;c\td", "\\", "\\u0000", "\\n", "'; DROP TABLE modules; --", "{}", "%s%n", "${HOME}",
    "\x1f", "\x1e", "\x1a", "\x04", " ", "  padded  ", "NULL", "nan", "true", "e\u0301" * 20, "x" * 40_000, "\0" * 5_000,
]  # fmt: skip


def answer(*entries: object, total: object = None, **fields: object) -> bytes:
    document = {"success": True, "code": "", "total": len(entries) if total is None else total, **fields}
    return orjson.dumps({**document, "data": {"simpleOTAModuleInfo": entries}})


def module(name: object = "m", version: object = "1", **fields: object) -> dict[str, object]:
    return {"moduleName": name, "moduleVersion": version, **fields}


def raw_response(entry: str, total: str = "1") -> bytes:
    """An answer with one entry's name as bare JSON text."""
    text = f'{{"success":true,"total":{total},"data":{{"simpleOTAModuleInfo":[{{"moduleName":{entry},"moduleVersion":"1"}}]}}}}'
    return text.encode("utf-8", "surrogatepass")


@asynccontextmanager
async def platform(bodies: Mapping[str, bytes], status: int = 200) -> AsyncIterator[str]:
    """A server that answers each device, by its name or id, with its body; gives the endpoint."""

    async def serve(request: web.BaseRequest) -> web.Response:
        called = request.query.get("DeviceName") or request.query["IotId"]
        return web.Response(status=status, body=bodies[called], content_type="application/json")

    runner = web.ServerRunner(web.Server(serve, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def write_settings(folder: Path, endpoint: str, fleet: str) -> Path:
    (folder / "secret").write_text("secret")
    (folder / "fleet.csv").write_bytes(fleet.encode())
    path = folder / "settings.toml"
    path.write_text(
        f'directory = "audits"\nmax_attempts = 2\nmax_failed = "100%"\n[[account]]\nname = "eu"\nendpoint = "{endpoint}"\n'
        'access_key_id = "key"\naccess_key_secret = { file = "secret" }\ncalls_per_second = "unlimited"\n'
        'fleet = { file = "fleet.csv" }\n'
    )
    return path


def fleet_table(names: Mapping[str, object]) -> str:
    return "\n".join(["product_key,device_name", *(f"k1,{name}" for name in names), ""])


async def audit_texts(folder: Path, bodies: Mapping[str, bytes], fleet: str | None = None) -> auditor.AuditResult:
    async with platform(bodies) as endpoint:
        settings = auditor.load_settings(write_settings(folder, endpoint, fleet or fleet_table(bodies)))
        return await auditor.run_audit(settings)


def assert_complete(result: auditor.AuditResult, devices: int) -> None:
    manifest = json.loads((result.folder / "run.json").read_text())
    assert sum(manifest["devices"].values()) == devices == manifest["fleet"]["devices"]
    assert manifest["devices"]["pending"] == 0
    assert asdict(result.manifest.devices) == manifest["devices"]
    assert len(read_lines(result.folder / "failures.jsonl")) == manifest["devices"]["failed"]
    assert sum(failure["devices"] for failure in manifest["failures"]) == manifest["devices"]["failed"]
    assert auditor.verify_run(result.folder) == []


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def unprintable(text: str) -> set[str]:
    return {c for c in text if not c.isprintable()} - {"\n"}


async def test_every_text_is_kept_exactly_in_every_file(tmp_path: Path) -> None:
    bodies = {f"d-{number:03}": answer(module(text, text)) for number, text in enumerate(TEXTS)}
    result = await audit_texts(tmp_path, bodies)
    assert result.manifest.state == "complete"
    assert_complete(result, len(TEXTS))
    pairs = [{"module_name": text, "module_version": text} for text in TEXTS]
    lines = sorted(read_lines(result.folder / "devices.jsonl"), key=lambda line: str(line["device_name"]))
    assert [line["modules"] for line in lines] == [[pair] for pair in pairs]
    modules = f"SELECT module_name, module_version FROM '{result.folder}/modules.parquet' ORDER BY device_name"
    with connect() as database:
        assert database.execute(modules).fetchall() == [(text, text) for text in TEXTS]
    inventory = json.loads((result.folder / "inventory.json").read_bytes())["inventory"]
    assert sorted(row["module_name"] for row in inventory) == sorted(TEXTS)
    with auditor.Run(result.folder) as run:
        assert sorted((row.module_name, row.module_version) for row in run.inventory()) == [
            (t, t) for t in sorted(TEXTS)
        ]


async def test_the_csv_holds_every_text_and_no_cell_is_a_formula(tmp_path: Path) -> None:
    bodies = {f"d-{number:03}": answer(module(text, text)) for number, text in enumerate(TEXTS)}
    result = await audit_texts(tmp_path, bodies)
    table = list(csv.DictReader(io.StringIO((result.folder / "inventory.csv").read_bytes().decode(), newline="")))
    cells = [row["module_version"] for row in table]
    inert = [text.replace("\t=", "\t'=") for text in TEXTS]  # a spreadsheet may split a cell at a tab
    assert sorted(cells) == sorted(f"'{text}" if text in FORMULAS or text == "\t'=1" else text for text in inert)


@pytest.mark.slow
async def test_the_longest_line_that_is_written_can_be_read_again(tmp_path: Path) -> None:
    modules = {
        fill: [module(f"{number:04}{fill * 6}", fill * 10) for number in range(5_000)] for fill in ("\0", "\U0001f600")
    }
    result = await audit_texts(tmp_path, {f"d-{number}": answer(*each) for number, each in enumerate(modules.values())})
    assert result.manifest.devices.ok == 2
    assert_complete(result, 2)
    written = b"".join(result_blocks(result.folder / results_name(result.folder)))
    assert max(len(line) for line in written.split(b"\n")) > 650_000
    with connect() as database:
        read = database.execute(f"SELECT module_name, module_version FROM '{result.folder}/modules.parquet'").fetchall()
    assert set(read) == {(entry["moduleName"], entry["moduleVersion"]) for each in modules.values() for entry in each}


async def test_names_that_the_platform_reports_are_kept_exactly(tmp_path: Path) -> None:
    names = [text for text in TEXTS if len(text) <= 256]
    bodies = {f"id-{number:03}": answer(module(productKey=text, deviceName=text)) for number, text in enumerate(names)}
    result = await audit_texts(tmp_path, bodies, "\n".join(["iot_id", *bodies, ""]))
    assert result.manifest.state == "complete"
    assert_complete(result, len(names))
    with connect() as database:
        for file in ("devices.parquet", "modules.parquet"):
            query = f"SELECT product_key, device_name FROM '{result.folder}/{file}' ORDER BY iot_id"
            assert database.execute(query).fetchall() == [(text, text) for text in names]


REFUSED: dict[str, tuple[bytes, str]] = {
    "not-utf-8": (b'{"success":true,"code":"","errorMessage":"\xff\xfe"}', "auditor.InconsistentPages"),
    "utf-16": (answer(module()).decode().encode("utf-16"), "auditor.InvalidEncoding"),
    "utf-32": (answer(module()).decode().encode("utf-32-le"), "auditor.InvalidJSON"),
    "deep-arrays": (b'{"success":true,"data":' + b"[" * 1_000_000, "auditor.InvalidJSON"),
    "deep-objects": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "auditor.InvalidJSON"),
    "infinite": (raw_response('"m"', "1e999"), "auditor.InvalidJSON"),
    "not-a-number": (raw_response('"m"', "NaN"), "auditor.InconsistentPages"),
    "a-million-digits": (raw_response('"m"', "9" * 1_000_000), "auditor.InvalidJSON"),
    "two-answers": (answer(module()) * 2, "auditor.InvalidJSON"),
    "no-object": (b"[1]", "auditor.InvalidJSON"),
    "nothing": (b"", "auditor.InvalidJSON"),
    "nine-megabytes": (answer(module("x" * 9_000_000)), "auditor.ResponseTooLarge"),
    "long-name": (answer(module("x" * 7_000_000)), "auditor.ResponseTooLarge"),
    "longer-name-than-kept": (answer(module("x" * 900_000)), "auditor.InconsistentPages"),
    "long-version": (answer(module("m", "\0" * 150_000)), "auditor.InconsistentPages"),
    "huge-total": (raw_response('"m"', "9" * 30), "auditor.InconsistentPages"),
    "negative-total": (raw_response('"m"', "-1"), "auditor.InconsistentPages"),
    "fraction": (raw_response('"m"', "1.5"), "auditor.InconsistentPages"),
    "total-in-words": (raw_response('"m"', '"one"'), "auditor.InconsistentPages"),
    "total-twice": (raw_response('"m"', '1,"total":5'), "auditor.InconsistentPages"),
    "many-entries": (answer(*[module(f"m{n}") for n in range(100_000)]), "auditor.ResponseTooLarge"),
    "many-entries-of-3": (answer(*[module(f"m{n}") for n in range(5_999)], total=3), "auditor.InconsistentPages"),
    "same-in-capitals": (answer(module("ble"), module("BLE")), "auditor.InconsistentPages"),
    "odd-entries": (answer(1, "x", None, [], total=4), "auditor.InconsistentPages"),
    "name-of-lists": (answer(module(["m"])), "auditor.InconsistentPages"),
    "true-for-a-name": (answer(module(version=True)), "auditor.InconsistentPages"),
    "data-is-text": (b'{"success":true,"total":1,"data":"\\u001b[2J"}', "auditor.InconsistentPages"),
    "another-device": (answer(module(deviceName="\x1b[2J\r\n\u202e\0")), "auditor.InconsistentPages"),
    "another-page": (answer(module(), currentPage=7), "auditor.InconsistentPages"),
    "code": (b'{"success":false,"code":"\\u001b[2J\\u0000\\u009b\\u202e=x\\r\\n"}', "[2J =x"),
    "long-code": (orjson.dumps({"success": False, "code": "c" * 1_000_000}), "c" * 300),
    "long-message": (orjson.dumps({"success": False, "code": "odd", "errorMessage": "\x1b\n" * 900_000}), "odd"),
}


REPAIRED = {
    "lone-surrogate": (raw_response('"\\ud800"'), "\\ud800"),
    "low-surrogate-first": (raw_response('"\\udc00\\ud800"'), "\\udc00\\ud800"),
    "surrogate-bytes": (raw_response('"\ud800"'), "\\xed\\xa0\\x80"),
    "bare-control": (raw_response('"\x1b[2J"'), "\x1b[2J"),
    "bare-nul": (raw_response('"\0"'), "\0"),
    "mark-in-front": (b"\xef\xbb\xbf" + answer(module()), "m"),
}


@pytest.mark.slow
async def test_invalid_response_is_a_named_failure_and_the_run_is_valid(tmp_path: Path) -> None:
    bodies = {name: body for name, (body, _) in (REPAIRED | REFUSED).items()}
    result = await audit_texts(tmp_path, bodies)
    assert (result.manifest.state, result.manifest.devices.ok) == ("within_tolerance", len(REPAIRED))
    assert_complete(result, len(bodies))
    answers = {line["device_name"]: line for line in read_lines(result.folder / "devices.jsonl")}
    assert {name: line["modules"][0]["module_name"] for name, line in answers.items()} == {
        name: text for name, (_, text) in REPAIRED.items()
    }
    failures = {line["device_name"]: line for line in read_lines(result.folder / "failures.jsonl")}
    assert {name: line["code"] for name, line in failures.items()} == {
        name: code for name, (_, code) in REFUSED.items()
    }
    for line in failures.values():
        assert unprintable(line["code"] + line["message"]) == set()
        assert len(line["message"]) <= 300


def command(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run(*arguments, cwd=folder, env=os.environ | {"COLUMNS": "200"}, newline="")


@pytest.mark.slow
async def test_no_command_prints_terminal_control_sequences(tmp_path: Path) -> None:
    texts = {f"d-{number:03}": answer(module(text[:200], text[:200])) for number, text in enumerate(TEXTS)}
    bodies = {name: REFUSED[name][0] for name in ("code", "another-device", "long-code", "long-message")} | texts
    async with platform(bodies) as endpoint:
        settings = write_settings(tmp_path, endpoint, fleet_table(bodies))
        checked = await anyio.to_thread.run_sync(command, tmp_path, "check", settings)
        ran = await anyio.to_thread.run_sync(command, tmp_path, "run", settings)
    shown = [checked, ran, *(command(tmp_path, name, "audits") for name in ("inventory", "verify"))]
    assert [done.returncode for done in shown[1:]] == [0, 0, 0]
    assert [unprintable(done.stdout + done.stderr) for done in shown] == [set()] * 4
    assert "[2J =x" in ran.stderr
    assert "\\x1b[2J" in shown[2].stdout
    assert "[bold]rich[/bold]" in shown[2].stdout
    assert json.loads(command(tmp_path, "inventory", "audits", "--format", "json").stdout)["complete"] is False


@pytest.mark.slow
async def test_error_of_a_denied_account_is_escaped(tmp_path: Path) -> None:
    text = "\x1b]0;owned\x07\x9b2J\u202e\r\n\b\0[link=https://evil.example]x[/link]"
    body = orjson.dumps({"Code": f"Forbidden.{text}", "Message": text, "RequestId": text})
    async with platform({"d-1": body}, status=403) as endpoint:
        settings = write_settings(tmp_path, endpoint, fleet_table({"d-1": 1}))
        shown = [await anyio.to_thread.run_sync(command, tmp_path, name, settings) for name in ("check", "run")]
    assert [done.returncode for done in shown] == [3, 3]
    assert [unprintable(done.stdout + done.stderr) for done in shown] == [set(), set()]
    assert "]0;owned" in shown[1].stderr


async def test_unusual_names_in_a_fleet_are_escaped(tmp_path: Path) -> None:
    names = ["[bold red]x[/]", "<script>", "na=me", "\U0001f4a1"]
    body = b'{"success":false,"code":"iot.device.NullDeviceName","errorMessage":"\\u001b[2J"}'
    async with platform(dict.fromkeys(names, body)) as endpoint:
        settings = write_settings(tmp_path, endpoint, fleet_table(dict.fromkeys(names)))
        shown = [await anyio.to_thread.run_sync(command, tmp_path, name, settings) for name in ("check", "run")]
    shown.append(command(tmp_path, "verify", "audits"))
    assert [unprintable(done.stdout + done.stderr) for done in shown] == [set()] * 3
    assert [done.returncode for done in shown[1:]] == [0, 0]
    assert "failed   4 with iot.device.NullDeviceName" in shown[1].stderr


@pytest.mark.parametrize(
    "name",
    [
        *("nul\0", "esc\x1b[2J", "c1\x9b", "ta\tb", '"two\nlines"', '"c\rr"', "del\x7f"),
        *("bi\u202edi", "li\u2028ne", "ze\u200bro", "t\U000e0041ag", "=1+1"),
    ],
)
async def test_character_that_no_name_has_is_rejected_and_escaped(tmp_path: Path, name: str) -> None:
    settings = write_settings(tmp_path, "http://127.0.0.1:1/", fleet_table({name: 1}))
    done = await anyio.to_thread.run_sync(command, tmp_path, "run", settings)
    assert done.returncode == 2
    assert "fleet.csv: " in done.stderr
    assert unprintable(done.stdout + done.stderr) == set()
