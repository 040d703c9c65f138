"""``products.jsonl``: the products of a run's fleets and the modules that they define, replaced whole."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import orjson

from auditor.inventory.folder import PRODUCTS, replace_file
from auditor.inventory.listings import ProductFacts, read_products


class ProductsFile:
    """The file of a run folder, and what is to be written into it.

    Raises:
        RunFolderError: it is there and cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / PRODUCTS
        self._rows = {(row.account, row.product_key): row for row in read_products(self._path)}
        self._changed = False

    def take(self, account: str, products: Iterable[ProductFacts]) -> None:
        """These are the account's products now; the modules of one that was known stay known."""
        before = {key: self._rows.pop(key) for key in list(self._rows) if key[0] == account}
        for row in products:
            key = (account, row.product_key)
            self._rows[key] = replace(row, modules=before[key].modules) if key in before else row
        self._changed = True

    def define(self, account: str, product_key: str, modules: tuple[str, ...]) -> None:
        """These are the modules that a product defines."""
        key = (account, product_key)
        self._rows[key] = replace(self._rows[key], modules=modules)
        self._changed = True

    def undefined(self, account: str) -> list[str]:
        """The products of an account's fleet of which it is not known which modules they define."""
        return [
            key for (name, key), row in self._rows.items() if name == account and row.modules is None and row.devices
        ]

    def write(self) -> None:
        """Replaces the file if there is news.

        Raises:
            RunNotWritableError: it cannot be written.
        """
        if self._changed:
            self._changed = False
            lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in list(self._rows.values()))
            replace_file(self._path, b"".join(lines))
