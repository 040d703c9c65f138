"""``products.jsonl``: the products of a run's fleets and the modules that they define, replaced whole."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import orjson

from auditor.errors import RunFolderError
from auditor.runs.folder import PRODUCTS
from auditor.storage.files import replace_file


@dataclass(frozen=True, slots=True)
class ProductFacts:
    """A line of ``products.jsonl``: a product of the fleet.

    Attributes:
        account, product_key, product_name, device_count: as the platform lists it; None where it told nothing.
        devices: of the fleet.
        modules: the OTA modules that it defines; None: not known.
    """

    account: str
    product_key: str
    product_name: str | None
    device_count: int | None
    devices: int
    modules: tuple[str, ...] | None = None


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


def read_products(path: Path) -> list[ProductFacts]:
    """The products that a run tells of; none if the file is not there.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [msgspec.convert(orjson.loads(line), ProductFacts) for line in lines]
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
