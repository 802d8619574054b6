"""Samples of a study, each with its prompt or source image, seed and split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.prompt_sets import (
    object_prompts,
    tabletop_prompts,
)
from ldmprobe_core.study.readers.image_folder import (
    exact_map_properties,
    image_names,
    images_hash,
    source_digest,
)
from ldmprobe_core.study.readers.prompt_files import Row, digest_of, read_rows
from ldmprobe_core.study.readers.value_types import MAX_SEED, user_path
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Images, Prompts
from ldmprobe_core.study.splits import SampleDraft, assign_splits


@dataclass(frozen=True)
class Sample:
    """One image of a study, which is generated from a prompt or is a source image.

    Attributes:
        index: position along the run's ``sample`` dimension.
        prompt: text that conditions the denoiser.
        seed: seed of the sample's noise.
        category: class that the prompt names; None if unknown.
        split: ``train``, ``validation`` or ``test``.
        source_image: file name of the source image; None if the image is generated.
        origin: file and line that give the prompt, such as ``a.csv, line 3``, for messages; not
            stored in the run.
        source_digest: hash of the contents of the source image and its maps; None if the image is
            generated.
    """

    index: int
    prompt: str
    seed: int
    category: str | None
    split: str
    source_image: str | None = None
    origin: str = field(default="", compare=False)
    source_digest: str | None = None

    @property
    def group(self) -> str:
        """Prompt or source image; samples with the same prompt or image are in the same split."""
        return self.source_image or self.prompt


def resolve_inputs(study: Study) -> Study:
    """Read a study's input files, and return the study with their sample count and content hash.

    The hash of the returned study depends on the contents of the files and not on their paths.

    Raises:
        UserError: a file is invalid, or has changed since the study was first resolved.
    """
    if study.images is not None:
        images = study.images.model_copy(
            update={"folder": absolute_path(study.images.folder, "images.folder")}
        )
        props = study.map_properties
        names = image_names(images, props)
        exact_map_properties(images, names, props)
        content = images_hash(images, names, props)
        digest = _unchanged("images.folder", images.content_hash, content)
        pinned = images.model_copy(update={"samples": len(names), "content_hash": digest})
        return study.model_copy(update={"images": pinned})
    prompts = study.prompts
    if prompts.files is None:
        return study
    files = {split: absolute_path(path, "prompts.files") for split, path in prompts.files.items()}
    count = len(read_rows(files))
    if prompts.samples not in (None, count):
        raise UserError(
            f"prompts.samples is {prompts.samples}, but prompts.files have {count} rows. Fix: "
            "leave prompts.samples out, or give files with as many rows"
        )
    digest = _unchanged("prompts.files", prompts.content_hash, digest_of(files))
    update = {"files": files, "samples": count, "content_hash": digest}
    return study.model_copy(update={"prompts": prompts.model_copy(update=update)})


def absolute_path(path: str, field: str) -> str:
    """Convert a path to an absolute path, with ``~`` replaced by the home folder.

    Args:
        field: key of the study that gives the path, for messages.

    Raises:
        UserError: the path begins with ``~name``, and this machine has no user of that name.
    """
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise UserError(
            f"{field}: {path!r:.80} names an unknown user. Fix: give the path without ~"
        ) from error


def _unchanged(field: str, before: str | None, now: str) -> str:
    """Return the content hash of the current files; raise if the study has a different hash."""
    if before not in (None, now):
        raise UserError(
            f"{field} has changed since the study was started (content hash {before}, now {now}). "
            "Fix: restore the files, or remove content_hash to start a study of the new files"
        )
    return now


def make_samples(study: Study) -> list[Sample]:
    """Build the list of a study's samples; equal studies give equal lists.

    All samples of a prompt are in one split.  Splits that are given in prompt files are used; if
    none of them is validation, validation prompts are drawn from the training prompts.  If the run
    keeps only statistics of training samples, held-out samples come first, and training samples are
    in random order if some have the same prompt.

    Raises:
        UserError: an input file is invalid, or there are too few prompts for the splits.
    """
    if study.images is not None:
        drafts = _drafts_of_images(study.images, study.map_properties)
    else:
        drafts = _drafts(study.prompts)
    _require_storable_seeds(drafts, study)
    split_of = assign_splits(drafts, study)
    if study.capture.keep == "statistics":
        # Held-out samples come first, because only their images and activations are stored.  The
        # order within held-out samples stays.
        training = [draft for draft in drafts if split_of[draft.group] == "train"]
        heldout = [draft for draft in drafts if split_of[draft.group] != "train"]
        drafts = heldout + _mixed(training, study.prompts.seed)
    return [
        Sample(
            i, d.prompt, d.seed, d.category, split_of[d.group], d.source_image, d.origin,
            d.source_digest,
        )
        for i, d in enumerate(drafts)
    ]  # fmt: skip


def _mixed(training: list[SampleDraft], seed: int) -> list[SampleDraft]:
    """Put training samples in random order if some of them have the same prompt.

    Labels are shuffled within a batch of them.  In a file whose rows are sorted by prompt, a batch
    would have one prompt, and shuffled labels would be those of other images of the same prompt.
    """
    if len({draft.group for draft in training}) == len(training):
        return training
    order = np.random.default_rng([seed, len(training)]).permutation(len(training))
    return [training[i] for i in order]


def _require_storable_seeds(drafts: list[SampleDraft], study: Study) -> None:
    """Check that no sample's seed exceeds the largest seed that a run can store."""
    largest = max((draft.seed for draft in drafts), default=0)
    if largest > MAX_SEED:
        key = "images.seed" if study.images is not None else "prompts.seed"
        raise UserError(
            f"{key}: the last of {len(drafts)} samples would have seed {largest}, and seeds are at "
            f"most {MAX_SEED}. Fix: start with a smaller seed"
        )


