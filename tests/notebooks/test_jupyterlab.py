"""JupyterLab itself, in a browser: a chapter opened, a cell edited, all cells run, saved."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from clones import shell

EDIT = '\nscale = "smoke"  # edited'


@pytest.fixture
def lab(made, tmp_path):
    """What `make lab` starts, on a free port, without the token."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder = Path(sys.executable).parent
    # The kernel imports the clone's wexlib, as one that was set up there would.
    environment = os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(made),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    options = [f"--port={port}", "--no-browser", "--allow-root", "--IdentityProvider.token="]
    command = [sys.executable, "-m", "jupyterlab", *options]
    process = subprocess.Popen(
        command, cwd=made, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://localhost:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api")
            break
        except urllib.error.URLError:
            time.sleep(0.5)
    yield address
    process.terminate()
    process.wait()


def test_a_chapter_edited_run_and_saved_changes_nothing_else(browser, lab, made, tmp_path):
    before = set(shell("git status --short", made).splitlines())
    chapter = made / "notebooks" / "06_results.ipynb"
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{lab}/lab/tree/notebooks/{chapter.name}?reset")
    cell = page.locator(".jp-CodeCell").first
    cell.locator(".cm-content").click(timeout=120_000)
    page.keyboard.press("Control+End")
    page.keyboard.insert_text(EDIT)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    last = page.locator(".jp-CodeCell .jp-InputPrompt").last
    page.locator(".jp-Notebook").press("Control+End")
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];"
        " return all.length && all.every(p => /\\[\\d+\\]/.test(p.textContent)); }",
        timeout=180_000,
    )
    assert re.fullmatch(r"\[\d+\]:", last.inner_text().strip())
    page.keyboard.press("Control+s")
    for _ in range(60):
        if "# edited" in chapter.read_text(encoding="utf-8"):
            break
        time.sleep(0.5)
    page.screenshot(path=tmp_path / "jupyterlab.png")
    assert not page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count()
    page.close()
    saved = chapter.read_text(encoding="utf-8")
    assert "# edited" in saved and "Table 6.2" in saved and "ours on digits" in saved

    changed = set(shell("git status --short", made).splitlines()) - before
    assert changed == {" M notebooks/06_results.ipynb"}
    status = shell("dvc status --json scales/smoke/dvc.yaml", made)
    stages = set(re.findall(r'"scales/smoke/dvc.yaml:([^"]+)"', status))
    assert stages == {"plan", "chapter@06_results"}
    shell("git checkout -q notebooks", made)
