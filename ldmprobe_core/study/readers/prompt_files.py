"""Reader of CSV files of prompts and seeds, with column names of ldmprobe or Chen et al."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.readers.text_files import decode_text, line_of
from ldmprobe_core.study.readers.value_types import MAX_SEED
from ldmprobe_core.study.splits import SPLITS

_ALIASES = {"prompts": "prompt", "seeds": "seed", "prompt_inds": "index"}
"""Column name in the files of Chen et al. (2023) to its name in ldmprobe."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MAX_DIGITS = 30
"""Largest number of characters of a seed; Python cannot convert thousands of digits."""
_COLUMNS = ("prompt", "seed", "split", "class", "index")


@dataclass(frozen=True)
class Row:
    """One row of a prompt file: an image to generate.

    Attributes:
        split: split that the file gives; None if the file has no column of splits.
        category: class that the prompt names; None if unknown.
        where: file and line of the row, for messages.
    """

    prompt: str
    seed: int
    split: str | None
    category: str | None
    where: str


def digest_of(files: Mapping[Any, str]) -> str:
    """Compute a hash, 16 hex digits, of the contents of prompt files.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for split in sorted(files):
        digest.update(split.encode() + hashlib.sha256(_bytes(files[split])).digest())
    return digest.hexdigest()[:16]


def read_rows(files: Mapping[Any, str]) -> list[Row]:
    """Read every row of a study's prompt files, in order.

    Args:
        files: path by split; the file of the key ``all`` may have a column of splits.

    Raises:
        UserError: a row or column is invalid; the message names the file and line of the first.
    """
    rows = [
        row
        for split in ("all", "train", "test")
        if split in files
        for row in _read(files[split], None if split == "all" else split)
    ]
    origins: dict[tuple[str, int], str] = {}
    split_of: dict[str, tuple[str | None, str]] = {}
    for row in rows:
        key = row.prompt, row.seed
        if key in origins:
            raise UserError(
                f"{row.where}: prompt {row.prompt!r:.60} with seed {row.seed} is already "
                f"given in {origins[key]}, so both images would be equal. Fix: remove one row"
            )
        origins[key] = row.where
        split, first = split_of.setdefault(row.prompt, (row.split, row.where))
        if split != row.split:
            raise UserError(
                f"{row.where}: prompt {row.prompt!r:.60} is in the split {row.split}, but {first} "
                f"puts it into {split}. Fix: put all images of a prompt into one split"
            )
    return rows


def encoding_notes(files: Mapping[Any, str]) -> tuple[str, ...]:
    """Return a note on each prompt file that is not UTF-8 and is read as Windows-1252.

    Raises:
        UserError: a file cannot be read.
    """
    notes = []
    for path in files.values():
        data = _bytes(path)
        try:
            data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            text = decode_text(data, path)
            line = line_of(text, error.start)
            notes.append(
                f"{path} is not UTF-8 and is read as Windows-1252, such as "
                f"{text.splitlines()[line - 1]!r:.60} on line {line}"
            )
    return tuple(notes)


def _bytes(path: str) -> bytes:
    """Read a prompt file's bytes, and refuse pipes and devices."""
    try:
        # A pipe can be read once only, and a device such as /dev/zero never ends.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"prompts.files: {path} is not a file. Fix: give a CSV file")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"prompts.files: {path} cannot be read ({type(error).__name__}). Fix: check the path, "
            "which is relative to the current folder"
        ) from error


def _read(path: str, split: str | None) -> list[Row]:
    """Read the rows of one prompt file; ``split`` is the split of all its rows, if given."""
    data = _bytes(path)
    text = decode_text(data, path)
    lines = list(io.StringIO(text, newline=""))
    header, end = _record(path, lines, 0)
    names = [_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in header]
    _check_header(path, header, names, split)
    rows = []
    while end < len(lines):
        origin = f"{path}, line {end + 1}"
        fields, end = _record(path, lines, end)
        if not any(value.strip() for value in fields):
            continue
        if len(fields) != len(names):
            raise UserError(
                f"{origin}: {len(fields)} fields for {len(names)} columns. Fix: separate "
                "fields by commas, and quote prompts that contain commas"
            )
        rows.append(_row(dict(zip(names, fields, strict=True)), origin, split))
    if not rows:
        raise UserError(f"{path}: the file has no rows. Fix: add one row for each image")
    return rows


