"""What more than one test file uses."""

import shutil
from pathlib import Path

import pytest
from clones import PROJECT, clone, keep_a_few_runs, shell

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
    """A clone with the working tree's files and a few runs, after what `make SCALE=smoke` calls."""
    folder = clone(PROJECT, tmp_path_factory.mktemp("pipeline") / "clone")
    shell(
        f"git -C {PROJECT} ls-files -z -co --exclude-standard | "
        f"(cd {PROJECT} && xargs -0 tar c --ignore-failed-read) | tar x",
        folder,
    )
    keep_a_few_runs(folder)
    shell(
        "git rm -rq --cached --ignore-unmatch results dvc.lock && rm -f dvc.lock && "
        "find results -mindepth 1 -maxdepth 1 ! -name benchmarks -exec rm -rf {} +",
        folder,
    )
    shell("git add -A && git commit -q --allow-empty -m 'The working tree'", folder)
    shell("python -m study.cli make --scale smoke", folder)
    return folder
