"""Filters on the devices of a run: the same conditions in every command that reads runs.

A value that no device of the run has is probably a typing error. It raises a UsageError that names the closest one. A
version that no device runs is an answer, so it is not checked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from auditor.errors import RunFolderError, UsageError
from auditor.models import DeviceState, Source, UpdateState
from auditor.runs.attributes import attribute_names, attribute_sql, has_attribute
from auditor.runs.manifest import MANIFEST
from auditor.storage.database import Database, scalar, sql_identifier, sql_literal, sql_literals
from auditor.storage.tables import ResultTable
from auditor.text.formatting import parse_manifest_time, safe

WHERE_COLUMNS = ("device_status",)
"""Columns of devices that ``where`` accepts besides attributes."""

MIN_SIMILARITY = 0.8
"""Similarity (Jaro and Winkler, 0 to 1) from which a value is suggested in place of another one."""

MAX_LISTED, MAX_COMPARED = 6, 100
"""Values that an error lists if none is similar, and characters of a value that are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFilter:
    """Conditions on devices; a device matches if it meets every condition that is given.

    Attributes:
        account: the account must have one of these names.
        product: its product key, or the name of its product.
        module: name of a module that the device reports, regardless of case.
        version: exact version of the module.
        below, above: the module's version is older, or newer, than this; ``compare_versions`` orders them.
        where: conditions on attributes: ``site=a1`` or ``site!=a1``; ``site=`` if it has none.
        online: whether it was online when its state was last read.
        seen_within, not_seen_for: seconds before the start of the run in which it was online, or was not.
        status: state of the device in the run.
        source: where its result comes from.
        name: its device_name or iot_id.
        limit: maximum number of rows.
        sort: column by which rows are ordered; descending with ``-`` in front.
        update: state of the module's update to the released version; ``behind``: any state but ``current``.
        missing: return modules that the product defines and the device never reported, instead of reported ones.
    """

    account: tuple[str, ...] = ()
    product: str | None = None
    module: str | None = None
    version: str | None = None
    below: str | None = None
    above: str | None = None
    where: tuple[str, ...] = ()
    online: bool | None = None
    seen_within: float | None = None
    not_seen_for: float | None = None
    status: DeviceState | None = None
    source: Source | None = None
    name: str | None = None
    limit: int | None = None
    sort: str | None = None
    update: UpdateState | Literal["behind"] | None = None
    missing: bool = False

    def __post_init__(self) -> None:
        """Refuse conditions without a meaning; raise UsageError."""
        if self.module is None and (self.below is not None or self.above is not None):
            raise UsageError("below and above need a module: versions are ordered within one module")
        named = (
            ("status", self.status, get_args(DeviceState)),
            ("source", self.source, get_args(Source)),
            ("update", self.update, (*get_args(UpdateState), "behind")),
        )
        for name, value, values in named:
            if value is not None and value not in values:
                raise UsageError(f"{name}: {value!r} is not one of {', '.join(values)}")
        if self.missing and self.update is not None:
            raise UsageError("a missing module has no update: leave out update")
        if self.missing and not self.version is self.below is self.above is None:
            raise UsageError("a missing module has no version: leave out version, below and above")
        if self.limit is not None and self.limit < 1:
            raise UsageError("limit: give a number of rows from 1 up")
        for condition in self.where:
            if "=" not in condition:
                raise UsageError(f"where {condition!r}: give a condition such as site=a1 or site!=a1")

    @property
    def names_versions(self) -> bool:
        """Whether it selects modules, so that a device without one does not match."""
        return self.module is not None or self.version is not None or self.update is not None


@dataclass(frozen=True, slots=True)
class WhereCondition:
    """A condition on an attribute, or one of ``WHERE_COLUMNS``: it has a text (``""``: none), or another one."""

    name: str
    text: str
    equal: bool

    @property
    def sql(self) -> str:
        """The SQL of the condition on a row of devices."""
        value = self.name if self.name in WHERE_COLUMNS else attribute_sql(self.name)
        return f"coalesce({value}, '') {'=' if self.equal else '<>'} {sql_literal(self.text)}"


