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

_LEAST_TOKENS = 3
"""Number of tokens of the shortest prompt that is not empty: start, one word and end."""


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of one prompt, and the text at its end that exceeds a tokenizer's maximum length.

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
        pipeline: class of the pipeline.  If its ``__call__`` has a parameter
            ``max_sequence_length``, its default value is the maximum length for tokenizers other
            than CLIP's, and the first CLIP tokenizer's maximum length applies to all of CLIP's, as
            in the pipelines of Stable Diffusion 3 and Flux.  The pipeline's method
            ``_text_preprocessing``, if it has one, changes prompts before they are tokenized;
            PixArt's makes them lowercase.  Its method ``_maybe_convert_prompt``, if it has one,
            replaces the word of a textual inversion with several vectors by a word for each.

    Raises:
        UserError: a tokenizer cannot be loaded, has token ids beyond the vocabulary of its text
            encoder, or takes more tokens than the text encoder.
    """

    def __init__(self, folder: Path, pipeline: type[Any]) -> None:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        loaded = {}
        for name, entry in sorted(index.items()):
            # Skip a tokenizer if the pipeline lacks its text encoder, because nothing uses it then.
            encoder = index.get(name.replace("tokenizer", "text_encoder"))
            if name.startswith("tokenizer") and _given(entry) and _given(encoder):
                loaded[name] = _load(folder / name, str(entry[1])), str(entry[1])
        self._tokenizers = _with_lengths(loaded, pipeline)
        self._preprocess = getattr(pipeline, "_text_preprocessing", None)
        self._convert = getattr(pipeline, "_maybe_convert_prompt", None)
        for name, (tokenizer, limit) in self._tokenizers.items():
            encoder = name.replace("tokenizer", "text_encoder")
            _require_fitting(folder / name, tokenizer, limit, folder / encoder / "config.json")
        lengths = list(dict.fromkeys(self.lengths.values()))
        if not _takes_length(pipeline) and len(lengths) > 1:
            raise UserError(
                f"model: the tokenizers in {folder} have different values of model_max_length "
                f"({', '.join(map(str, lengths))}), but the pipeline needs equal numbers of tokens "
                "from all text encoders. Fix: correct their tokenizer_config.json"
            )

    @classmethod
    def of_pipeline(cls, pipeline: Any) -> PromptTokenizer:
        """Build a `PromptTokenizer` from the tokenizers of a loaded pipeline."""
        loaded = {
            name: (_text_part(part), type(part).__name__)
            for name, part in sorted(pipeline.components.items())
            if name.startswith("tokenizer")
            and part is not None
            and getattr(pipeline, name.replace("tokenizer", "text_encoder"), None) is not None
        }
        tokenizer = cls.__new__(cls)
        tokenizer._tokenizers = _with_lengths(loaded, type(pipeline))
        tokenizer._preprocess = getattr(type(pipeline), "_text_preprocessing", None)
        tokenizer._convert = getattr(type(pipeline), "_maybe_convert_prompt", None)
        return tokenizer

    @property
    def lengths(self) -> dict[str, int]:
        """Maximum number of tokens, including special tokens, by name of the tokenizer's folder."""
        return {name: limit for name, (_, limit) in self._tokenizers.items()}

    def __call__(self, prompt: str) -> PromptTokens:
        """Convert a prompt to token ids, and find the text that each tokenizer cuts off."""
        ids, cuts = [], {}
        if self._preprocess is not None:
            # No pipeline object exists yet, so None is passed as `self`.  Diffusers' method
            # `_text_preprocessing` uses `self` only to clean captions, which this call does not ask
            # for, and `_maybe_convert_prompt` does not use it.
            (prompt,) = self._preprocess(None, prompt)
        for name, (tokenizer, limit) in self._tokenizers.items():
            text = self._convert(None, prompt, tokenizer) if self._convert else prompt
            whole = tokenizer(text, truncation=False, verbose=False).input_ids
            used = tokenizer(text, truncation=True, max_length=limit).input_ids
            ids.append(tuple(int(i) for i in used))
            if len(whole) > limit:
                cuts[name] = tokenizer.decode(whole[limit - 1 : -1]).strip()
        return PromptTokens(tuple(ids), cuts)


def _takes_length(pipeline: type[Any]) -> bool:
    """Return whether calls of a pipeline class have the argument ``max_sequence_length``."""
    return "max_sequence_length" in inspect.signature(pipeline.__call__).parameters


def _with_lengths(
    loaded: dict[str, tuple[Any, str]], pipeline: type[Any]
) -> dict[str, tuple[Any, int]]:
    """Return each tokenizer with the maximum number of tokens that its pipeline takes.

    Args:
        loaded: tokenizer and name of its class, by name in the pipeline.
        pipeline: class of the pipeline.
    """
    if not _takes_length(pipeline):
        return {name: (one, int(one.model_max_length)) for name, (one, _) in loaded.items()}
    length = int(inspect.signature(pipeline.__call__).parameters["max_sequence_length"].default)
    clip = [int(one.model_max_length) for one, kind in loaded.values() if "CLIP" in kind]
    return {
        name: (one, clip[0] if "CLIP" in kind else length) for name, (one, kind) in loaded.items()
    }


