"""Text to token ids and back, with the tokenizer that the model carries."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from apr_falsify.errors import MissingDependencyError, ModelError
from apr_falsify.gguf_file import GgufFile
from apr_falsify.weights import Model

_USE_TOKENS = "give the ids yourself: --tokens 1,2,3"
_FILES: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
)
"""What a tokenizer can be read from: any one of these sets of files."""


class _Tokenizer(Protocol):
    def encode(self, prompt: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


def encode(model: Model, prompt: str) -> tuple[int, ...]:
    """Return the token ids of ``prompt``, with the special tokens that the model's tokenizer adds.

    They are those of ``AutoTokenizer(...)(prompt)`` for a directory; for a GGUF file those of the
    tokenizer in its metadata, with its beginning-of-sequence token where it asks for one.

    Raises:
        ModelError: the model carries no tokenizer, or one that cannot be built here.
        MissingDependencyError: transformers or tokenizers is not installed.

    """
    return tuple(_tokenizer(model.path, model.format).encode(prompt))


def decode(model: Model, ids: tuple[int, ...]) -> str:
    """Return the text of ``ids``, special tokens included.

    Raises:
        ModelError: the model carries no tokenizer, or one that cannot be built here.
        MissingDependencyError: transformers or tokenizers is not installed.

    """
    return _tokenizer(model.path, model.format).decode(list(ids))


@lru_cache(maxsize=2)
def _tokenizer(path: Path, model_format: str) -> _Tokenizer:
    return {"safetensors": _of_directory, "gguf": _of_gguf}[model_format](path)


def _of_directory(path: Path) -> _Tokenizer:
    if not any(all((path / name).is_file() for name in names) for names in _FILES):
        raise ModelError(
            "the model carries no tokenizer",
            where=path,
            expected=" or ".join(" + ".join(names) for names in _FILES),
            remedy=f"add the tokenizer's files, or {_USE_TOKENS}",
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise _missing(error) from error
    try:
        return _Auto(AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False))
    except Exception as error:  # the tokenizer libraries raise a bare Exception on a garbled file
        raise ModelError(f"the tokenizer cannot be read: {error}", where=path, remedy=_USE_TOKENS) from error


def _missing(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"a prompt needs a tokenizer library ({error})",
        expected="transformers and tokenizers",
        remedy=f"pip install 'apr-falsify[oracle]', or {_USE_TOKENS}",
    )


class _Auto:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer(prompt)["input_ids"]
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))


class _Bpe:
    """A byte-level BPE tokenizer built from GGUF metadata."""

    def __init__(self, tokenizer: Any, first: list[int]) -> None:
        self._tokenizer, self._first = tokenizer, first

    def encode(self, prompt: str) -> list[int]:
        return self._first + list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_DIGITS_TO_3, _DIGIT = r"\p{N}{1,3}", r"\p{N}"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PRE_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "default": (_GPT2,),
    "gpt-2": (_GPT2,),
    "llama-bpe": (_WORDS % _DIGITS_TO_3,),
    "qwen2": (_WORDS % _DIGIT,),
    "smollm": (_DIGIT, _GPT2),
}
"""``tokenizer.ggml.pre`` -> the patterns by which text is split, one after the other, before the merges.

They are those of the tokenizer.json of GPT-2, Llama 3, Qwen2 and SmolLM."""

_SPECIAL_TYPES = (3, 4)
"""``tokenizer.ggml.token_type``: control and user-defined tokens are found in the text as they stand."""


def _of_gguf(path: Path) -> _Tokenizer:
    file = GgufFile(path)
    kind = file.metadata.get("tokenizer.ggml.model")
    tokens, merges = file.array("tokenizer.ggml.tokens"), file.array("tokenizer.ggml.merges")
    if kind is None or tokens is None:
        raise ModelError("the GGUF file carries no tokenizer", where=path, remedy=_USE_TOKENS)
    pre = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    if kind != "gpt2" or merges is None or pre not in PRE_TOKENIZERS:
        raise ModelError(
            f"the tokenizer (model {kind!r}, pre-tokenizer {pre!r}) cannot be built here",
            where=path,
            expected=f"model 'gpt2' with merges and a pre-tokenizer of {', '.join(PRE_TOKENIZERS)}",
            remedy=_USE_TOKENS,
        )
    types = file.array("tokenizer.ggml.token_type") or []
    special = [token for token, number in zip(tokens, types, strict=False) if number in _SPECIAL_TYPES]
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    first = [int(bos)] if file.metadata.get("tokenizer.ggml.add_bos_token", False) and bos is not None else []
    return _Bpe(_build_bpe(tokens, merges, pre, special), first)


def _build_bpe(tokens: list[str], merges: list[str], pre: str, special: list[str]) -> Any:
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise _missing(error) from error
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=pairs))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
