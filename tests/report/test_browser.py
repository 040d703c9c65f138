"""The page in a real browser: no requests, usable by keyboard, accessible, and names as text only."""

import contextlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from auditor.models import Outcome
from auditor.policy.loader import load_policy
from auditor.report.filters import format_age
from auditor.report.render import write_report
from auditor.runs.selection_info import Recheck, SelectionInfo
from tests.report.fleets import EVIL
from tests.runs.run_folders import build, carried_run, edit_manifest, failed, named, not_found, ok, sampled

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="NOT TESTED: the report in a browser, because there is no chromium (Debian: apt install chromium)",
    ),
]

RULES = """
[[rule]]
name = "no 1.0"
deny = ["1.0"]
[[rule]]
name = "ble is there"
severity = "warning"
module = "ble"
required = true
[[rule]]
name = "fresh"
max_age = "10h"
"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page with all sections: hostile names, all states, two partial runs, rules; before a browser runs."""
    directory = tmp_path_factory.mktemp("browser")
    fleet = [named(n, product=f"k{n % 3}") for n in range(60)]
    fleet += [named(90, product=EVIL, account=EVIL), structs.replace(named(91), device_name=EVIL), named(92), named(93)]
    for night in range(2):
        answers = [
            ok(device, ("ble", f"1.{min(n % 7, 2 + 3 * night)}"), (f"mod{n % 2}", f"2.{n % 9}"))
            for n, device in enumerate(fleet[:60])
        ]
        rest: list[Outcome] = [ok(fleet[60], (EVIL, EVIL)), failed(fleet[61], EVIL), not_found(fleet[62])]
        run = build(directory / "runs" / f"night{night}", fleet, [*answers, *rest]).folder
        began = f"2026-11-2{night}T02:00:00.000Z"
        edit_manifest(run, lambda manifest, began=began: replace(manifest, started_at=began))  # type: ignore[misc]
    (directory / "rules.toml").write_text(RULES)
    rules = load_policy(directory / "rules.toml")
    return write_report(run, directory / "page.html", policy=rules, now=datetime(2026, 11, 22, 9, tzinfo=UTC))


@pytest.fixture(scope="module")
def other_pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write pages of a sample and of a run with carried results."""
    directory = tmp_path_factory.mktemp("others")
    fleet = [named(n, product=f"k{n % 3}") for n in range(60)]
    answers = [ok(device, ("ble", f"1.{n % 7}")) for n, device in enumerate(fleet)]
    sample = sampled(directory / "sample" / "run", fleet, fleet[:30], [*answers[:29], failed(fleet[29])]).folder
    carried_answers = [(answer, "2026-11-10 02:00:00") for answer in answers[30:]]
    carried = carried_run(directory / "carried" / "run", fleet, answers[:30], carried_answers).folder
    recheck = SelectionInfo("incremental", recheck=Recheck(30, 3, 3, 1, 0.3333, 0.01, 0.9))
    edit_manifest(carried, lambda manifest: replace(manifest, selection=recheck))
    now = datetime(2026, 11, 22, 9, tzinfo=UTC)
    return [write_report(run, directory / f"{run.parent.name}.html", now=now) for run in (sample, carried)]


@pytest.fixture(scope="module")
def browser(page_file: Path, other_pages: list[Path]) -> Iterator[Any]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@dataclass
class Watched:
    """An open page with its console messages, requests and failed requests."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failed_requests: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def open_page(browser: Any, page_file: Path) -> Iterator[Any]:
    contexts = []

    def opened(width: int = 1280, **options: object) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda message: watched.messages.append(message.text))
        watched.page.on("pageerror", lambda error: watched.messages.append(str(error)))
        watched.page.on("dialog", lambda dialog: watched.messages.append(f"dialog {dialog.message}"))
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.on("requestfailed", lambda request: watched.failed_requests.append((request.url, request.failure)))
        watched.page.goto(page_file.as_uri())
        return watched

    yield opened
    for context in contexts:
        context.close()


def streams(pdf: bytes) -> Iterator[bytes]:
    """Yield the decompressed streams of a PDF, which draw its pages."""
    for found in re.finditer(rb"stream\r?\n", pdf):
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj().decompress(pdf[found.end() :])


