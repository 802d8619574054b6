"""The table of a run's samples."""

from __future__ import annotations

from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.samples import Sample


def samples_of(run: Run) -> list[Sample]:
    """The run's samples, as they were laid down when it was created."""
    table = run.open("samples").load()
    return [
        Sample(
            int(i), str(prompt), int(seed), str(category) or None, str(split), str(picture) or None
        )
        for i, prompt, seed, category, split, picture in zip(
            table.sample.values,
            table.prompt.values,
            table.seed.values,
            table.category.values,
            table.split.values,
            table.picture.values,
            strict=True,
        )
    ]
