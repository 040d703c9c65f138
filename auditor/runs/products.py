"""``products.jsonl``: the products of a run's fleets and the modules that they define."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import orjson

from auditor.errors import RunFolderError
from auditor.runs.folder import PRODUCTS
from auditor.storage.files import read_contained, replace_file, translate_os_errors
from auditor.storage.json_types import Count

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
    """The products of a run folder, with changes to write. Raises RunFolderError if its file cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PRODUCTS
        self._rows = {(row.account, row.product_key): row for row in read_products(self._path)}
        self._changed = False

    def replace_products(self, account: str, products: Iterable[ProductInfo]) -> None:
        """Replace the products of an account; products that are still there keep their modules."""
        before = {key: self._rows.pop(key) for key in list(self._rows) if key[0] == account}
        for row in products:
            key = (account, row.product_key)
            self._rows[key] = replace(row, modules=before[key].modules) if key in before else row
        self._changed = True

    def set_modules(self, account: str, product_key: str, modules: tuple[str, ...]) -> None:
        """Set the modules that a product defines."""
        key = (account, product_key)
        self._rows[key] = replace(self._rows[key], modules=modules)
        self._changed = True

    def products_without_modules(self, account: str) -> list[str]:
        """Return the products of an account's fleet whose modules are unknown."""
        rows = (row for row in self._rows.values() if row.account == account)
        return [row.product_key for row in rows if row.modules is None and row.devices]

    def write(self) -> None:
        """Replace the file if something changed; raise RunNotWritableError if that fails."""
        if self._changed:
            self._changed = False
            lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in list(self._rows.values()))
            replace_file(self._path, b"".join(lines))


def read_products(path: Path) -> list[ProductInfo]:
    """Read the products of a run; none if the file does not exist. Raise RunFolderError if it cannot be read."""
    try:
        with translate_os_errors(f"{path}: cannot be read", RunFolderError):
            found = os.path.lexists(path)
            lines = read_contained(path.parent, path.name, max_bytes=MAX_PRODUCTS_BYTES).splitlines() if found else []
        return [msgspec.convert(orjson.loads(line), ProductInfo) for line in lines]
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
