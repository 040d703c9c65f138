"""Answers that look well and are wrong, for tests of a client that must not believe every page."""

from typing import Literal

from auditor.simulator.answers import Document

Lie = Literal[
    "repeats_page_1",
    "repeats_page_1_echo_1",
    "empty_page_early",
    "data_null",
    "data_hollow",
    "data_array",
    "data_hollow_with_total",
    "no_total",
    "page_count_1",
    "total_grows",
    "other_device",
]
"""What an answer gets wrong:

- ``repeats_page_1``: every page holds page 1's modules, under the number asked for; ``…_echo_1``: under the number 1.
- ``empty_page_early``: pages from 2 on are empty while the total says more.
- ``data_null``, ``data_hollow``: ``data`` is null or ``{}``, and total and pageCount are 0.
- ``data_hollow_with_total``: ``data`` is ``{}`` while the total is 3 on 1 page.
- ``data_array``: ``data`` is the bare array; everything else is right.
- ``no_total``: the total is left out. ``page_count_1``: pageCount is 1 whatever the total.
- ``total_grows``: page 1 tells the truth, each page after it one module more.
- ``other_device``: the entries carry another device's name and id.
"""


def page_shown(lie: Lie | None, asked: int) -> int:
    """The page whose modules are shown when page ``asked`` is asked for."""
    return 1 if lie in {"repeats_page_1", "repeats_page_1_echo_1"} else asked


def total_shown(lie: Lie | None, total: int, page: int) -> int:
    """The total that page ``page`` tells when ``total`` is the truth."""
    match lie:
        case "data_null" | "data_hollow":
            return 0
        case "data_hollow_with_total":
            return 3
        case "total_grows":
            return total + page - 1
        case _:
            return total


def bend(lie: Lie, document: Document, entries: list[dict[str, str]], page: int) -> None:
    """Makes the rest of a true answer to page ``page`` wrong, in place; ``entries`` are the modules in it."""
    match lie:
        case "repeats_page_1_echo_1":
            document["currentPage"] = 1
        case "empty_page_early" if page > 1:
            entries.clear()
        case "data_null":
            document["data"] = None
        case "data_hollow" | "data_hollow_with_total":
            document["data"] = {}
        case "data_array":
            document["data"] = entries
        case "no_total":
            del document["total"]
        case "page_count_1":
            document["pageCount"] = 1
        case "other_device":
            for entry in entries:
                entry["deviceName"] = "somebody-else"
                entry["iotId"] = entry["iotId"][::-1]
        case _:
            pass
