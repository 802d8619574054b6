"""Checks of committed files for pre-commit: ends of text files, and sizes.

python .ci/check_files.py endings FILE ...
python .ci/check_files.py sizes FILE ...
"""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT_BYTES = 1_000_000


def bad_ending(path: Path) -> str | None:
    """Problem with the end of a text file: no newline, or an empty line; None if it is right."""
    data = path.read_bytes()
    if not data or (data.endswith(b"\n") and not data.endswith(b"\n\n") and data != b"\n"):
        return None
    return f"{path}: does not end with exactly one newline"


def too_large(path: Path) -> str | None:
    """Problem with the size of a file; None if it is at most `LIMIT_BYTES`."""
    size = path.stat().st_size
    return None if size <= LIMIT_BYTES else f"{path}: {size} bytes exceed {LIMIT_BYTES}"


CHECKS = {"endings": bad_ending, "sizes": too_large}


def main() -> int:
    """Print the problems of the files on the command line; 1 if there is any, else 0."""
    check = CHECKS[sys.argv[1]]
    problems = [problem for name in sys.argv[2:] if (problem := check(Path(name)))]
    print(*problems, sep="\n", end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
