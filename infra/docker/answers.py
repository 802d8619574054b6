"""HTTP health check of a container; it replaces curl, which the image does not contain."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request


def main() -> None:
    """Exit with 0 if the URL in the first argument answers without an error, otherwise with 1."""
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=3):
            return
    except (urllib.error.URLError, TimeoutError):
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