def define_selected(database: Database, criteria: DeviceFilter, started_at: str) -> list[str]:
    """Define the view ``selected``: the rows of the view ``devices`` that meet the filter's conditions on devices.

    Return the names of attributes in its conditions.

    Conditions on modules and versions, the limit and the order are left to the caller. The table ``products`` exists,
    see ``define_products``. ``started_at`` is the start of the run in ISO 8601.

    Raises:
        UsageError: no device of the run has a value, or the run does not have what a condition needs.
    """
    where = parse_where(database, criteria.where)
    conditions = [*_conditions(database, criteria, started_at), *(each.sql for each in where)]
    database.execute(f"CREATE VIEW selected AS FROM devices WHERE {' AND '.join(conditions) or 'true'}")
    return list(dict.fromkeys(each.name for each in where if each.name not in WHERE_COLUMNS))


def _conditions(database: Database, criteria: DeviceFilter, started_at: str) -> Iterator[str]:
    if criteria.account:
        for account in criteria.account:
            problem = f"no device is of the account {account}"
            require_value(database, "SELECT account FROM devices", account, problem, ignore_case=False)
        yield f"account IN ({sql_literals(criteria.account)})"
    if criteria.product is not None:
        yield f"product_key IN ({sql_literals(product_keys(database, criteria.product))})"
    for column, value in (("status", criteria.status), ("source", criteria.source)):
        if value is not None:
            yield f"{column} = {sql_literal(value)}"
    if criteria.name is not None:
        yield f"(device_name = {sql_literal(criteria.name)} OR iot_id = {sql_literal(criteria.name)})"
    yield from _connection_conditions(database, criteria, started_at)


def _connection_conditions(database: Database, criteria: DeviceFilter, started_at: str) -> Iterator[str]:
    if criteria.online is not None:
        _require_states(database, "device_status", "--online" if criteria.online else "--no-online")
        yield f"device_status {'=' if criteria.online else '<>'} 'ONLINE'"
    start = parse_manifest_time(started_at)
    for flag, seconds in (("--seen-within", criteria.seen_within), ("--not-seen-for", criteria.not_seen_for)):
        if seconds is not None:
            _require_states(database, "last_online_at", flag)
            if start is None:
                raise RunFolderError(f"{flag}: started_at in {MANIFEST} is no time: {safe(started_at)}")
            seen = (
                "coalesce(device_status = 'ONLINE', false) OR "
                f"last_online_at >= TIMESTAMP '{start.replace(tzinfo=None)}' - INTERVAL '{seconds:.3f} seconds'"
            )
            # A device without a time of its last connection is in neither.
            yield f"({seen})" if flag == "--seen-within" else f"NOT ({seen})"


def _require_states(database: Database, column: str, flag: str) -> None:
    if not scalar(database, f"SELECT count(*) FROM (SELECT 1 FROM devices WHERE {column} IS NOT NULL LIMIT 1)"):
        source = "runs of a listed fleet and incremental runs" if column == "device_status" else "incremental runs"
        raise UsageError(f"{flag}: the run has no {column} of its devices; {source} (--since) have it")


def product_keys(database: Database, product: str) -> list[str]:
    """Return the keys of the products that have this key or name; raise UsageError if no device is of one."""
    named = "SELECT product_key, product_name FROM products UNION SELECT product_key, "
    named += f"{attribute_sql('product_name')} FROM devices WHERE product_key IS NOT NULL"
    query = f"SELECT DISTINCT product_key FROM ({named}) WHERE product_key = $1 OR product_name = $1 ORDER BY ALL"
    if found := database.execute(query, [product]).fetchall():
        return [str(key) for (key,) in found]
    raise _unknown(database, f"SELECT unnest([product_key, product_name]) FROM ({named})", product,
                   f"no device is of the product {product}")  # fmt: skip


def define_product_names(database: Database) -> None:
    """Define ``product_names``: account, product_key and product_name, from ``products`` and the devices."""
    database.execute(
        "CREATE TABLE product_names AS SELECT account, product_key, any_value(product_name) AS product_name FROM ("
        f"SELECT account, product_key, product_name FROM products UNION ALL SELECT DISTINCT account, product_key, "
        f"{attribute_sql('product_name')} FROM devices) WHERE product_key IS NOT NULL GROUP BY ALL"
    )


def require_module(database: Database, module: str) -> None:
    """Raise UsageError if neither a device reports a module nor a product defines it."""
    names = "SELECT module_name FROM modules UNION ALL SELECT unnest(modules) FROM products"
    require_value(database, names, module, f"no device reports the module {module}")


