"""Language models: GPT-2 from its configuration, in its published size or small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activations import Activation, place
from .recipe import Recipe
from .task import Batch

SHAPES: dict[str, dict[str, int]] = {
    "small-gpt": {"n_embd": 128, "n_layer": 2, "n_head": 4},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}


def build(recipe: Recipe, activation: Activation, vocabulary: int) -> Any:
    """The model with fresh weights; ``model_args`` go to transformers' GPT2Config.

    Raises:
        ValueError: there is no such model.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if recipe.model not in SHAPES:
        raise ValueError(f"model is {recipe.model!r}; allowed are {', '.join(SHAPES)}")
    arguments: dict[str, Any] = {
        "vocab_size": vocabulary,
        "n_positions": recipe.context,
        "use_cache": False,
        "bos_token_id": vocabulary - 1,
        "eos_token_id": vocabulary - 1,
        **SHAPES[recipe.model],
        **recipe.model_args,
    }
    known = {*GPT2Config().to_dict(), *GPT2Config.attribute_map, "attn_implementation"}
    if unknown := [name for name in recipe.model_args if name not in known]:
        public = ", ".join(sorted(name for name in known if name[0] != "_"))
        raise ValueError(f"model_args has {unknown[0]!r}; allowed are {public}")
    try:
        model = GPT2LMHeadModel(GPT2Config(**arguments))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"model_args is {recipe.model_args!r}: {error!r}") from error
    place(model, activation, torch.zeros(1, 2, dtype=torch.int64))
    return model


def byte_tokenizer() -> Any:
    """Every byte is a token; byte 0, which no text has, ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    signs = bytes_to_unicode()
    by_byte = Tokenizer(models.BPE(vocab={sign: byte for byte, sign in signs.items()}, merges=[]))
    by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by_byte.decoder = decoders.ByteLevel()
    end = signs[0]
    return PreTrainedTokenizerFast(tokenizer_object=by_byte, eos_token=end, pad_token=end)


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each next token, nats: the mean."""
    logits, targets = _next_tokens(model, batch)
    return F.cross_entropy(logits, targets)


def measure(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    logits, targets = _next_tokens(model, batch)
    return {
        "count": torch.tensor(float(len(targets)), device=logits.device),
        "loss": F.cross_entropy(logits, targets, reduction="sum"),
        "accuracy": (logits.argmax(1) == targets).sum(),
    }


def _next_tokens(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    (tokens,) = batch
    logits = model(input_ids=tokens).logits[:, :-1].float()
    return logits.flatten(0, 1), tokens[:, 1:].flatten()
