"""The kinds of input that are mutated: each makes a case of a number, always the same."""

import gzip
import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import duckdb

from auditor.engine.sent_requests import SENT_REQUESTS
from auditor.releases.list_journal import RELEASES_FOLDER
from auditor.resilience.file_backend import FILE_SUFFIX
from auditor.resilience.redis_backend import MAX_VALUE_SIZE
from auditor.runs.folder import (
    CARRIED,
    COMPRESSED_RESULTS,
    DEVICES,
    FAILURES,
    FIRMWARE,
    FLEET,
    INVENTORY_CSV,
    INVENTORY_JSON,
    MODULES,
    PRODUCTS,
    RESULTS,
    SELECTED,
    TASKS,
)
from auditor.runs.manifest import MANIFEST, read_manifest
from auditor.simulator.server import DEFAULT_ACCOUNT
from auditor.storage.database import sql_literal, sql_read_path
from tests.mutations.answers import serve_mutated
from tests.mutations.commands import (
    FULL_ACCOUNT,
    FULL_SETTINGS,
    READING,
    WRITING,
    Runs,
    answered_commands,
    fleet_commands,
    settings_commands,
)
from tests.mutations.documents import mutate_bytes
from tests.mutations.files import mutate_content, mutate_file, replace_entry
from tests.mutations.material import HEAD, TEMPLATES, Material
from tests.mutations.sandbox import Case

RUN_FILES = (
    MANIFEST,
    FLEET,
    RESULTS,
    FAILURES,
    DEVICES,
    MODULES,
    INVENTORY_CSV,
    INVENTORY_JSON,
    PRODUCTS,
    SELECTED,
    CARRIED,
    FIRMWARE,
    TASKS,
)

RELEASE_JOURNALS = tuple(f"{RELEASES_FOLDER}/{name}.jsonl" for name in ("firmware", "jobs", "tasks"))

SEALED_FILES = frozenset(RUN_FILES) - {MANIFEST}

HIDDEN = (
    ".discovery",
    SENT_REQUESTS,
    RELEASES_FOLDER,
    ".reserve",
    ".sealing",
    ".remaining.parquet",
    ".hooks",
    ".hooks-deferred",
    ".lock",
    ".selecting",
    "failures.1.jsonl",
    "report.html",
    "inventory.xlsx",
)
"""Working files of an audit in a run folder, and files of hooks."""


def _sources(kind: str, number: int) -> tuple[Random, Random]:
    """Return a source of random numbers for the mutation, and one for the command."""
    return Random(f"{kind} {number}"), Random(f"{kind} {number} command")


def run_folders(material: Material, number: int) -> Case:
    """Mutate a file of a run, replace it by something else, or plant a working file; then run one of all commands."""
    random, command_random = _sources("run_folders", number)
    audits = material.fill(command_random.choice(sorted(TEMPLATES)))
    newest, *earlier = sorted(audits.glob("2*"), reverse=True)
    mutated, other = command_random.choice(((newest, earlier[0]), (newest, earlier[0]), (earlier[0], newest)))
    manifest = read_manifest(mutated)
    sealed = {file.name: (mutated / file.name).read_bytes() for file in manifest.files}
    what = material.sandbox.call(lambda: _mutate_run(mutated, material.sandbox.outside, random))
    is_changed = any(not (mutated / name).is_file() or (mutated / name).is_symlink() for name in sealed) or any(
        (mutated / name).stat().st_size < 1 << 28 and (mutated / name).read_bytes() != content
        for name, content in sealed.items()
    )
    runs = Runs(material.sandbox.folder, mutated, other, command_random)
    is_reading = command_random.randrange(5) > 0
    commands = READING if is_reading else WRITING
    name = command_random.choice(sorted(commands))
    detected = name == "verify" and manifest.state != "running" and is_changed and not what.startswith(MANIFEST)
    changed, refused = () if is_reading else (audits,), frozenset({0} if detected else ())
    return Case(what, commands[name](runs), changed, refused, frozenset({material.port}))


def _mutate_run(folder: Path, outside: Path, random: Random) -> str:
    if not random.randrange(6):
        return replace_entry(folder / random.choice((*RUN_FILES, *HIDDEN)), outside, random)
    if not random.randrange(20):
        line = b'%s ["ListOTAModuleVersionsByDevice","eu"]\n' % random.choice(
            (b"0" * 18 + b"7", b"9" * 19, b"9" * 5_000)
        )
        (folder / SENT_REQUESTS).write_bytes(mutate_bytes(line * 3, random)[0])
        return f"{SENT_REQUESTS}: {line[:30]!r}"
    if not random.randrange(2):
        return mutate_file(folder / MANIFEST, random)
    name = random.choice([name for name in (*RUN_FILES, *RELEASE_JOURNALS) if (folder / name).exists()])
    if name == RESULTS and random.randrange(2):  # as sealing compresses those of more devices
        (folder / COMPRESSED_RESULTS).write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
        name = COMPRESSED_RESULTS
    return mutate_file(folder / name, random)


