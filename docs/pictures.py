"""Write the pictures of the documents: the report of the demonstration's fleet after some days, in headless Chromium.

python docs/pictures.py [FOLDER]
"""

import contextlib
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import anyio
from playwright.sync_api import Browser, sync_playwright

from auditor.cli.demonstration import DEMO_RULES, run_demonstration
from auditor.concurrency import StopToken
from auditor.policy.loader import load_policy
from auditor.report.render import write_report
from auditor.runs.manifest import read_manifest, write_manifest
from auditor.text.formatting import format_utc, parse_manifest_time

DEVICES, DAYS = 2_000, 8


class Picture(NamedTuple):
    """A screenshot: the name of its file, its theme, its size in the page's pixels, and the scale of these."""

    name: str
    theme: Literal["light", "dark"]
    width: int
    height: int
    scale: int


PICTURES = (Picture("report-light.png", "light", 1_280, 1_180, 1), Picture("report-phone.png", "dark", 390, 844, 2))


def main(folder: Path) -> int:
    """Write the pictures to a folder."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.stderr.write("pictures.py: there is no chromium (Debian: apt install chromium)\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="pictures-") as temporary:
        with contextlib.chdir(temporary):  # the commands on the page have short paths
            page = build_page().absolute()
        with sync_playwright() as playwright:
            arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
            started = playwright.chromium.launch(executable_path=browser, args=arguments)
            for picture in PICTURES:
                take_picture(started, page, folder, picture)
            started.close()
    return 0


def build_page() -> Path:
    """Audit the demonstration's fleet on consecutive days, and write the report of the last one; return its path."""
    runs = Path("audits")
    for day in range(DAYS):
        run = partial(run_demonstration, DEVICES, day, runs, lambda _: None, StopToken())
        result = anyio.run(run)
        manifest = read_manifest(result.folder)
        before = timedelta(days=DAYS - 1 - day)  # they follow each other by minutes
        shifted = {name: shift(getattr(manifest, name), before) for name in ("started_at", "finished_at")}
        write_manifest(result.folder, replace(manifest, **shifted))  # type: ignore[arg-type]
    rules = Path("demo-rules.toml")
    rules.write_text(DEMO_RULES)
    return write_report(result.folder, Path("fleet.html"), policy=load_policy(rules))


def shift(text: str | None, before: timedelta) -> str | None:
    """Return a time of a manifest some days before."""
    time = parse_manifest_time(text)
    return None if time is None else format_utc((time - before).timestamp())


def take_picture(browser: Browser, page: Path, folder: Path, picture: Picture) -> None:
    """Take a screenshot of the top of a page."""
    context = browser.new_context(
        viewport={"width": picture.width, "height": picture.height},
        device_scale_factor=picture.scale,
        color_scheme=picture.theme,
    )
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.screenshot(path=folder / picture.name)
    context.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else Path(__file__).absolute().parent))