def shown_rows(page: Any) -> list[list[str]]:
    found: list[list[str]] = page.eval_on_selector_all(
        "#rows tbody tr:not([hidden])", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return found


def test_page_opens_without_console_messages_and_requests_only_itself(open_page: Any, page_file: Path) -> None:
    watched = open_page()
    watched.page.emulate_media(color_scheme="dark")
    watched.page.click("#theme")
    for summary in watched.page.query_selector_all("summary"):
        summary.click()
    assert watched.messages == []
    assert watched.requests == [page_file.as_uri()]


def test_content_security_policy_forbids_added_scripts_images_and_styles(open_page: Any) -> None:
    watched = open_page()
    watched.page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'document.title = 1';"
        "document.body.append(script); const image = new Image(); image.src = 'https://example.com/x.png';"
        "document.body.append(image); document.body.setAttribute('style', 'display: none'); }"
    )
    watched.page.wait_for_timeout(200)
    assert watched.page.title() != "1"
    assert watched.page.eval_on_selector("body", "body => getComputedStyle(body).display") == "block"
    assert watched.failed_requests == [("https://example.com/x.png", "csp")]
    assert len([text for text in watched.messages if "Content Security Policy" in text]) >= 3


def test_names_from_devices_stay_text(open_page: Any) -> None:
    watched = open_page()
    assert watched.page.query_selector_all("img") == []
    assert watched.page.title().startswith("nightly: fleet report")
    assert watched.page.locator("td", has_text=EVIL).count() >= 3
    text = watched.page.inner_text("main")
    assert f"p1/{EVIL}" in text
    watched.page.click(f'.heat a[aria-label^="{EVIL[:5]}"]')
    detail = watched.page.inner_text("#detail")
    assert detail.count(EVIL) >= 3, "the product, the module and its version"
    assert EVIL[:14] in watched.page.eval_on_selector_all("#detail text", "all => all.map(each => each.textContent)")
    assert watched.page.query_selector_all("img") == []
    assert watched.messages == []


def test_filter_narrows_the_table(open_page: Any) -> None:
    page = open_page().page
    rows = shown_rows(page)
    assert page.inner_text("#inventory output") == f"{len(rows)} of {len(rows)} rows"
    page.fill("#inventory .find", "K1 ble")
    narrowed = shown_rows(page)
    assert narrowed == [row for row in rows if "k1" in "".join(row) and "ble" in "".join(row)]
    assert 0 < len(narrowed) < len(rows)
    assert page.inner_text("#inventory output") == f"{len(narrowed)} of {len(rows)} rows"
    page.select_option("#inventory .order", "newest")
    assert [row[-1] for row in shown_rows(page)] == ["newest"]
    page.fill("#inventory .find", EVIL)
    assert [row[1] for row in shown_rows(page)] == [EVIL]
    page.fill("#inventory .find", "no such thing")
    assert shown_rows(page) == []


def test_columns_sort_by_click_and_by_keyboard(open_page: Any) -> None:
    page = open_page().page
    heads = page.locator("#rows thead th")
    assert heads.nth(4).get_attribute("aria-sort") == "descending"
    heads.nth(4).locator("button").click()
    assert heads.nth(4).get_attribute("aria-sort") == "ascending"
    devices = [int(row[4].replace(",", "")) for row in shown_rows(page)]
    assert devices == sorted(devices)
    heads.nth(3).locator("button").focus()
    page.keyboard.press("Enter")
    assert heads.nth(3).get_attribute("aria-sort") == "ascending"
    assert heads.nth(4).get_attribute("aria-sort") is None
    versions = [row[3] for row in shown_rows(page) if row[3] != EVIL]
    assert versions == sorted(versions)
    page.keyboard.press("Space")
    assert heads.nth(3).get_attribute("aria-sort") == "descending"
    assert [row[3] for row in shown_rows(page) if row[3] != EVIL] == sorted(versions, reverse=True)


