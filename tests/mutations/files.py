"""A file replaced by something else, and mutations of the formats of files."""

import contextlib
import gzip
import io
import os
import shutil
import socket
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import duckdb

from auditor.storage.database import sql_identifier, sql_literal
from tests.mutations.documents import (
    HOSTILE_TEXTS,
    dump_json,
    dump_toml,
    hostile_value,
    mutate_bytes,
    mutate_document,
    parse_json,
    parse_toml,
)
from tests.other_user import OTHER_USER

MAX_ROWS = 5_000_000
"""Rows of a mutated Parquet file: rows that are multiplied twice would never be written."""

MAX_PARSED_BYTES = 32 << 20
"""Size up to which a content is mutated by its format."""


def mutate_file(path: Path, random: Random, *, apart_from: frozenset[str] = frozenset()) -> str:
    """Mutate the content of a file by its format; return what was done. A missing file is created.

    It may get the content of another file of its folder, but not of those ``apart_from``.
    """
    content = path.read_bytes() if path.is_file() else b""
    files = [each for each in sorted(path.parent.iterdir()) if each.is_file() and each != path]
    others = {each.name: each.read_bytes() for each in files if each.name not in apart_from}
    changed, what = mutate_content(path.name, content, random, others)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(changed)
    return f"{path.name}: {what}"


def mutate_content(
    name: str, content: bytes, random: Random, others: Mapping[str, bytes] | None = None
) -> tuple[bytes, str]:
    """Return the content of a file with a few mutations of its format, or of its bytes; and what was done."""
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        mutate = next((each for suffix, each in _FORMATS.items() if name.endswith(suffix)), None)
        what = None
        if len(content) > MAX_PARSED_BYTES:  # made by a mutation before; its lines or values would not fit into memory
            mutate = None
        if mutate is not None and random.randrange(12 if name.endswith(".toml") else 4):
            with contextlib.suppress(
                ValueError, RecursionError, duckdb.Error, OSError, EOFError, zipfile.BadZipFile, IndexError, zlib.error
            ):
                content, what = mutate(content, random)
        if what is None:
            content, what = mutate_bytes(content, random, others=others)
        done.append(what)
    return content, ", ".join(done)