def fleets(material: Material, number: int) -> Case:
    """Mutate a fleet file of any format, or replace it by something else."""
    random, command_random = _sources("fleets", number)
    material.sandbox.reset()
    folder = material.sandbox.folder
    material.write_settings(folder)
    name = command_random.choice(
        ("fleet.csv", "fleet.tsv", "fleet.jsonl", "fleet.parquet", "fleet.txt", "fleet.csv.gz", "fleet", "fleet.xlsx")
    )
    path = folder / name
    what = material.sandbox.call(lambda: _mutate_fleet(path, material.sandbox.outside, random))
    changed = (folder / "audits",)
    return Case(what, fleet_commands(folder, command_random, name), changed, ports=frozenset({material.port}))


def _mutate_fleet(path: Path, outside: Path, random: Random) -> str:
    rows = (path.parent / "fleet.csv").read_text().splitlines()
    header, *cells = [line.split(",") for line in rows]
    if path.name.startswith(("fleet.tsv", "fleet.txt")):
        text = (
            "\n".join("\t".join(row) for row in (header, *cells))
            if path.suffix == ".tsv"
            else "\n".join("/".join(row[:2]) for row in cells)
        )
        path.write_text(text + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in cells))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress((path.parent / "fleet.csv").read_bytes()))
    elif path.suffix == ".parquet":
        with duckdb.connect(config={"threads": 1}) as database:
            source = sql_read_path(path.parent / "fleet.csv")
            database.execute(
                f"COPY (FROM read_csv({source}, all_varchar = true)) TO {sql_literal(path)} (FORMAT parquet)"
            )
    elif path.suffix != ".csv":
        path.write_bytes((path.parent / "fleet.csv").read_bytes())
    if not random.randrange(12):
        return replace_entry(path, outside, random)
    return mutate_file(
        path, random, apart_from=frozenset({"secret"})
    )  # the texts of a fleet are names, and are printed


def settings(material: Material, number: int) -> Case:
    """Mutate settings that have every key. They are the operator's, so they may name any address or program."""
    random, command_random = _sources("settings", number)
    material.sandbox.reset()
    folder = material.sandbox.folder
    material.write_settings(folder)
    path = folder / "audit.toml"
    path.write_text(FULL_SETTINGS + FULL_ACCOUNT.format(port=material.port, key=DEFAULT_ACCOUNT.access_key_id))
    entry = not random.randrange(12)
    what = material.sandbox.call(
        lambda: replace_entry(path, material.sandbox.outside, random) if entry else mutate_file(path, random)
    )
    arguments = settings_commands(folder, command_random, path.name)
    return Case(what, arguments, (folder,), ports=frozenset({material.port}), refuse_quietly=True)


def rules(material: Material, number: int) -> Case:
    """Mutate rules that have every condition."""
    random, command_random = _sources("rules", number)
    audits = material.fill(command_random.choice(sorted(TEMPLATES)))
    path = material.sandbox.folder / "rules.toml"
    entry = not random.randrange(12)
    what = material.sandbox.call(
        lambda: replace_entry(path, material.sandbox.outside, random) if entry else mutate_file(path, random)
    )
    newest, *earlier = sorted(audits.glob("2*"), reverse=True)
    name = command_random.choice(("policy", "policy", "report", "metrics"))
    arguments = READING[name](Runs(material.sandbox.folder, newest, earlier[0], command_random))
    if name == "metrics":
        arguments += ("--rules", str(path))
    return Case(what, arguments)


def answers(material: Material, number: int) -> Case:
    """Mutate responses of the platform on their way, whatever the operation."""
    _, command_random = _sources("answers", number)
    material.fill(command_random.choice(("listed", "full")))
    proxy = partial(serve_mutated, material.port, number, material.sandbox.folder)
    arguments = answered_commands(material.sandbox.folder, command_random)
    changed = (material.sandbox.folder / "audits", *material.sandbox.folder.glob("*.toml"))
    return Case("responses", arguments, changed, ports=frozenset({material.port}), start=proxy)


