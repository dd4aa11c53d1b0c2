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


def read_yaml(path: Path, *, pure: bool = True) -> object:
    """A file by YAML 1.2, as DVC reads it (papermill's YAML 1.1 takes 1e-3 for a text).

    Args:
        path: the file.
        pure: read by Python; else by C, several times faster, which is YAML 1.1.

    Raises:
        ValueError: it is missing, no text or no YAML, or holds what JSON does not.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: bring it back by git restore") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8: save it as such") from None
    try:
        value = YAML(typ="safe", pure=pure).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "it cannot be read")
        problem = problem.strip().splitlines()[0]
        raise ValueError(f"{path}{line}: not valid YAML: {problem}") from None
    except Exception as error:  # what a date without a month, or a tag on another value, raises
        raise ValueError(f"{path}: not valid YAML: {type(error).__name__}: {error}") from None
    try:
        _check_plain(value, str(path))
    except RecursionError:
        raise ValueError(f"{path}: expected a few levels of keys, got too many") from None
    return value


def _check_plain(value: object, place: str) -> None:
    """Raise where a value of YAML is none of JSON: a date, a set, an alias to what it stands in."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str) or not key.isprintable():
                raise ValueError(
                    f"{place}: expected a text as a key, got {key!r}: put it in quotes"
                )
            _check_plain(part, f"{place}: {key}" if place.endswith(".yaml") else f"{place}.{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _check_plain(part, f"{place}.{i}")
    elif not isinstance(value, str | bool | int | float | None):
        raise ValueError(
            f"{place}: expected a text, a number, true, false, null, a list or keys and values, "
            f"got {value!r}: put a text in quotes"
        )
    elif isinstance(value, int | float) and not abs(value) < 2**63:
        raise ValueError(f"{place}: expected a number below {2**63:g}, got {str(value)[:20]}")


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
