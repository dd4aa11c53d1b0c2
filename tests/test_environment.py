"""pyproject.toml, requirements.lock and environment.yml agree, and make keeps its word."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYTHONS = ("3.11", "3.12", "3.13")


def direct(*, setup: bool = False) -> list[Requirement]:
    """What pyproject.toml asks for by name."""
    texts = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        texts += extra
    if setup:
        texts += PROJECT["dependency-groups"]["setup"]
    return [Requirement(text) for text in texts]


def locked(python: str, system: str) -> dict[str, str]:
    """Package to version as the lock has it on one Python and one system."""
    versions: dict[str, str] = {}
    target = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
    }
    for line in re.findall(r"^([a-z0-9].*?)\s*\\?$", LOCK, re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(target):
            assert requirement.name not in versions, f"{requirement.name} twice"
            versions[requirement.name] = str(requirement.specifier).removeprefix("==")
    return versions


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_every_direct_requirement(python, system):
    versions = locked(python, system)
    for requirement in direct(setup=True):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked"


def test_lock_is_hashed_and_names_no_place():
    entries = re.findall(r"^[a-z0-9](?:.*\\\n)*.*$", LOCK, re.MULTILINE)
    assert len(entries) > 100
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]
    assert not re.search(r"://|^-|@ |index-url|find-links|^/|\.whl", LOCK, re.MULTILINE)


def test_slow_optional_format_checker_is_left_out():
    assert "rfc3987-syntax" not in locked("3.12", "linux")


def test_environment_yml_is_the_lock():
    environment = YAML(typ="safe").load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    assert conda == ["python=3.12", "cxx-compiler", "pip"]
    [pip] = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip[0] == "-e ."
    pinned = [Requirement(line) for line in pip[1:]]
    target = {"python_version": "3.12", "python_full_version": "3.12.9", "sys_platform": "linux"}
    here = [r for r in pinned if r.marker is None or r.marker.evaluate(target)]
    versions = {r.name: str(r.specifier).removeprefix("==") for r in here}
    assert versions == locked("3.12", "linux"), "run make lock"


def test_library_alone_needs_three_packages():
    names = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    assert names == {"torch", "numpy", "safetensors"}


def test_set_up_builds_from_locked_packages_only():
    assert set(PROJECT["build-system"]["requires"]) <= set(PROJECT["dependency-groups"]["setup"])


def test_declared_pythons_agree():
    workflow = YAML(typ="safe").load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == list(PYTHONS)
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [v for v in ("3.10", *PYTHONS, "3.14") if v in supported] == list(PYTHONS)
    classifiers = PROJECT["project"]["classifiers"]
    assert [f"Programming Language :: Python :: {v}" for v in PYTHONS] == [
        text for text in classifiers if text.startswith("Programming Language")
    ]


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path):
    """The files that make reads, alone in a new repository."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


def test_make_without_a_fitting_python_says_so_in_a_sentence(clone):
    done = make(clone, "setup", "PYTHON=no-such-python")
    assert done.returncode != 0
    sentence = done.stderr.splitlines()[0]
    assert "3.11, 3.12 or 3.13" in sentence and "no-such-python" in sentence
    assert not (clone / ".venv").exists()


def test_make_without_a_venv_module_says_so_in_a_sentence(clone):
    python = clone / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = venv ] && exit 1\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = make(clone, "setup", f"PYTHON={python}")
    assert done.returncode != 0
    assert "install its venv module" in done.stderr.splitlines()[0]
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("moved", [False, True])
def test_set_up_is_done_once_in_each_folder(clone, moved):
    binaries = clone / ".venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "uv").touch()
    (clone / ".venv/ready").write_text("/elsewhere\n" if moved else f"{clone}\n")
    planned = make(clone, "setup", "--dry-run").stdout
    assert ("-m venv" in planned) == ("pip install" in planned) == moved


def test_clean_removes_what_make_made_and_no_user_file(clone):
    made = [
        ".venv/ready",
        "scales/smoke/plan/a.json",
        "data/demo/digits10/meta.json",
        "models/demo/a.pt",
    ]
    made += ["reports/book.html", "results/smoke/a.json", "wexlib/__pycache__/a.pyc"]
    kept = ["wexlib/mine.py", "notebooks/mine.ipynb", "data/mine/a.csv", "results/gpu/a.json"]
    kept += [".dvc/cache/files/a", "mine.txt"]
    for name in made + kept:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    done = make(clone, "clean")
    assert done.returncode == 0, done.stderr
    assert [name for name in made if (clone / name).exists()] == []
    assert [name for name in kept if not (clone / name).exists()] == []


def test_scales_share_their_pipeline():
    def pipeline(scale: str) -> str:
        return (ROOT / "scales" / scale / "dvc.yaml").read_text(encoding="utf-8")

    assert pipeline("smoke") == pipeline("demo")
    assert pipeline("cpu") == pipeline("gpu") == pipeline("thesis")
    stages = {scale: YAML(typ="safe").load(pipeline(scale))["stages"] for scale in ("demo", "cpu")}
    for role in ("evidence", "jester", "tiny-imagenet"):  # no embedded data stand in for them
        assert stages["cpu"].pop(f"run-{role}")["deps"][1] == f"data/${{scale}}/{role}"
        stages["cpu"]["data"]["matrix"]["role"].remove(role)
    # Results are the same files, in Git or in DVC's cache.
    for stage in stages["cpu"].values():
        stage["outs"] = [next(iter(o)) if isinstance(o, dict) else o for o in stage["outs"]]
    stages["demo"]["plan"]["outs"] = stages["cpu"]["plan"]["outs"]
    assert stages["demo"] == stages["cpu"]