def _given(entry: Any) -> bool:
    """Return whether an entry of ``model_index.json`` names a component instead of null."""
    return isinstance(entry, list) and len(entry) == 2 and bool(entry[1])


def _load(folder: Path, kind: str) -> Any:
    """Load the tokenizer in a folder.

    Args:
        folder: folder of the tokenizer.
        kind: name of its class in transformers; ``AutoTokenizer`` loads unknown classes.
    """
    library = importlib.import_module("transformers")
    tokenizer: Any = getattr(library, kind, None) or library.AutoTokenizer
    try:
        loaded = _text_part(tokenizer.from_pretrained(folder, local_files_only=True))
    # Damaged tokenizer files make transformers raise exceptions of many types, so all are caught.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model: {folder} holds no usable tokenizer ({reason:.100}). Fix: fetch the "
            "tokenizer again"
        ) from error
    _require_usable(folder, loaded)
    return loaded


def _require_usable(folder: Path, tokenizer: Any) -> None:
    """Check that a tokenizer has a vocabulary, a padding token and a numeric maximum length.

    Without its vocabulary file, transformers builds a tokenizer that has special tokens only and
    reads every prompt as the same.  With a ``merges.txt`` that was cut, it divides words into
    smaller parts than the text encoder was trained on.

    Raises:
        UserError: one of them is missing, or a word of a byte-pair encoding has no merge.
    """
    length = tokenizer.model_max_length
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if isinstance(length, bool) or not isinstance(length, (int, float)):
        problem = f"has a model_max_length that is not a number ({length!r:.40})"
    elif tokenizer.pad_token is None:
        problem = "has no padding token (pad_token), which pipelines need"
    elif not any(character.isalnum() for word in words for character in word):
        problem = "has no vocabulary, only special tokens"
    elif unmade := _words_without_merge(folder, words - set(tokenizer.get_added_vocab())):
        problem = (
            f"lacks {len(unmade)} merges in merges.txt, so it never gives {unmade[0]!r:.40} of its "
            "vocabulary"
        )
    else:
        return
    raise UserError(f"model: the tokenizer in {folder} {problem}. Fix: fetch its files again")


def _words_without_merge(folder: Path, words: set[str]) -> list[str]:
    """Return the words of a byte-pair encoding that no merge makes, sorted.

    In ``merges.txt``, each line has the two parts of one word.  A word of one character, with or
    without the mark of a word's end, needs no merge.

    Args:
        folder: folder of the tokenizer; the list is empty if its files are not ``vocab.json`` and
            ``merges.txt`` alone.
        words: its vocabulary without special and added tokens.
    """
    path = folder / "merges.txt"
    if (folder / "tokenizer.json").is_file() or not path.is_file():
        return []
    lines = (line.split() for line in path.read_text("utf-8").split("\n"))
    made = {"".join(parts) for parts in lines if len(parts) == 2}
    return sorted(word for word in words - made if len(word.removesuffix("</w>")) > 1)


def _text_part(tokenizer: Any) -> Any:
    """Return the tokenizer inside a text and image processor (Flux 2); else return the argument."""
    is_processor = isinstance(tokenizer, importlib.import_module("transformers").ProcessorMixin)
    return tokenizer.tokenizer if is_processor else tokenizer


def _require_fitting(folder: Path, tokenizer: Any, limit: int, encoder: Path) -> None:
    """Check that a tokenizer's largest id and maximum length are within its text encoder's limits.

    Args:
        folder: folder of the tokenizer, for the message.
        tokenizer: the loaded tokenizer.
        limit: most tokens of a prompt, with special tokens.
        encoder: path of the text encoder's ``config.json``; sizes that it does not state are not
            checked.

    Raises:
        UserError: the largest token id is not within the vocabulary, or prompts can have more
            tokens than the text encoder has positions, or no token of their own.
    """
    try:
        config = json.loads(encoder.read_text("utf-8"))
        vocabulary, positions = config.get("vocab_size"), config.get("max_position_embeddings")
        end = config.get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if "CLIP" in type(tokenizer).__name__ and not isinstance(end, int | None):
        # CLIP's pooled embedding is its output at the end token, so the config must state a single
        # id for that token.
        raise UserError(
            f"model: eos_token_id in {encoder} is not a single token id ({end!r:.40}). Fix: "
            "correct it"
        )
    largest = max(tokenizer.get_vocab().values(), default=0)
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise UserError(
            f"model: the tokenizer in {folder} has token id {largest}, and the text encoder of "
            f"{encoder} has a vocabulary of {vocabulary}. Fix: use the tokenizer and the text "
            "encoder of the same model"
        )
    if limit < _LEAST_TOKENS or (isinstance(positions, int) and limit > positions):
        raise UserError(
            f"model: the tokenizer in {folder} takes prompts of up to {limit:.7g} tokens "
            f"(model_max_length), but the text encoder of {encoder} takes from {_LEAST_TOKENS} to "
            f"{positions or 'any number'} (max_position_embeddings). Fix: correct "
            "model_max_length in the tokenizer's tokenizer_config.json"
        )
