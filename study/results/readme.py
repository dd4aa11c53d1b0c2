"""The README's results table, written from data: ``python -m study.results.readme --scale cpu``."""

import argparse
import sys

from study.files import root, write_text
from study.results.evidence import answer

MARKERS = ("<!-- results:begin -->", "<!-- results:end -->")
#: The table that stands in the README.
README_TABLE = "table_E_1.md"


def readme_block(scale: str) -> str:
    """The answer in three sentences, and the factorial at ``scale`` as the stage ``tables`` wrote
    it."""
    path = root() / "results" / scale / "tables" / README_TABLE
    table = path.read_text(encoding="utf-8").rstrip()
    return f"{answer(scale)}\n\n{table}"


def with_block(text: str, block: str) -> str:
    """``text`` with ``block`` between the markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"README.md: expected {begin} and then {end} once each: put them back")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{block}\n{end}{rest.split(end)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m study.results.readme", description=__doc__)
    parser.add_argument("--scale", default="cpu")
    scale = parser.parse_args().scale
    path = root() / "README.md"
    try:
        write_text(path, with_block(path.read_text(encoding="utf-8"), readme_block(scale)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
