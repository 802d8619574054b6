"""Conversion of prompts to token ids, and search for text that tokenizers cut off.

Different prompts can have the same token ids, because a tokenizer may ignore case and repeated
spaces, and cuts off text beyond its maximum length.  Token ids therefore show whether two prompts
are the same to a model.
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
"""Token ids of one prompt: one tuple of ids for each tokenizer of a pipeline."""


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of one prompt, and the end of its text if a tokenizer cuts a long prompt off.

    Attributes:
        ids: token ids by tokenizer, with special tokens, without padding, and cut to the
            tokenizer's maximum length.
        cuts: by name of a tokenizer's folder, such as ``tokenizer_2``, the end of the prompt that
            this tokenizer cuts off; tokenizers that take the whole prompt are absent.
    """

    ids: TokenIds
    cuts: dict[str, str]


class PromptTokenizer:
    """Callable that converts a prompt to the token ids that a pipeline's text encoders receive.

    Args:
        folder: folder of the model, which has a subfolder for each tokenizer.
        pipeline: class of the pipeline.  The default value of the parameter
            ``max_sequence_length`` of its ``__call__`` is the maximum length for all tokenizers
            except CLIP's.  Its method ``_text_preprocessing``, if it has one, changes prompts
            before they are tokenized; PixArt's makes them lowercase.

    Raises:
        UserError: a tokenizer cannot be loaded, or has token ids beyond the vocabulary of its text
            encoder.
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
        """Maximum number of tokens, with special tokens, of each tokenizer, by folder name."""
        return {name: limit for name, (_, limit) in self._tokenizers.items()}

    def __call__(self, prompt: str) -> PromptTokens:
        """Convert a prompt to token ids, and find the text that each tokenizer cuts off."""
        ids, cuts = [], {}
        if self._preprocess is not None:
            # There is no pipeline object yet, so `self` is None.  The method `_text_preprocessing`
            # of diffusers uses `self` only to clean captions, which is off here.
            (prompt,) = self._preprocess(None, prompt)
        for name, (tokenizer, limit) in self._tokenizers.items():
            whole = tokenizer(prompt, truncation=False, verbose=False).input_ids
            used = tokenizer(prompt, truncation=True, max_length=limit).input_ids
            ids.append(tuple(int(i) for i in used))
            if len(whole) > limit:
                cuts[name] = tokenizer.decode(whole[limit - 1 : -1]).strip()
        return PromptTokens(tuple(ids), cuts)


def _load(folder: Path, kind: str) -> Any:
    """Load the tokenizer in a folder.

    Args:
        folder: folder of the tokenizer.
        kind: name of its class in transformers; ``AutoTokenizer`` loads unknown classes.
    """
    library = importlib.import_module("transformers")
    tokenizer: Any = getattr(library, kind, None) or library.AutoTokenizer
    try:
        return tokenizer.from_pretrained(folder, local_files_only=True)
    # Damaged tokenizer files make transformers raise exceptions of many types, so all are caught.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model: {folder} holds no usable tokenizer ({reason:.100}). Fix: fetch the "
            "tokenizer again"
        ) from error


def _require_vocabulary(folder: Path, tokenizer: Any, encoder: Path) -> None:
    """Check that the token ids of a tokenizer are within the vocabulary of its text encoder.

    Args:
        folder: folder of the tokenizer, for the message.
        tokenizer: the loaded tokenizer.
        encoder: path of the text encoder's ``config.json``; without a vocabulary size in it,
            nothing is checked.

    Raises:
        UserError: the largest token id is not within the vocabulary.
    """
    try:
        size = int(json.loads(encoder.read_text("utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= size:
        raise UserError(
            f"model: the tokenizer in {folder} has token id {largest}, and the text encoder of "
            f"{encoder} has a vocabulary of {size}. Fix: use the tokenizer and the text encoder of "
            "the same model"
        )
