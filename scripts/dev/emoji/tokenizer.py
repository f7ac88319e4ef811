"""Train the tokenizer: a byte-level BPE of the captions' words, as a stock ``CLIPTokenizer``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ....evaluation.emoji.vocabulary import BACKGROUNDS, STYLES, caption
from ....guidance.files import replacing_folder
from . import harvested
from .harvested import Drawing

TOKENS = 24  # the longest prompt, its two ends included
VOCABULARY = 3275  # 2 ends, 2 x 256 bytes (inside and at the end of a word) and the merges


def corpus(drawings: Iterable[Drawing]) -> Iterator[str]:
    """Every text that a caption may hold: labels, tags, style and background words."""
    for style in STYLES:
        for background in BACKGROUNDS:
            yield caption("", style, background)
    for drawing in drawings:
        yield drawing.label
        yield from drawing.tags


def train(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """A ``CLIPTokenizer`` whose BPE is learnt from `texts`, of at most `vocabulary` tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer()  # for its normalization and its way of splitting words
    learner = Tokenizer(BPE(unk_token=clip.unk_token, end_of_word_suffix="</w>"))
    learner.normalizer = clip.backend_tokenizer.normalizer
    learner.pre_tokenizer = clip.backend_tokenizer.pre_tokenizer
    ends = [clip.bos_token, clip.eos_token]
    # Every byte in both its forms: a word that no caption holds is then spelt instead of unknown.
    byte_ends = [f"{byte}</w>" for byte in sorted(ByteLevel.alphabet())]
    options: dict[str, Any] = {"min_frequency": 2, "special_tokens": ends, "show_progress": False}
    learner.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=vocabulary - len(byte_ends),
            initial_alphabet=sorted(ByteLevel.alphabet()),
            end_of_word_suffix="</w>",
            **options,
        ),
    )
    model = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = dict(model["vocab"])
    for token in byte_ends:
        vocab.setdefault(token, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=TOKENS)


def tokenizer(work: Path) -> int:
    """Write ``tokenizer/``; returns the number of tokens. Seconds; starts over when run again."""
    _, drawings = harvested.load(work)
    trained = train(corpus(drawings))
    with replacing_folder(work / "tokenizer") as folder:
        trained.save_pretrained(folder)
    return len(trained)