SCREENS = [(width, scheme) for width in (390, 1280, 1920) for scheme in ("light", "dark")]


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_page_fits_and_axe_finds_no_violation(open_page: Any, width: int, scheme: str) -> None:
    page = open_page(width, color_scheme=scheme, bypass_csp=True).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page).response["violations"]
    faults = {fault["id"]: [node["html"][:200] for node in fault["nodes"][:3]] for fault in found}
    assert faults == {}


EXCESS = """value => {
  const range = document.createRange(), tile = value.closest('.tile'), style = getComputedStyle(tile);
  range.selectNodeContents(value);
  const room = tile.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  return range.getBoundingClientRect().width - room;
}"""


@pytest.mark.parametrize("width", [390, 1024, 1280])
@pytest.mark.parametrize(("number", "unit"), [("12", "warnings"), ("none", "violated"), ("1,234", "of 5,678")])
def test_values_of_tiles_keep_their_distance_from_the_edge(open_page: Any, width: int, number: str, unit: str) -> None:
    page = open_page(width).page
    value = page.locator(".tile .value:has(.unit)").first
    value.evaluate(
        "(value, [number, unit]) => { value.firstChild.data = `${number} `; value.lastChild.textContent = unit; }",
        [number, unit],
    )
    assert value.text_content() == f"{number} {unit}"
    assert value.evaluate(EXCESS) <= 0


MEASURE = """() => {
  const shown = (each) => each.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true })
    && !each.closest(".unseen, .skip");
  const small = [], tiny = [];
  for (const each of document.querySelectorAll("a, button, select, input, summary, [tabindex='0']")) {
    if (!shown(each)) continue;
    const box = each.getBoundingClientRect();
    // A link in a sentence is exempt, as in WCAG 2.5.8.
    const inline = getComputedStyle(each).display === "inline";
    if (!inline && (box.height < LEAST || box.width < 24)) small.push([each.outerHTML.slice(0, 80), box.width, box.height]);
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !shown(parent) || parent.closest("script, style, [aria-hidden]:not(svg)")) continue;
    const size = parseFloat(getComputedStyle(parent).fontSize);
    if (size < 12) tiny.push([walker.currentNode.data.slice(0, 40), size]);
  }
  return [small, tiny];
}"""


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_targets_can_be_hit_and_text_can_be_read(open_page: Any, width: int) -> None:
    page = open_page(width).page
    page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")
    small, tiny = page.evaluate(MEASURE.replace("LEAST", "28" if width < 700 else "24"))
    assert small == []
    assert tiny == []
    left, right = page.evaluate(
        "[...document.querySelectorAll('main')].map(m => { const b = m.getBoundingClientRect(); return [b.left, b.right]; })[0]"
    )
    assert (left, right) == (0, width), "the page has the whole width"


def test_cells_are_reached_by_arrow_keys_and_by_address(open_page: Any, page_file: Path) -> None:
    page = open_page().page
    page.focus(".heat .cell >> nth=0")
    assert page.locator(".heat .cell[tabindex='0']").count() == 1, "the map is one stop of the tab key"
    first = page.inner_text("#detail h2")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#detail h2") != first
    assert page.locator(".heat .cell[aria-current]").count() == 1
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#detail h2") == first
    page.keyboard.press("Enter")
    address = page.evaluate("location.hash")
    page.goto("about:blank")
    page.goto(page_file.as_uri() + address)
    assert page.inner_text("#detail h2") == first
    page.goto(page_file.as_uri() + "#m=nothing&p=here")
    assert page.is_visible("#detail")


def test_rollouts_are_filtered_by_state_and_text(open_page: Any) -> None:
    page = open_page().page
    rows = page.locator("#rollout-rows tbody tr:not([hidden])")
    every = page.locator("#rollout-rows tbody tr").count()
    page.click('#rollouts .chips button[data-states=""]')
    assert rows.count() == every
    for chip in page.locator("#rollouts .chips button").all():
        chip.click()
        assert chip.get_attribute("aria-pressed") == "true"
        assert rows.count() == int(chip.locator(".n").inner_text()) > 0
    page.fill("#rollouts .find", "no such module")
    assert rows.count() == 0
    assert page.inner_text("#rollouts output") == f"0 of {every} rows"
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.classList.contains('find')")


