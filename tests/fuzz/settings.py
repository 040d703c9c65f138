"""Fuzz target of the settings loader. Input: a TOML file."""

import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from auditor.config.loader import load_settings, parse_settings
from auditor.config.settings import count_allowed
from auditor.errors import SettingsError

CONFIGS = Path(__file__).parents[2] / "configs"

SECRET = "s3cr3t-of-the-account"
"""Used where a settings file must not contain a secret; no message may quote it."""

MAX_MESSAGE = 10_000
"""Characters of an error message for a file of a few kilobytes."""

FRAGMENTS = [
    b"[[account]]\n", b"[account]\n", b"account = ", b"name = ", b"endpoint = ", b"access_key_id = ", b"access_key_secret = ",
    SECRET.encode(), b"{ env = ", b"{ file = ", b"{ command = [", b"proxy = ", b"fleet = ", b"products = ", b'"all"', b"include = { device_name = [", b"exclude = ", b"quotas = { QueryDevice = ",
    b"fetch_product_modules = ", b"dialect = ", b'"alibaba"', b"region_id = ", b"calls_per_second = ",
    b'"unlimited"', b"quota_share = ", b"ca_file = ", b"max_failed = ", b'"0.1%"', b"concurrency = ", b"timeout = ", b"page_size = ",
    b"inf", b"nan", b"-0.0", b"1e400", b"0x" + b"f" * 40, b"9" * 5000, b"1979-05-27T07:32:00Z", b"07:32:00", b"[" * 300, b"a." * 300,
    b'"""', b"'''", b'"', b"'", b"\\u0000", b"\\ud800", b"\\U00110000", b"\\e", b"\x00", b"\xff", b"\x1b[31m", b"\xe2\x80\xa8",
    b"\xef\xbb\xbf", b"\r", b"https://[", b"http://h:99999/", b"http://u:p@h/", b"#", b"= ", b"{", b"}", b"]", b"true",
]  # fmt: skip


def seeds() -> list[bytes]:
    """Return the example files, and files that contain a secret."""
    examples = [path.read_bytes() for path in sorted(CONFIGS.glob("*.toml"))]
    account = '[[account]]\nname = "eu"\nendpoint = "https://h/"\naccess_key_id = "LTAI"\naccess_key_secret = '
    leaks = (f'"{SECRET}"', f'["{SECRET}"]', f'{{ value = "{SECRET}" }}', f'{{ env = ["{SECRET}"] }}')
    return [*examples, *((account + leak + "\n").encode() for leak in leaks)]


def read(data: bytes) -> str:
    """Return ``settings``, or the name of the documented error."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "audit.toml"
        path.write_bytes(data)
        try:
            loaded = load_settings(path)
        except SettingsError as error:
            for sentence in error.sentences:
                _check_message(sentence.removeprefix(f"{path}: "), data)
            return type(error).__name__
        assert parse_settings(tomllib.loads(data.decode("utf-8-sig")), folder=path.parent) == loaded
    assert count_allowed(loaded.max_failed, 100) >= 0
    names = [account.name for account in loaded.account]
    assert len(set(names)) == len(names) > 0
    assert all(name.isprintable() for name in names)
    assert all(account.rate is None or account.rate > 0 for account in loaded.account)
    return "settings"


def _check_message(text: str, data: bytes) -> None:
    assert text.isprintable(), text
    assert len(text) <= MAX_MESSAGE
    if _contains_secret(data):
        assert SECRET not in text


def _contains_secret(data: bytes) -> bool:
    """Return whether the secret is used as one, and nowhere else, such as in a name that may be quoted."""
    if data.count(SECRET.encode()) != 1:
        return False
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return True
    accounts = table.get("account")
    return any(
        SECRET in text
        for account in (accounts if isinstance(accounts, list) else [])
        if isinstance(account, dict)
        for text in _texts(account.get("access_key_secret"))
    )


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a value at any depth, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