def _times(times: int, content: bytes) -> int:
    """Return how often to repeat a content: the wanted times, or as often as fits into 256 MB."""
    return max(1, min(times, (256 << 20) // max(1, len(content))))


def _mutate_json(content: bytes, random: Random) -> tuple[bytes, str]:
    document = parse_json(content)
    what = mutate_document(document, random)
    return dump_json(document), what


def _mutate_toml(content: bytes, random: Random) -> tuple[bytes, str]:
    document = parse_toml(content)
    what = mutate_document(document, random, toml=True)
    return dump_toml(document), what


def _mutate_lines(content: bytes, random: Random) -> tuple[bytes, str]:
    lines = content.splitlines(keepends=True)
    index = random.randrange(len(lines))
    match random.randrange(9):
        case 0 | 1 | 2 | 3:
            lines[index], what = _mutate_json(lines[index], random)
            lines[index] += b"\n"
            return b"".join(lines), f"line {index}: {what}"
        case 4:
            return b"".join(lines[:index] + lines[index + 1 :]), f"line {index} removed"
        case 5:
            return b"".join(
                lines[:index] + [lines[index]] * _times(random.choice((2, 3, 20_000)), lines[index]) + lines[index:]
            ), f"line {index} doubled"
        case 6:
            return b"".join(reversed(lines)), "lines reversed"
        case 7:
            size = random.choice((10_000, 999_000, 1_100_000, 5_000_000))
            lines[index] = (
                random.choice(
                    (
                        b"[" * size,
                        b"9" * size,
                        lines[index].strip() + b" " * size,
                        b'{"account":"' + b"x" * size + b'"}',
                    )
                )
                + b"\n"
            )
            return b"".join(lines), f"line {index} of {size} bytes"
    lines.insert(
        index,
        random.choice((dump_json(hostile_value(random, toml=False)), b"\xff\xfe", b"\0" * 100, b"\r", b"{}")) + b"\n",
    )
    return b"".join(lines), f"line {index} inserted"


def _mutate_table(content: bytes, random: Random) -> tuple[bytes, str]:
    """Mutate a text of rows and cells, by line."""
    rows = [line.split(b",") for line in content.split(b"\n")]
    index = random.choice((0, random.randrange(len(rows))))
    row = rows[index]
    place = random.randrange(len(row))
    match random.randrange(7):
        case 0 | 1:
            row[place] = random.choice((*HOSTILE_TEXTS, '"', '""', '"a\nb"', '"' + "x" * 200_000)).encode(
                "utf-8", "surrogatepass"
            )
        case 2:
            row.insert(place, row[place])
        case 3:
            del row[place]
        case 4:
            rows.insert(index, rows[random.randrange(len(rows))])
        case 5:
            del rows[index]
        case 6:
            rows[index] = row * _times(random.choice((2, 1_000, 50_000)), b",".join(row))
    return b"\n".join(map(b",".join, rows)), f"cell {place} of row {index}"


def _mutate_gzip(content: bytes, random: Random) -> tuple[bytes, str]:
    inner, what = mutate_content("inner.csv", gzip.decompress(content), random)
    if not random.randrange(8):
        return gzip.compress(inner) + gzip.compress(
            random.choice((b"\0", b"\n", b"k1,d1\n", b"x")) * (64 << 20), 1
        ), "a gzip bomb"
    return gzip.compress(inner), f"inside: {what}"


def _mutate_zip(content: bytes, random: Random) -> tuple[bytes, str]:
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            changed = b"\0" * (64 << 20) if not random.randrange(4) else mutate_bytes(old.read(name), random)[0]
            new.writestr(random.choice((name, "../../outside/precious")), changed)
    return bomb.getvalue(), "a zip bomb"


_TYPES = (
    "VARCHAR",
    "BLOB",
    "INTEGER",
    "BIGINT",
    "DOUBLE",
    "BOOLEAN",
    "DATE",
    "TIMESTAMP",
    "INTERVAL",
    "UUID",
    "DECIMAL(9, 2)",
    "VARCHAR[]",
    "STRUCT(a VARCHAR)",
)

_VALUES = (
    "NULL", "''", "repeat('x', 10000)", "chr(27) || '[31m'", "chr(0)", "'=1+1'", "-1", "0", "9223372036854775807", "'nan'::DOUBLE",
    "'infinity'::DOUBLE", "'infinity'::TIMESTAMP", "'294247-01-10 04:00:54'::TIMESTAMP", "'0001-01-01 (BC)'::TIMESTAMP", "'infinity'::DATE", "[]",
    "[NULL]", "true", "'ok'", "'pending'", "'failed'", "1e308", "'\\xFF\\x00'::BLOB", "[{'module_name': NULL, 'module_version': NULL}]",
)  # fmt: skip


def _mutate_parquet(content: bytes, random: Random) -> tuple[bytes, str]:
    folder = Path(os.environ["TMPDIR"])
    source, target = folder / "mutated.old", folder / "mutated.new"
    source.write_bytes(content)
    try:
        with duckdb.connect(config={"threads": 1}) as database:
            read = f"read_parquet({sql_literal(source)})"
            columns = [name for name, *_ in database.execute(f"DESCRIBE FROM {read}").fetchall()]
            query, what = _parquet_query(read, columns, random)
            compression = random.choice(("zstd", "uncompressed", "snappy", "gzip"))
            database.execute(f"COPY ({query}) TO {sql_literal(target)} (FORMAT parquet, COMPRESSION {compression})")
        return target.read_bytes(), f"{what} ({compression})"
    finally:
        source.unlink()
        target.unlink(missing_ok=True)


def _parquet_query(read: str, columns: list[str], random: Random) -> tuple[str, str]:
    name = random.choice(columns)
    column, other = sql_identifier(name), sql_identifier(random.choice(columns))
    value, kind = random.choice(_VALUES), random.choice(_TYPES)
    some = random.choice(("true", "random() < 0.5"))
    new_name = random.choice(
        (*(text for text in HOSTILE_TEXTS if text and "\0" not in text), name.upper(), "ordinal", "share")
    )
    queries = (
        (f"SELECT * REPLACE (try_cast({column} AS {kind}) AS {column}) FROM {read}", f"{name} as {kind}"),
        (f"SELECT * REPLACE ({value} AS {column}) FROM {read}", f"{name} = {value}"),
        (
            f"SELECT * REPLACE (CASE WHEN {some} THEN {value} ELSE {column} END AS {column}) FROM {read}",
            f"some {name} = {value}",
        ),
        (f"SELECT * EXCLUDE ({column}) FROM {read}", f"without {name}"),
        (f"SELECT *, {column} AS {sql_identifier(new_name)} FROM {read}", f"{name} also as {new_name[:20]!r}"),
        (f"SELECT * RENAME ({column} AS {sql_identifier(new_name)}) FROM {read}", f"{name} renamed {new_name[:20]!r}"),
        (f"SELECT * REPLACE ({other} AS {column}) FROM {read}", f"{name} = {other}"),
        (f"FROM {read} LIMIT {random.choice((0, 1, 5))}", "fewer rows"),
        (f"SELECT t.* FROM {read} t, range({random.choice((2, 3, 1_000, 200_000))}) LIMIT {MAX_ROWS}", "more rows"),
        (f"FROM {read} ORDER BY {column} DESC", f"ordered by {name}"),
    )
    return random.choice(queries)


_FORMATS: dict[str, Callable[[bytes, Random], tuple[bytes, str]]] = {
    ".json": _mutate_json,
    ".jsonl": _mutate_lines,
    ".toml": _mutate_toml,
    ".csv": _mutate_table,
    ".txt": _mutate_table,
    ".tsv": _mutate_table,
    ".gz": _mutate_gzip,
    ".parquet": _mutate_parquet,
    ".xlsx": _mutate_zip,
}


def replace_entry(path: Path, outside: Path, random: Random) -> str:
    """Replace a file by something that is none, or is not its own, or never ends; return what was done."""
    action = random.choice(ENTRIES)
    content = path.read_bytes() if path.is_file() else b""
    if action not in _KEEPING:
        if path.is_dir() and not path.is_symlink():  # the journals of released firmware
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
    else:
        path.touch()
    action(path, outside, content)
    return f"{path.name}: {action.__name__.strip('_')}"


def _nothing(path: Path, outside: Path, content: bytes) -> None:
    """Leave the file away."""


def _link(path: Path, outside: Path, content: bytes) -> None:
    path.symlink_to(outside / "precious")


def _link_to_itself(path: Path, outside: Path, content: bytes) -> None:
    path.symlink_to(path)


def _link_to_nothing(path: Path, outside: Path, content: bytes) -> None:
    path.symlink_to(outside / "planted")


def _link_to_folder(path: Path, outside: Path, content: bytes) -> None:
    path.symlink_to(outside / "folder")


def _link_to_zeros(path: Path, outside: Path, content: bytes) -> None:
    path.symlink_to("/dev/zero")


def _link_to_copy(path: Path, outside: Path, content: bytes) -> None:
    (outside / "copy").write_bytes(content)
    path.symlink_to(outside / "copy")


def _second_name(path: Path, outside: Path, content: bytes) -> None:
    path.parent.chmod(0o757)  # where others may have made it
    path.hardlink_to(outside / "precious")


def _pipe(path: Path, outside: Path, content: bytes) -> None:
    os.mkfifo(path)


def _folder(path: Path, outside: Path, content: bytes) -> None:
    path.mkdir()
    (path / "file").touch()


def _socket(path: Path, outside: Path, content: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(path.parent):
        listener.bind(path.name)


def _device(path: Path, outside: Path, content: bytes) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)) if os.geteuid() == 0 else path.symlink_to("/dev/zero")


def _another_owner(path: Path, outside: Path, content: bytes) -> None:
    if os.geteuid() == 0:
        os.chown(path, OTHER_USER, OTHER_USER)


def _writable_by_all(path: Path, outside: Path, content: bytes) -> None:
    path.chmod(0o777)


def _unreadable(path: Path, outside: Path, content: bytes) -> None:
    path.chmod(0)


def _holes(path: Path, outside: Path, content: bytes) -> None:
    os.truncate(path, 1 << 40)


def _holes_in_front(path: Path, outside: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.seek(200 << 20)
        file.write(content)


def _zeros(path: Path, outside: Path, content: bytes) -> None:
    path.write_bytes(content + bytes(40 << 20))


_KEEPING = frozenset({_another_owner, _writable_by_all, _unreadable, _holes})

ENTRIES: tuple[Callable[[Path, Path, bytes], None], ...] = (
    _nothing, _link, _link_to_itself, _link_to_nothing, _link_to_folder, _link_to_zeros, _link_to_copy, _second_name, _pipe, _folder, _socket, _device,
    _another_owner, _writable_by_all, _unreadable, _holes, _holes_in_front, _zeros,
)  # fmt: skip
