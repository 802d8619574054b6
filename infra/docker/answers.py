"""A container's health check: does an address answer?  The image has no curl."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request


def main() -> None:
    """Exit with 0 where the address answers with a success."""
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=3):
            return
    except (urllib.error.URLError, TimeoutError):
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
