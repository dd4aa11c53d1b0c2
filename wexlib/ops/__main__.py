"""``python -m wexlib.ops``: compile the loops, and say where they are, or what is missing."""

import sys

from wexlib.ops.fused import load

if __name__ == "__main__":
    try:
        print(load()._name)
    except (OSError, RuntimeError) as error:
        sys.exit(str(error))