def _record(path: str, lines: list[str], start: int) -> tuple[list[str], int]:
    """Read the fields of the record that begins at the index ``start`` of a file's lines.

    A quote after a comma and a space opens a quoted field if a comma or the line's end follows its
    closing quote.  Otherwise it is a part of the text, as in ``1, "The Scream" by Munch``.

    Returns:
        the fields, and the index of the line after the record.

    Raises:
        UserError: the record is not CSV.
    """

    def reader(*, skip_spaces: bool) -> Any:
        # In the non-strict mode, a quote that is never closed would silently make all following
        # lines part of one prompt.
        rest = map(lines.__getitem__, range(start, len(lines)))
        return csv.reader(rest, strict=True, skipinitialspace=skip_spaces)

    quoted = reader(skip_spaces=True)
    try:
        return next(quoted, []), start + quoted.line_num
    except csv.Error as error:
        if quoted.line_num == 1:
            with suppress(csv.Error):
                literal = next(reader(skip_spaces=False))
                # An odd number of quotes is one that is not closed, or that a comma divides.
                if all(value.count('"') % 2 == 0 for value in literal):
                    return literal, start + 1
        line = start + quoted.line_num
        if "field limit" in str(error):
            raise UserError(
                f"{path}, line {line}: a field has more than {csv.field_size_limit()} "
                "characters. Fix: close the quote that it begins with, or shorten the prompt"
            ) from None
        raise UserError(
            f"{path}, line {line}: not CSV ({error}). Fix: put prompts that contain "
            "commas or quotes into quotes, double each quote inside them, and let a comma follow "
            "the last quote at once"
        ) from error


def _check_header(path: str, header: list[str], names: list[str], split: str | None) -> None:
    """Check the header of a prompt file for a wrong separator and wrong or missing columns."""
    if header and header[0].lower().startswith("sep="):
        raise UserError(
            f"{path}, line 1: the line names a separator (sep=), not the columns. Fix: remove this "
            "line"
        )
    for mark, plural in _SEPARATORS.items():
        if len(header) == 1 and mark in header[0]:
            raise UserError(
                f"{path}, line 1: the columns are separated by {plural}. Fix: separate them by "
                "commas"
            )
    for required in ("prompt", "seed"):
        if required not in names:
            raise UserError(
                f"{path}, line 1: no column {required!r} among {header!s:.120}. Fix: name the "
                "columns prompt, seed and, optionally, split and class"
            )
    for name, original in zip(names, header, strict=True):
        if name and name not in _COLUMNS:
            raise UserError(
                f"{path}, line 1: column {original!r:.40} is not known. Fix: name the columns "
                "prompt, seed and, optionally, split and class"
            )
        if names.count(name) > 1:
            raise UserError(
                f"{path}, line 1: column {original!r} is given twice. Fix: remove one of them"
            )
    if split is not None and "split" in names:
        raise UserError(
            f"{path}, line 1: the file has a column split, but prompts.files assigns all its rows "
            f"to {split}. Fix: remove the column, or give only this file as prompts.files"
        )


def _row(fields: dict[str, str], where: str, split: str | None) -> Row:
    """Convert and check the fields of one line; ``where`` names file and line in messages."""
    prompt = fields.get("prompt", "").strip()
    if not prompt:
        raise UserError(f"{where}: the prompt is empty. Fix: write a prompt, or remove the line")
    text = fields.get("seed", "").strip()
    if not text.isdecimal() or len(text) > _MAX_DIGITS or int(text) > MAX_SEED:
        raise UserError(
            f"{where}: seed is {text!r:.30}. Fix: give a whole number from 0 to {MAX_SEED}"
        )
    if "split" in fields:
        split = fields["split"].strip()
        if split not in SPLITS:
            raise UserError(
                f"{where}: split is {split!r:.30}. Fix: give one of {', '.join(SPLITS)}"
            )
    category = fields.get("class", "").strip() or None
    return Row(prompt, int(text), split, category, where)
