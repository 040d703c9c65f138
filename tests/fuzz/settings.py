"""The settings reader: a TOML file, whatever is in it."""

import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from auditor.config.loader import load_settings, settings_from
from auditor.errors import SettingsError

CONFIGS = Path(__file__).parents[2] / "configs"

SECRET = "s3cr3t-of-the-account"
"""Written out where no settings file should hold it; no message may quote it."""

MESSAGE = 10_000
"""Characters of a refusal at most, of a file of a few kilobytes."""

PIECES = [
    b"[[account]]\n", b"[account]\n", b"account = ", b"name = ", b"endpoint = ", b"access_key_id = ", b"access_key_secret = ",
    SECRET.encode(), b"{ env = ", b"{ file = ", b"{ command = [", b"proxy = ", b"fleet = ", b"products = ", b'"all"', b"include = { device_name = [", b"exclude = ", b"quotas = { QueryDevice = ",
    b"expected_modules = ", b"dialect = ", b'"alibaba"', b"region_id = ", b"per_second = ",
    b'"unlimited"', b"share = ", b"ca_file = ", b"max_failed = ", b'"0.1%"', b"at_once = ", b"timeout = ", b"page_size = ",
    b"inf", b"nan", b"-0.0", b"1e400", b"0x" + b"f" * 40, b"9" * 5000, b"1979-05-27T07:32:00Z", b"07:32:00", b"[" * 300, b"a." * 300,
    b'"""', b"'''", b'"', b"'", b"\\u0000", b"\\ud800", b"\\U00110000", b"\\e", b"\x00", b"\xff", b"\x1b[31m", b"\xe2\x80\xa8",
    b"\xef\xbb\xbf", b"\r", b"https://[", b"http://h:99999/", b"http://u:p@h/", b"#", b"= ", b"{", b"}", b"]", b"true",
]  # fmt: skip


def seeds() -> list[bytes]:
    """The example files, and files with a secret written out."""
    examples = [path.read_bytes() for path in sorted(CONFIGS.glob("*.toml"))]
    account = '[[account]]\nname = "eu"\nendpoint = "https://h/"\naccess_key_id = "LTAI"\naccess_key_secret = '
    leaks = (f'"{SECRET}"', f'["{SECRET}"]', f'{{ value = "{SECRET}" }}', f'{{ env = ["{SECRET}"] }}')
    return [*examples, *((account + leak + "\n").encode() for leak in leaks)]


def read(data: bytes) -> str:
    """What came of a file: ``settings``, or the documented error's name."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "audit.toml"
        path.write_bytes(data)
        try:
            loaded = load_settings(path)
        except SettingsError as error:
            _checked_refusal(str(error).removeprefix(f"{path}: "), data)
            return type(error).__name__
        assert settings_from(tomllib.loads(data.decode("utf-8-sig")), folder=path.parent) == loaded
    assert loaded.failures_allowed(100) >= 0
    names = [account.name for account in loaded.account]
    assert len(set(names)) == len(names) > 0
    assert all(name.isprintable() for name in names)
    assert all(account.rate is None or account.rate > 0 for account in loaded.account)
    return "settings"


def _checked_refusal(text: str, data: bytes) -> None:
    assert text.isprintable(), text
    assert len(text) <= MESSAGE
    if _is_written_out(data):
        assert SECRET not in text


def _is_written_out(data: bytes) -> bool:
    """Whether the secret stands as one, and nowhere else, such as in a name that may be quoted."""
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
    """The text in a value at any depth, without the keys that lead to it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
