"""Prompts in CSV files: our own columns, or those of the paper's published files."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.splits import SPLITS
from ldmprobe_core.study.text_files import decode_text

_ALIASES = {"prompts": "prompt", "seeds": "seed", "prompt_inds": "index"}
"""The paper's names of the columns; its third one, an index, is not needed."""
_COLUMNS = ("prompt", "seed", "split", "class", "index")


@dataclass(frozen=True)
class Row:
    """One image to be generated.

    Attributes:
        split: as the file has it; None where it has none.
    """

    prompt: str
    seed: int
    split: str | None
    category: str | None
    where: str


def digest_of(files: Mapping[Any, str]) -> str:
    """16 hex digits of the files' contents.

    Raises:
        UserError: one cannot be read.
    """
    found = hashlib.sha256()
    for split in sorted(files):
        found.update(split.encode() + hashlib.sha256(_bytes(files[split])).digest())
    return found.hexdigest()[:16]


def read_rows(files: Mapping[Any, str]) -> list[Row]:
    """Every row of a study's prompt files, in order.

    Args:
        files: split to path; ``all`` is a file that may have a column of splits.

    Raises:
        UserError: a mistake, with the file and the line it is in.
    """
    rows = [
        row
        for split in ("all", "train", "test")
        if split in files
        for row in _read(files[split], None if split == "all" else split)
    ]
    seen: dict[tuple[str, int], str] = {}
    split_of: dict[str, tuple[str | None, str]] = {}
    for row in rows:
        key = row.prompt, row.seed
        if key in seen:
            raise UserError(
                f"{row.where}: prompt {row.prompt!r:.60} with seed {row.seed} is on "
                f"{seen[key]} already: remove one, the two images would be the same"
            )
        seen[key] = row.where
        split, first = split_of.setdefault(row.prompt, (row.split, row.where))
        if split != row.split:
            raise UserError(
                f"{row.where}: prompt {row.prompt!r:.60} is in {row.split}, and on {first} in "
                f"{split}: all images of a prompt belong in one split"
            )
    return rows


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"prompts.files: {path} cannot be read ({type(error).__name__}): check the path, which "
            "counts from the folder the command is run in"
        ) from error


def _read(path: str, split: str | None) -> list[Row]:
    data = _bytes(path)
    text = decode_text(data, path)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(reader, [])
        names = [_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in header]
        _check_header(path, header, names, split)
        rows = []
        line = reader.line_num + 1
        for fields in reader:
            if any(value.strip() for value in fields):
                where = f"{path}, line {line}"
                rows.append(_row(dict(zip(names, fields, strict=False)), len(fields), where, split))
                if len(fields) != len(names):
                    raise UserError(
                        f"{where}: {len(fields)} fields for {len(names)} columns: quote a prompt "
                        "that holds commas"
                    )
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    if not rows:
        raise UserError(f"{path}: it has no rows: one image each is needed")
    return rows


def _check_header(path: str, header: list[str], names: list[str], split: str | None) -> None:
    if len(header) == 1 and ";" in header[0]:
        raise UserError(
            f"{path}, line 1: the columns are separated by semicolons. Fix: separate them by commas"
        )
    for needed in ("prompt", "seed"):
        if needed not in names:
            raise UserError(
                f"{path}, line 1: no column {needed!r} among {', '.join(header) or 'none'}: the "
                "columns are prompt, seed and, if wanted, split and class"
            )
    for name, original in zip(names, header, strict=True):
        if name and name not in _COLUMNS:
            raise UserError(
                f"{path}, line 1: column {original!r:.40} is not known: the columns are prompt, "
                "seed and, if wanted, split and class"
            )
        if names.count(name) > 1:
            raise UserError(f"{path}, line 1: column {original!r} is there twice: remove one")
    if split is not None and "split" in names:
        raise UserError(
            f"{path}, line 1: a column split in a file that is the {split} split: remove it, or "
            "give the file as prompts.files alone"
        )


def _row(fields: dict[str, str], count: int, where: str, split: str | None) -> Row:
    prompt = fields.get("prompt", "").strip()
    if not prompt:
        raise UserError(f"{where}: the prompt is empty: write one or remove the line")
    text = fields.get("seed", "").strip()
    if not text.isdecimal() or int(text) >= 2**63:
        raise UserError(f"{where}: seed is {text!r:.30}: give a whole number of at least 0")
    if "split" in fields:
        split = fields["split"].strip()
        if split not in SPLITS:
            raise UserError(f"{where}: split is {split!r:.30}: give {', '.join(SPLITS)}")
    category = fields.get("class", "").strip() or None
    return Row(prompt, int(text), split, category, where)
