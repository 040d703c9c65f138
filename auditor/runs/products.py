"""``products.jsonl``: the products of a run's fleets and the modules that they define."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import orjson

from auditor.errors import RunFolderError
from auditor.runs.folder import PRODUCTS
from auditor.storage.append_only import AppendOnlyFile
from auditor.storage.files import read_contained, replace_file, translate_os_errors
from auditor.storage.json_types import Count

MODULES_JOURNAL = ".modules.jsonl"
"""Products whose modules were fetched since ``products.jsonl`` was written, a line each."""

MAX_PRODUCTS_BYTES = 256 << 20
"""Size up to which the file is read: some hundred thousand products."""


@dataclass(frozen=True, slots=True)
class ProductInfo:
    """A product of the fleet, as the platform reports it: a line of ``products.jsonl``. Strings come from the platform.

    Attributes:
        account: name of the account.
        product_key: the product.
        product_name: its name; null: not reported.
        device_count: number of devices that the platform reports; null: not reported.
        devices: its devices in the fleet.
        modules: OTA modules that it defines; null: unknown.
    """

    account: str
    product_key: str
    product_name: str | None
    device_count: Count | None
    devices: Count
    modules: tuple[str, ...] | None = None


class ProductsFile:
    """The products of a run folder, with changes to write. Raises RunFolderError if a file of them cannot be read.

    Methods that write raise RunNotWritableError if that fails.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._journal_path = folder / PRODUCTS, folder / MODULES_JOURNAL
        self._rows = {(row.account, row.product_key): row for row in read_products(self._path)}
        self._changed = os.path.lexists(self._journal_path)
        self._journal: AppendOnlyFile | None = None
        if self._changed:
            self._replay()

    def _replay(self) -> None:
        """Take the modules of products from the journal, which is cut at the first line that cannot be read."""
        with translate_os_errors(f"{self._journal_path}: cannot be read", RunFolderError):
            content = read_contained(self._path.parent, MODULES_JOURNAL, max_bytes=MAX_PRODUCTS_BYTES)
            kept = 0
            for line in content.splitlines(keepends=True):
                try:
                    row = msgspec.convert(orjson.loads(line), ProductInfo)
                except (orjson.JSONDecodeError, msgspec.ValidationError):
                    break
                key = (row.account, row.product_key)
                self._rows[key] = replace(self._rows.get(key, row), modules=row.modules)
                kept += len(line)
            os.truncate(self._journal_path, content.rfind(b"\n", 0, kept) + 1)

    def replace_products(self, account: str, products: Iterable[ProductInfo]) -> None:
        """Replace the products of an account; products that are still there keep their modules."""
        before = {key: self._rows.pop(key) for key in list(self._rows) if key[0] == account}
        for row in products:
            key = (account, row.product_key)
            self._rows[key] = replace(row, modules=before[key].modules) if key in before else row
        self._changed = True

    def set_modules(self, account: str, product_key: str, modules: tuple[str, ...]) -> None:
        """Set the modules that a product defines; once this returns, killing the process cannot lose them."""
        key = (account, product_key)
        self._rows[key] = replace(self._rows[key], modules=modules)
        self._changed = True
        if self._journal is None:
            self._journal = AppendOnlyFile(self._journal_path)
        self._journal.append(_encode_row(self._rows[key]))

    def products_without_modules(self, account: str) -> list[str]:
        """Return the products of an account's fleet whose modules are unknown."""
        rows = (row for row in self._rows.values() if row.account == account)
        return [row.product_key for row in rows if row.modules is None and row.devices]

    def write(self) -> None:
        """Replace the file if something changed."""
        if self._changed:
            self._changed = False
            replace_file(self._path, b"".join(map(_encode_row, list(self._rows.values()))))

    def finish(self) -> None:
        """Write what changed, and remove the journal."""
        self.write()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        with translate_os_errors(f"{self._journal_path}: cannot be removed"):
            self._journal_path.unlink(missing_ok=True)


def _encode_row(row: ProductInfo) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def read_products(path: Path) -> list[ProductInfo]:
    """Read the products of a run; none if the file does not exist. Raise RunFolderError if it cannot be read."""
    try:
        with translate_os_errors(f"{path}: cannot be read", RunFolderError):
            found = os.path.lexists(path)
            lines = read_contained(path.parent, path.name, max_bytes=MAX_PRODUCTS_BYTES).splitlines() if found else []
        return [msgspec.convert(orjson.loads(line), ProductInfo) for line in lines]
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
