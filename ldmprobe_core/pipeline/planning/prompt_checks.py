"""Checks of prompts: duplicate samples, prompts that are too long, and unknown words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ldmprobe_core.errors import UserError, verb
from ldmprobe_core.models.files.tokenization import PromptTokenizer, PromptTokens, TokenIds
from ldmprobe_core.study.readers.model_record import ModelRecord
from ldmprobe_core.study.samples import Sample

_SEED_BITS = 0xFFFFFFFF
"""Mask of the bits of a seed that PyTorch's random generator on the CPU uses."""

_MAX_NAMED = 3
"""Largest number of prompts that one warning lists."""

_MAX_WORDS = 12
"""Largest number of words that one warning lists."""


def check_samples(samples: Sequence[Sample], tokenize: PromptTokenizer) -> tuple[str, ...]:
    """Check that no two samples give the same image, and that no prompt is in two splits.

    Prompts are compared by their token ids, since prompts with the same ids are the same to the
    model.

    Args:
        samples: all samples of the study.
        tokenize: all tokenizers of the model.

    Returns:
        warnings about prompts that tokenizers cut off, one sentence for each of the text encoders
        that read different text; empty if no prompt is cut.

    Raises:
        UserError: two samples have the same token ids and the same seed, or have the same token ids
            and are in different splits.
    """
    tokens = {prompt: tokenize(prompt) for prompt in dict.fromkeys(s.prompt for s in samples)}
    images: dict[tuple[TokenIds, int], Sample] = {}
    splits: dict[TokenIds, Sample] = {}
    for sample in samples:
        ids = tokens[sample.prompt].ids
        twin = images.setdefault((ids, sample.seed & _SEED_BITS), sample)
        if twin is not sample:
            seeds = f"same seed ({sample.seed})"
            if sample.seed != twin.seed:
                seeds = f"same last 32 bits of the seed ({sample.seed} and {twin.seed})"
            raise UserError(
                f"{_name(sample)}: the tokenizers read this as the same prompt as {_name(twin)}, "
                f"and both have the {seeds}, so their images would be equal. Fix: remove one of "
                "them, or give it another seed."
            )
        first = splits.setdefault(ids, sample)
        if first.split != sample.split:
            raise UserError(
                f"{_name(sample)}: the tokenizers read this as the same prompt as {_name(first)}, "
                f"but they are in the splits {sample.split} and {first.split}. Fix: "
                f"{_remedy_of_leak(sample)}."
            )
    return _cut_notes(tokens, tokenize.lengths)


def _remedy_of_leak(sample: Sample) -> str:
    """Return the remedy for a prompt that is in two splits, which depends on its source."""
    alike = "write both prompts alike, or so that they differ in what the model reads"
    if not sample.origin:
        return "give prompts.items or prompts.files in place of this set"
    if sample.origin.startswith("prompts.items"):
        return alike
    return f"put both into one split of prompts.files, or {alike}"


def _cut_notes(tokens: dict[str, PromptTokens], lengths: dict[str, int]) -> tuple[str, ...]:
    """Warn about prompts that are so long that the model's tokenizers cut them off.

    Args:
        tokens: tokens by prompt.
        lengths: most tokens by name of a tokenizer.

    Returns:
        one sentence for all tokenizers that cut the same text, which says if others read all of it.
    """
    cuts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name in lengths:
        by_prompt = tuple((p, one.cuts[name]) for p, one in tokens.items() if name in one.cuts)
        if by_prompt:
            cuts.setdefault(by_prompt, []).append(name)
    notes = []
    for by_prompt, names in cuts.items():
        reader = _reader(names, lengths)
        named = "; ".join(f"{p!r:.60} loses {cut!r:.60}" for p, cut in by_prompt[:_MAX_NAMED])
        more = f"; and {len(by_prompt) - _MAX_NAMED} more" if len(by_prompt) > _MAX_NAMED else ""
        notes.append(
            f"{len(by_prompt)} of {len(tokens)} prompts {verb(len(by_prompt))} longer than "
            f"{reader}: {named}{more}"
        )
    return tuple(notes)


def _reader(names: list[str], lengths: dict[str, int]) -> str:
    """Return the clause of a message that names the reader of a text, as in ``the model reads``.

    Args:
        names: names of the tokenizers.
        lengths: most tokens by name, of all tokenizers.
    """
    if len(names) == len(lengths):
        return "the model reads"
    encoders = " and ".join(name.replace("tokenizer", "text_encoder") for name in names)
    return f"{encoders} read{'s' if len(names) == 1 else ''} ({lengths[names[0]]} tokens)"


def long_text_notes(key: str, text: str, tokenize: PromptTokenizer) -> tuple[str, ...]:
    """Warn about the end of a text, such as the negative prompt, that tokenizers cut off.

    Args:
        key: key of the study that gives the text, such as ``prompts.negative``.
        text: the text.
        tokenize: all tokenizers of the model.

    Returns:
        one sentence for all tokenizers that cut the same end off.
    """
    names: dict[str, list[str]] = {}
    for name, cut in tokenize(text).cuts.items():
        names.setdefault(cut, []).append(name)
    return tuple(
        f"{key} is longer than {_reader(those, tokenize.lengths)}: it loses {cut!r:.60}"
        for cut, those in names.items()
    )


def invisible_notes(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Warn about invisible characters in prompts, which text copied from a web page may have.

    Returns:
        a warning of one sentence; empty if there are none.
    """
    prompts = dict.fromkeys(sample.prompt for sample in samples)
    invisible = {
        prompt: character
        for prompt in prompts
        for character in prompt
        if unicodedata.category(character) in ("Cf", "Cc", "Co", "Cn") and not character.isspace()
    }
    if not invisible:
        return ()
    prompt, character = next(iter(invisible.items()))
    return (
        f"{len(invisible)} of {len(prompts)} prompts {verb(len(invisible), 'has', 'have')} "
        "invisible characters, which the model "
        f"may read as parts of words: U+{ord(character):04X} in {prompt!a:.60}",
    )


def unknown_word_notes(samples: Sequence[Sample], record: ModelRecord) -> tuple[str, ...]:
    """Warn about words in the prompts that the model was not trained on.

    Args:
        samples: all samples of the study.
        record: record of the model; without a list of words in it, there is no warning.

    Returns:
        a warning of one sentence; empty if all words are known.
    """
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    unknown = {prompt: record.unknown_words(prompt) for prompt in prompts}
    affected = [prompt for prompt in prompts if unknown[prompt]]
    if not affected:
        return ()
    words = list(dict.fromkeys(word for prompt in affected for word in unknown[prompt]))
    named = ", ".join(map(repr, words[:_MAX_WORDS]))
    more = f" and {len(words) - _MAX_WORDS} more" if len(words) > _MAX_WORDS else ""
    return (
        f"{len(affected)} of {len(prompts)} prompts {verb(len(affected), 'has', 'have')} words or "
        "symbols that the model was not "
        f"trained on, so that their images may not show them: {named}{more}",
    )


def _name(sample: Sample) -> str:
    """Return a sample's name for messages: the file and line of its prompt, or its index."""
    origin = sample.origin or f"sample {sample.index}"
    return f"{origin} ({sample.prompt!r:.60})"
