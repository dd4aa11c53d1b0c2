"""Where the project is, and files that are never half-written."""

import json
import secrets
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


def write_text(path: Path, text: str) -> None:
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
