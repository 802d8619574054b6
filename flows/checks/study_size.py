"""Check of a study's size, which Prefect limits."""

from __future__ import annotations

import json

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.schema import Study

STUDY_LIMIT = 400_000
"""Largest study in bytes as Prefect counts them.  It accepts flow parameters of up to 512 KiB."""


def check_study_size(study: Study) -> None:
    """Check that a study is small enough for a parameter of a Prefect flow run.

    Raises:
        UserError: its JSON text in ASCII has more than `STUDY_LIMIT` bytes.
    """
    # Prefect counts characters beyond ASCII as JSON escapes of six bytes or more.
    size = len(json.dumps(study.model_dump(mode="json", by_alias=True), separators=(",", ":")))
    if size > STUDY_LIMIT:
        raise UserError(
            f"prompts.items makes the study {size / 1000:.0f} kB, but Prefect takes at most "
            f"{STUDY_LIMIT / 1000:.0f} kB. Fix: name a CSV file with the prompts in prompts.files."
        )
