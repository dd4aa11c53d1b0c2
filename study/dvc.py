"""``dvc`` whose files are never half-written: ``python -m study.dvc``, as ``make`` calls it.

DVC knows finished runs by dvc.lock, and writes it for a second or more into the file itself. Killed
in it, or on a full disk, it would have lost them all.
"""

import sys
from pathlib import Path

from dvc.cli import main
from dvc.utils.serialize import _common

from study.files import write

_dump = _common._dump_data


def dump(path: str, *given: object, **named: object) -> None:
    """As DVC's own, and the file is the old or the new one."""
    write(Path(path), lambda temporary: _dump(str(temporary), *given, **named))


_common._dump_data = dump

if __name__ == "__main__":
    sys.exit(main())