def test_age_is_rounded_as_in_the_report(open_page: Any) -> None:
    page = open_page().page
    started = datetime.fromisoformat(page.get_attribute(".age", "data-started"))
    for minutes in (0.5, 1, 45, 119, 120, 121, 7 * 60 + 1, 47 * 60 + 30, 49 * 60, 100 * 24 * 60):
        now = started + timedelta(minutes=minutes)
        page.clock.set_fixed_time(now)
        page.reload()
        assert page.inner_text(".age") == f"· {format_age(started, now)}"


LINES_OF_COMMANDS = """() => [...document.querySelectorAll('.command code')].map(code => {
  const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT), range = document.createRange(), lines = [];
  let top = null;
  while (walker.nextNode()) {
    for (let at = 0; at < walker.currentNode.length; at++) {
      range.setStart(walker.currentNode, at); range.setEnd(walker.currentNode, at + 1);
      const box = range.getBoundingClientRect();
      if (box.width && top !== null && box.top > top + 4) lines.push('');
      if (box.width) top = box.top;
      lines[Math.max(0, lines.length - 1)] = (lines[Math.max(0, lines.length - 1)] || '') + walker.currentNode.data[at];
    }
  }
  return [code.textContent, lines.map(line => line.trim())];
})"""


@pytest.mark.parametrize("width", [375, 390, 1280])
def test_commands_break_at_spaces_only(open_page: Any, width: int) -> None:
    found = open_page(width).page.evaluate(LINES_OF_COMMANDS)
    assert len(found) > 3
    assert any(len(lines) > 1 for _, lines in found)
    for command, lines in found:
        assert " ".join(lines) == command


def test_a_command_that_is_wider_than_a_phone_is_scrolled_by_keyboard(open_page: Any) -> None:
    page = open_page(390).page
    code = page.locator(".command code").first
    code.evaluate("code => { code.lastElementChild.textContent = '--rules=' + 'long-'.repeat(40); }")
    page.wait_for_timeout(200)
    assert code.get_attribute("tabindex") == "0"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [375, 390, 1280])
def test_tables_that_scroll_have_a_sign_of_it(open_page: Any, width: int) -> None:
    page = open_page(width).page
    page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")
    page.wait_for_timeout(200)
    boxes = page.eval_on_selector_all(
        ".scroll",
        "all => all.map(each => [each.scrollWidth > each.clientWidth + 1, getComputedStyle(each).maskImage !== 'none'])",
    )
    assert all(scrolls == sign for scrolls, sign in boxes)
    assert any(scrolls for scrolls, _ in boxes)
    if width < 1280:
        rollouts = page.locator("#rollouts .scroll")
        rollouts.evaluate("box => { box.scrollLeft = 40; }")
        page.wait_for_timeout(100)
        assert {"more-left", "more-right"} <= set(rollouts.get_attribute("class").split())


@pytest.mark.parametrize("width", [375, 390])
def test_on_a_phone_what_matters_is_on_the_screen(open_page: Any, width: int) -> None:
    """A classic scrollbar leaves 375 of 390 pixels."""
    page = open_page(width).page
    page.click('#rollouts .chips button[data-states=""]')
    edge = page.locator("#rollouts .scroll").bounding_box()
    for name in ("On target", "Behind"):
        heading = page.locator("#rollout-rows thead th", has_text=name).bounding_box()
        assert heading["x"] + heading["width"] <= edge["x"] + edge["width"] - 8, name
    assert page.locator("#policy .scroll").first.evaluate("box => box.scrollWidth <= box.clientWidth")
    for link in page.locator(".top nav a").all():
        box = link.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width, link.inner_text()
    theme = page.locator("#theme").bounding_box()
    for other in page.locator(".top > :not(#theme):not(.skip)").all():
        box = other.bounding_box()
        apart = box["x"] + box["width"] + 4 <= theme["x"] or box["y"] >= theme["y"] + theme["height"]
        assert apart, other.inner_text()


