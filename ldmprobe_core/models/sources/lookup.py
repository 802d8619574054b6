"""Choice of the source of a study's model: a folder, a file or a pipeline object."""

from __future__ import annotations

from ldmprobe_core.models.sources.base import ModelSource
from ldmprobe_core.models.sources.file import FileSource, is_file
from ldmprobe_core.models.sources.folder import FolderSource
from ldmprobe_core.models.sources.pipeline import pipeline_in_use
from ldmprobe_core.study.sections import PIPELINE_PREFIX, Model


def source_of(model: Model) -> ModelSource:
    """Return the source of a study's model: a folder, a file or a pipeline object.

    Args:
        model: section ``model`` of the study.

    Raises:
        UserError: the model's configs are not on this machine, or the study is of a pipeline
            object that this process was not given.
    """
    if model.source.startswith(PIPELINE_PREFIX):
        return pipeline_in_use(model.source)
    return FileSource(model) if is_file(model) else FolderSource(model)
