"""Token ids of prompts as the text encoders read them, and the text that is cut off.

Prompts that differ as text can have the same tokens: a tokenizer folds case and spaces, and cuts
text beyond its length.  Samples are therefore identified by token ids.
"""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmprobe_core.errors import UserError

TokenIds = tuple[tuple[int, ...], ...]
"""Ids that each text encoder reads, one tuple per tokenizer."""


@dataclass(frozen=True)
class PromptTokens:
    """One prompt as a pipeline's text encoders read it.

    Attributes:
        ids: ids of each tokenizer, with special tokens and without padding, cut to its length.
        cuts: by name of a tokenizer's folder, such as ``tokenizer_2``, the end of the prompt that
            this tokenizer cuts off; tokenizers that take the whole prompt are absent.
    """

    ids: TokenIds
    cuts: dict[str, str]


class PromptTokenizer:
    """All tokenizers of a pipeline, with the lengths to which the pipeline cuts.

    Args:
        folder: folder of the model, with its tokenizers.
        pipeline: the pipeline's class.  The default of ``max_sequence_length`` of its ``__call__``
            is the length of tokenizers other than CLIP's, and its method ``_text_preprocessing``,
            if it has one, changes prompts before they are tokenized; PixArt's makes them lowercase.

    Raises:
        UserError: a tokenizer cannot be loaded, or has more tokens than its encoder's vocabulary.
    """

    def __init__(self, folder: Path, pipeline: type[Any]) -> None:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        parameters = inspect.signature(pipeline.__call__).parameters
        self._preprocess = getattr(pipeline, "_text_preprocessing", None)
        default_length = (
            parameters["max_sequence_length"].default
            if "max_sequence_length" in parameters
            else None
        )
        self._tokenizers: dict[str, tuple[Any, int]] = {}
        for name, entry in index.items():
            if not name.startswith("tokenizer") or not isinstance(entry, list) or not entry[1]:
                continue
            tokenizer = _load(folder / name, str(entry[1]))
            encoder = folder / name.replace("tokenizer", "text_encoder") / "config.json"
            _require_vocabulary(folder / name, tokenizer, encoder)
            is_clip = "CLIP" in str(entry[1])
            limit = (
                tokenizer.model_max_length if is_clip or default_length is None else default_length
            )
            self._tokenizers[name] = (tokenizer, int(limit))

    @property
    def lengths(self) -> dict[str, int]:
        """Most tokens that each tokenizer takes, with special tokens, by its folder's name."""
        return {name: limit for name, (_, limit) in self._tokenizers.items()}

    def __call__(self, prompt: str) -> PromptTokens:
        """Token ids of a prompt, and the text that each tokenizer cuts off."""
        ids, cuts = [], {}
        if self._preprocess is not None:
            # The method reads nothing of the pipeline itself unless it is to clean captions.
            (prompt,) = self._preprocess(None, prompt)
        for name, (tokenizer, limit) in self._tokenizers.items():
            whole = tokenizer(prompt, truncation=False, verbose=False).input_ids
            used = tokenizer(prompt, truncation=True, max_length=limit).input_ids
            ids.append(tuple(int(i) for i in used))
            if len(whole) > limit:
                cuts[name] = tokenizer.decode(whole[limit - 1 : -1]).strip()
        return PromptTokens(tuple(ids), cuts)


def _load(folder: Path, kind: str) -> Any:
    library = importlib.import_module("transformers")
    tokenizer: Any = getattr(library, kind, None) or library.AutoTokenizer
    try:
        return tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many types for a broken folder
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model: {folder} holds no usable tokenizer ({reason:.100}). Fix: fetch it again"
        ) from error


def _require_vocabulary(folder: Path, tokenizer: Any, encoder: Path) -> None:
    """Refuse a tokenizer with more ids than its text encoder has embeddings."""
    try:
        size = int(json.loads(encoder.read_text("utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # an encoder whose config states no vocabulary
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= size:
        raise UserError(
            f"model: {folder} has token id {largest}, and {encoder} a vocabulary of {size}. Fix: "
            "tokenizer and text encoder must be of one model"
        )