def test_headings_of_the_map_are_whole_and_details_leave_no_hole(open_page: Any) -> None:
    page = open_page(1280).page
    cut = page.eval_on_selector_all(
        "#heat thead th",
        "all => all.filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.textContent)",
    )
    assert cut == []
    heat, detail = (page.locator(name).bounding_box() for name in ("#products > .card:first-child", "#detail"))
    assert heat["x"] == detail["x"]
    assert heat["width"] == detail["width"]
    assert 0 < detail["y"] - heat["y"] - heat["height"] < 32


def test_shares_of_the_details_are_rounded_as_in_the_report(open_page: Any, page_file: Path, tmp_path: Path) -> None:
    html, page = page_file.read_text(), open_page().page
    shares = {(5, 5): "100%", (4999, 5000): "99.9%", (1, 9000): "<0.1%", (2366, 10000): "23.7%", (1, 2): "50%"}
    for (count, of), text in shares.items():
        entry = {"account": "a", "product": "p", "name": "p", "module": "m", "state": "done", "glyph": "", "share": "",
                 "change": "", "devices": of, "count": 2, "command": "", "versions": [["2", 0, [count]]]}  # fmt: skip
        island = json.dumps({"runs": ["1 Dec"], "modules": [entry]})
        (tmp_path / "page.html").write_text(re.sub(r'(?s)(id="data">).*?(</script>)', rf"\g<1>{island}\g<2>", html))
        page.goto((tmp_path / "page.html").as_uri())
        assert page.inner_text("#detail tbody td:last-child") == text


def test_command_is_copied(open_page: Any) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"]).page
    command = page.locator(".attention .command").first
    command.locator("button").click()
    command.locator("button", has_text=re.compile("Copied|Selected")).wait_for()  # the browser copies in between
    assert page.evaluate("navigator.clipboard.readText()") == command.locator("code").inner_text()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_pages_of_samples_and_of_carried_answers_fit_too(
    open_page: Any, other_pages: list[Path], width: int, scheme: str
) -> None:
    for path in other_pages:
        page = open_page(width, color_scheme=scheme, bypass_csp=True).page
        page.goto(path.as_uri())
        page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = axe.Axe().run(page).response["violations"]
        assert {fault["id"]: [node["html"][:200] for node in fault["nodes"][:3]] for fault in found} == {}


def test_printed_page_is_light_complete_and_labelled(open_page: Any) -> None:
    page = open_page(color_scheme="dark").page
    page.click("#theme")
    page.click("#theme")
    page.emulate_media(media="print")
    assert page.is_visible(".banner")
    assert page.is_visible(".running-label")
    assert "partial" in page.inner_text(".running-label")
    assert page.is_hidden("#rollouts .filter")
    assert page.is_hidden("nav")
    assert page.eval_on_selector("body", "body => getComputedStyle(body).colorScheme") == "light"
    printed = page.pdf(format="A4")
    labelled = [b".702 .1255 .102 rg" in stream for stream in streams(printed)]  # the colour of the running label
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert labelled.count(True) == pages
    assert 2 <= pages <= 3


def test_page_is_complete_without_scripts(open_page: Any) -> None:
    page = open_page(java_script_enabled=False).page
    assert page.is_visible("#rows")
    assert page.is_hidden("#inventory .filter")
    assert page.is_hidden("#theme")
    assert page.is_hidden("#detail")
    assert page.is_hidden(".copy")
    assert page.locator("#rollout-rows tbody tr").count() == page.locator(".heat .cell").count() > 3
    page.click(".heat .cell >> nth=0")
    assert page.evaluate("location.hash").startswith("#rollout-")
    assert page.locator("#rows tbody tr").count() > 30
    assert page.is_visible(".banner")


def test_theme_is_switched_by_keyboard(open_page: Any) -> None:
    page = open_page(color_scheme="light").page
    background = "body => getComputedStyle(body).backgroundColor"
    assert page.eval_on_selector("body", background) == "rgb(246, 247, 249)"
    page.focus("#theme")
    page.keyboard.press("Enter")
    assert page.eval_on_selector("body", background) == "rgb(11, 15, 21)"
    assert page.get_attribute("#theme", "aria-label") == "Show the page light"
