"""Which versions of a run break a policy, for a plan that asks their devices first; ``policy`` gives the verdict."""

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from auditor.database import READING_MEMORY, READING_THREADS, open_database
from auditor.inventory.folder import DEVICES, MODULES
from auditor.inventory.judging import define_combos, define_scopes
from auditor.inventory.ranks import VIOLATED
from auditor.inventory.rule import Rules
from auditor.inventory.tables import reading
from auditor.inventory.verdicts import define_verdicts


def violating_versions(folder: Path, rules: Rules, now: datetime) -> list[tuple[str, str | None, str, str]]:
    """The versions in a sealed run that break a rule: account, product_key, module_name and module_version.

    Rules that are about no version, and exceptions for single devices, are passed over: this tells where to look first,
    and is no verdict.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    with TemporaryDirectory(prefix="auditor-policy-") as temporary:
        work = Path(temporary)
        database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
        try:
            with reading(folder):
                define_combos(database, folder / DEVICES, folder / MODULES)
                # Of no device of a product it is known here that it was not seen.
                asked = "SELECT -1::BIGINT AS line, product, 'ok' AS status, false AS undrawn FROM products"
                database.execute(f"CREATE TABLE asked AS {asked}")
                database.execute("CREATE TABLE reported (line BIGINT, row BIGINT, combo INTEGER)")
                define_scopes(database, rules.rules, now)
                define_verdicts(database, rules.rules, now, work)
                return database.execute(
                    "SELECT DISTINCT account, product_key, module_name, module_version FROM picked "
                    f"JOIN combos USING (combo) JOIN products USING (product) WHERE rank = {VIOLATED} ORDER BY ALL"
                ).fetchall()
        finally:
            database.close()
