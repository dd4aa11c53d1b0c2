"""What more than one test file uses."""

import shutil
from pathlib import Path

import pytest
from clones import shell, small_clone

BROWSERS = ("google-chrome", "chromium", "chromium-browser")


@pytest.fixture(scope="session")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no page is tried in a browser: none of {', '.join(BROWSERS)} is found")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A clone with the working tree's files and a few runs, its scale smoke, after `make`."""
    folder = small_clone(tmp_path_factory.mktemp("pipeline") / "clone")
    shell("python -m study.cli make", folder)
    return folder
