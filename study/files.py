"""Where the project is, and files that are never half-written."""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

#: The run of ``params.yaml``, and the folder of its files.
PLAYGROUND = "playground"


def root(start: Path | None = None) -> Path:
    """The project's folder: the nearest one upward from ``start`` that holds ``params.yaml``.

    Raises:
        FileNotFoundError: no such folder.
    """
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no params.yaml beside a dvc.yaml in {start} or above it: run this inside the project"
    )


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a temporary file, then rename it to ``path``: a reader sees old or new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove what writers of ``path`` left beside it when they were killed; none may be at work."""
    for left in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def digest(value: dict, contents: bytes = b"") -> str:
    """SHA-256 of a dictionary as JSON, without its own entry ``digest``, and of ``contents``."""
    rest = {key: part for key, part in value.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode() + contents).hexdigest()


def write_text(path: Path, text: str) -> None:
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