def parse_where(database: Database, conditions: tuple[str, ...]) -> list[WhereCondition]:
    """Return conditions such as ``site=a1`` on attributes of the view ``devices``.

    A name may contain ``=``: it is the shortest one in front of a ``=`` that a device has.

    Raises:
        UsageError: no device has the attribute, or has it with that text.
    """
    if not conditions:
        return []
    parsed = [_parse_condition(database, condition) for condition in conditions]
    for each in parsed:
        if each.text:
            value = each.name if each.name in WHERE_COLUMNS else attribute_sql(each.name)
            problem = f"no device has {each.name}={each.text}"
            require_value(database, f"SELECT {value} FROM devices", each.text, problem, ignore_case=False)
    return parsed


def _parse_condition(database: Database, condition: str) -> WhereCondition:
    first: str | None = None
    for at, character in enumerate(condition):
        if character != "=":
            continue
        equal = not condition[:at].endswith("!")
        name = (condition[:at] if equal else condition[: at - 1]).strip()
        if name in WHERE_COLUMNS or has_attribute(database, name):
            return WhereCondition(name, condition[at + 1 :], equal)
        first = name if first is None else first
    raise unknown_name(database, "where", first or "", [*attribute_names(database), *WHERE_COLUMNS])


def unknown_name(database: Database, option: str, name: str, names: list[str]) -> UsageError:
    """Return the error of an attribute or a column that does not exist, with the closest of ``names`` or the first.

    ``option`` names what was given.
    """
    values = f"SELECT unnest([{sql_literals(names)}]::VARCHAR[])"
    problem = f"{option}: no device has {name or 'an attribute without a name'}"
    return _unknown(database, values, name, problem, names[:MAX_LISTED])


def require_value(database: Database, values: str, value: str, problem: str, *, ignore_case: bool = True) -> None:
    """Raise UsageError if a query does not give a value, with the ``problem`` and the closest one that it gives.

    A query without any value is no reason: a run in progress has no modules yet.
    """
    same = "lower(value) = lower($1)" if ignore_case else "value = $1"
    # Reading ends with the first row: of many runs, most need not be read.
    given = f"SELECT 1 FROM (SELECT #1 AS value FROM ({values})) WHERE"
    if database.execute(f"{given} {same} LIMIT 1", [value]).fetchone() is not None:
        return
    if database.execute(f"{given} value IS NOT NULL LIMIT 1").fetchone() is not None:
        raise _unknown(database, values, value, problem)


def _unknown(
    database: Database, values: str, value: str, problem: str, listed: Sequence[str] | None = None
) -> UsageError:
    """Return the error of a value that does not exist, with the closest one that does.

    If none is close, the error has those ``listed``; None: the closest ones.
    """
    one, other = (f"lower(left({text}, {MAX_COMPARED}))" for text in ("value", "$1"))
    query = (
        f"SELECT value, jaro_winkler_similarity({one}, {other}) AS similarity "
        f"FROM (SELECT DISTINCT #1 AS value FROM ({values}) WHERE #1 <> '') "
        f"ORDER BY similarity DESC, value LIMIT {MAX_LISTED}"
    )
    found = database.execute(query, [value]).fetchall()
    close = [text for text, similarity in found if similarity >= MIN_SIMILARITY]
    if close:
        advice = f"; did you mean {safe(close[0])}?"
    else:
        listed = [text for text, _ in found] if listed is None else listed
        advice = f"; there is {', '.join(map(safe, listed))}" if listed else ""
    return UsageError(f"{safe(problem)}{advice}")


def arrange(table: ResultTable, criteria: DeviceFilter) -> ResultTable:
    """Return a table in the order of the filter, with at most as many rows. Raise UsageError if it has no such column.

    Rows that are equal in that order are ordered by all columns.
    """
    sort = criteria.sort
    order = None if sort is None else lambda database, columns: parse_sort(database, sort, columns)
    return table.arranged(order, criteria.limit)


def parse_sort(database: Database, sort: str, columns: Sequence[str]) -> str:
    """Return the SQL of an order by a column, reversed by a ``-`` in front; raise UsageError."""
    name = sort.removeprefix("-")
    if name not in columns:
        raise unknown_name(database, "sort", name, list(columns))
    return f"{sql_identifier(name)} {'DESC' if sort.startswith('-') else 'ASC'} NULLS LAST"
