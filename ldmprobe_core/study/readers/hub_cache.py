"""Hub ids, the Hugging Face cache, and descriptions of files that can be fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HubRepository:
    """Repository of the Hugging Face hub that holds a model or a labeler.

    Attributes:
        name: hub id, such as ``Intel/dpt-large``.
        revision: branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None = None


@dataclass(frozen=True)
class PublishedFile:
    """Published file of weights, and the local path under which a study names it.

    Attributes:
        target: path that the study names.  If its suffix is ``.safetensors`` and that of `name` is
            another, the published file is a pickle and is converted.
        name: name of the published file.
        origin: hub id of its repository, or URL of the file.
        checksum: name of a hash function of `hashlib`, and the first hexadecimal digits that it
            gives for the published file; None if they are not known.
    """

    target: Path
    name: str
    origin: str
    checksum: tuple[str, str] | None = None


PublishedSource = HubRepository | PublishedFile


def is_hub_id(text: str) -> bool:
    """Return whether a text has the form of a hub id, ``owner/name``.

    The rules are those of ``huggingface_hub``, whose functions raise an error for any other text;
    ``./models`` and ``../models`` are paths.
    """
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    is_short = len(text.rpartition("/")[2]) <= 96
    is_allowed = is_short and not text.endswith(".git") and not re.search(r"--|\.\.", text)
    return is_allowed and re.fullmatch(f"{part}/{part}", text) is not None


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository in the Hugging Face cache; None if there is none.

    The folder may hold some of the repository's files only, as after a download of chosen files.
    """
    # This import is slow, and only models and labelers of the hub need it.
    from huggingface_hub import snapshot_download

    try:
        # Without `allow_patterns`, recent versions of the library raise an exception if any file of
        # the repository is absent, such as weights in a format that is never read here.
        return Path(snapshot_download(name, revision=revision, local_files_only=True,
                                      allow_patterns=[]))  # fmt: skip
    # For a repository that is not in the cache, huggingface_hub raises exceptions of many types,
    # and all of them mean that there is no folder to return.
    except Exception:
        return None