def _drafts_of_images(images: Images, props: tuple[str, ...]) -> list[SampleDraft]:
    """List the samples of a study of source images, before splits are assigned."""
    folder = user_path(images.folder)
    return [
        SampleDraft(
            images.caption, images.seed + i, None, None, name, name,
            source_digest=source_digest(folder, name, props),
        )
        for i, name in enumerate(image_names(images, props))
    ]  # fmt: skip


def _drafts(prompts: Prompts) -> list[SampleDraft]:
    """List the samples of a study of prompts; rows of prompt files may already have a split."""
    if prompts.files is not None:
        rows: list[Row] = read_rows(prompts.files)
        return [
            SampleDraft(r.prompt, r.seed, r.category, r.split, r.prompt, origin=r.where)
            for r in rows
        ]
    count = prompts.count
    if count is None:
        raise UserError(
            "prompts.samples is null, but the prompts are not read from files. Fix: set it to a "
            "number of samples"
        )
    pairs: list[tuple[str, str | None]]
    if prompts.items is not None:
        pairs = [(prompts.items[i % len(prompts.items)], None) for i in range(count)]
    elif prompts.set == "objects":
        pairs = list(object_prompts(count, prompts.seed))
    else:
        pairs = list(tabletop_prompts(count, prompts.seed))
    # Prompts are repeated if there are more samples than prompts.  Each sample has a seed of its
    # own, so that repetitions give different images.
    return [
        SampleDraft(
            prompt,
            prompts.seed + i,
            category,
            None,
            prompt,
            origin=f"prompts.items[{i % len(prompts.items)}]" if prompts.items else "",
        )
        for i, (prompt, category) in enumerate(pairs)
    ]


def n_stored_samples(samples: list[Sample], study: Study) -> int:
    """Return the number of samples whose images are stored; they come first in the list."""
    if study.capture.keep != "statistics":
        return len(samples)
    return sum(sample.split != "train" for sample in samples)