def redis_values(material: Material, number: int) -> Case:
    """Mutate the value of a shared quota in Redis, or its type."""
    random, command_random = _sources("redis_values", number)
    folder, server = material.sandbox.folder, material.redis
    head = HEAD.replace('"none"', f'{{ redis = "{server.address}" }}')
    arguments = _shared_quota(material, head, command_random)
    if not (keys := server.keys("auditor:*")):
        material.sandbox.run(
            Case(
                "a valid quota",
                ("run", str(folder / "file.toml")),
                (folder,),
                ports=frozenset({material.port, server.port}),
            )
        )
        keys = server.keys("auditor:*")
        material.valid_values.update({key: server.get(key) for key in keys})
    what = _mutate_values(material, sorted(material.valid_values), random)
    return Case(what, arguments, (folder / "audits",), ports=frozenset({material.port, server.port}))


def _mutate_values(material: Material, keys: list[str], random: Random) -> str:
    done = []
    for key in keys:
        match random.randrange(8):
            case 0:
                kind = random.choice(("LPUSH", "SADD", "APPEND"))
                material.redis.run(f"DEL {key}")
                material.redis.run(f"{kind} {key} value")
                done.append(kind)
            case 1:
                value, what = (
                    random.randbytes(random.choice((0, 8, 16, 1_000, MAX_VALUE_SIZE, MAX_VALUE_SIZE + 1, 4 << 20))),
                    "random bytes",
                )
                material.redis.set(key, value)
                done.append(what)
            case _:
                value, what = mutate_quota(material.valid_values[key], random)
                material.redis.set(key, value)
                done.append(what)
    return ", ".join(done)


_FLOATS = (0.0, -1.0, 1.0, 1e-320, 1e15, 1e300, -1e300, float("inf"), float("-inf"), float("nan"), 2.0**53, 1e9)


def mutate_quota(content: bytes, random: Random) -> tuple[bytes, str]:
    """Return a shared quota with some of its numbers, or its bytes, changed: it consists of floats."""
    content = content.ljust(8, b"\0")  # a value that has expired is empty
    if not random.randrange(4):
        return mutate_bytes(content, random)
    changed, done = bytearray(content), []
    for _ in range(random.choice((1, 1, 2, 5, 50))):
        place = 8 * random.choice((random.randrange(len(content) // 8), random.randrange(min(40, len(content) // 8))))
        value = random.choice(_FLOATS)
        changed[place : place + 8] = struct.pack("<d", value)
        done.append(f"{value} at {place}")
    return bytes(changed), " ".join(done[:5])


def quota_files(material: Material, number: int) -> Case:
    """Mutate the file of a quota that processes share, or replace it by something else."""
    random, command_random = _sources("quota_files", number)
    folder = material.sandbox.folder
    shared = folder / "shared"
    arguments = _shared_quota(material, HEAD.replace('"none"', '{ directory = "shared" }'), command_random)
    shared.mkdir()
    if not material.valid_files:
        material.sandbox.run(
            Case("a valid quota", ("run", str(folder / "file.toml")), (folder,), ports=frozenset({material.port}))
        )
        material.valid_files.update({path.name: path.read_bytes() for path in shared.glob(f"*{FILE_SUFFIX}")})
        assert material.valid_files
    done = []
    for name, content in sorted(material.valid_files.items()):
        (shared / name).write_bytes(content)
        if not random.randrange(4):
            done.append(replace_entry(shared / name, material.sandbox.outside, random))
        else:
            changed, what = (
                mutate_quota(content, random) if random.randrange(3) else mutate_content(name, content, random)
            )
            (shared / name).write_bytes(changed)
            done.append(what)
    return Case(", ".join(done), arguments, (folder / "audits", shared), ports=frozenset({material.port}))


def _shared_quota(material: Material, head: str, random: Random) -> tuple[str, ...]:
    material.sandbox.reset()
    folder = material.sandbox.folder
    material.write_settings(folder, head=head)
    for name in ("file.toml", "listed.toml"):
        text = (folder / name).read_text().replace('"unlimited"', random.choice(("500", '"auto"')))
        (folder / name).write_text(text)
    commands = (
        ("run", str(folder / "file.toml"), "--for", "4s"),
        ("run", str(folder / "file.toml"), "--limit", "3", "--priority", "--for", "4s"),
        ("check", str(folder / "file.toml")),
    )
    return random.choice(commands)


KINDS: dict[str, Callable[[Material, int], Case]] = {
    "run_folders": run_folders, "fleets": fleets, "settings": settings, "rules": rules, "answers": answers, "redis_values": redis_values,
    "quota_files": quota_files,
}  # fmt: skip
