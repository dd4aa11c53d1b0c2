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
    """A clone with the working tree's files and a few runs, its scale smoke, after `make`."""
    folder = clone(PROJECT, tmp_path_factory.mktemp("pipeline") / "clone")
    shell(
        f"git -C {PROJECT} ls-files -z -co --exclude-standard | "
        f"(cd {PROJECT} && xargs -0 tar c --ignore-failed-read) | tar x",
        folder,
    )
    keep_a_few_runs(folder)
    shell("sed -i 's/^scale: demo/scale: smoke/' params.yaml", folder)
    shell("rm -f dvc.lock scales/*/dvc.lock && rm -rf playground scales/*/plan", folder)
    shell("git add -A && git commit -q --allow-empty -m 'The working tree'", folder)
    shell("python -m study.cli make", folder)
    return folder
