"""Statements of QueryDeviceBySQL. Pure.

Source: Alibaba's page on the operation. It documents no way to escape a quote, so a text with one is refused.
"""

from auditor.client.operations import MAX_SQL_LENGTH, QUERY_DEVICE_BY_SQL
from auditor.errors import UsageError


def page_statement(
    product_key: str, *, after: str | None = None, at: str | None = None, prefix: str = "", name: str | None = None
) -> str:
    """Return the statement of one page of a product's devices, the oldest first.

    Args:
        product_key: the product.
        after: ``gmt_create`` as the platform wrote it; the devices were created later.
        at: the devices were created at this time.
        prefix: the names of the devices begin with it.
        name: the device has this name.
    """
    conditions = [_equals("product_key", product_key)]
    if after is not None:
        conditions.append(f"gmt_create > {quote(after)}")
    if at is not None:
        conditions.append(_equals("gmt_create", at))
    if prefix:
        conditions.append(f"name LIKE {quote(prefix + '%')}")
    if name is not None:
        conditions.append(_equals("name", name))
    limit = f"ORDER BY gmt_create LIMIT 0, {QUERY_DEVICE_BY_SQL.page_size}"
    return _checked(f"SELECT * FROM device WHERE {' AND '.join(conditions)} {limit}")


def count_statement(
    *,
    product_key: str | None = None,
    module: str | None = None,
    version: str | None = None,
    version_prefix: str = "",
    at: str | None = None,
    prefix: str = "",
) -> str:
    """Return the statement that counts devices, by at least one of these conditions."""
    named = (
        ("product_key", product_key), ("ota_module.name", module), ("ota_module.version", version), ("gmt_create", at),
    )  # fmt: skip
    conditions = [_equals(field, text) for field, text in named if text is not None]
    for field, beginning in (("ota_module.version", version_prefix), ("name", prefix)):
        if beginning:
            conditions.append(f"{field} LIKE {quote(beginning + '%')}")
    return _checked(f"SELECT count(*) FROM device WHERE {' AND '.join(conditions)}")


def quote(text: str) -> str:
    """Return a text as a value of a statement; raise UsageError if it cannot be one."""
    if not text.isprintable() or '"' in text or "\\" in text:
        raise UsageError(f"{text!r}: quotes, backslashes and control characters cannot be searched for")
    return f'"{text}"'


def _equals(field: str, text: str) -> str:
    return f"{field} = {quote(text)}"


def _checked(statement: str) -> str:
    if len(statement) > MAX_SQL_LENGTH:
        raise UsageError(f"the search would have {len(statement)} characters, and the platform allows {MAX_SQL_LENGTH}")
    return statement
