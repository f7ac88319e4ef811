"""What the builders share: tokenizers of single letters, text encoders, the arguments of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...conftest import make_tokenizer

PROMPTS = ["a cat", "red", "the sky", "b", "no dog"]
NEGATIVES = ["blue", "xx", "a tree", "dim", "fog"]

WIDTH = 16
"""Size of every text encoder's hidden states."""

_LETTERS = [chr(code) for code in range(33, 127)]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = len(_SPECIAL) + 1 + len(_LETTERS)
"""Words of `fast_tokenizer` and `t5_tokenizer`."""

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def request(batch: int, negative: bool, given: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call: those of most pipelines, the pipeline's own, the test's own.

    A generator for each sample, fresh, since pipelines move them on.
    """
    common: dict[str, Any] = {"prompt": PROMPTS[:batch], "num_inference_steps": 2, "output_type": "latent"}
    common["generator"] = [torch.Generator().manual_seed(7 + sample) for sample in range(batch)]
    if negative:
        common["negative_prompt"] = NEGATIVES[:batch]
    return common | given | more


def louder(module: Any, names: Sequence[str], factor: float) -> None:
    """Scale the weights whose names contain one of `names`.

    Random weights answer all prompts nearly alike; louder text makes a difference that a wrong row would show.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(part in name for part in names):
                parameter.mul_(factor)


def clip_tokenizer() -> Any:
    return make_tokenizer()


def clip_encoder(projection: bool = False, layers: int = 2, positions: int = 16) -> Any:
    """A CLIP text encoder; with `projection` the kind that also gives a projected summary."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(make_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=16,
        projection_dim=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    words = ["<pad>", "</s>", "<unk>", "▁", *_LETTERS]
    return T5TokenizerFast(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=64)


def t5_encoder(multilingual: bool = False, width: int = WIDTH) -> Any:
    """A T5 encoder; UMT5's with `multilingual`."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    options = {"vocab_size": WORDS, "d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    if multilingual:
        return UMT5EncoderModel(UMT5Config(**options)).eval()
    return T5EncoderModel(T5Config(**options)).eval()


def bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *("##" + letter for letter in _LETTERS)]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=77)


def roberta_tokenizer() -> Any:
    from tokenizers import pre_tokenizers
    from transformers import RobertaTokenizer

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return RobertaTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=32)


def fast_tokenizer(**options: Any) -> Any:
    """A tokenizer that puts ``<s>`` before the letters: what Llama, Gemma and GLM do."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, " ", *_LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names, **options)


def qwen_tokenizer(*words: str) -> Any:
    """A Qwen tokenizer of single bytes with a chat template; each of `words` is one token."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *words]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: index for index, word in enumerate([*special, *alphabet])}
    tokenizer = Qwen2TokenizerFast(vocab=vocabulary, merges=[], chat_template=_CHAT, model_max_length=512)
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    return tokenizer


def decoder_options(words: int, layers: int = 2) -> dict[str, Any]:
    """The configuration of a tiny decoder, under the names that Llama, Qwen and Gemma share."""
    return {
        "vocab_size": words,
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
