"""Text to token ids and back, with the tokenizer that the model carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from apr_falsify.errors import MissingDependencyError, ModelError
from apr_falsify.formats.gguf import GgufFile
from apr_falsify.formats.weights import Model

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
    return {"safetensors": _of_directory, "gguf": _Bpe, "apr": _unread}[model_format](path)


def _unread(path: Path) -> _Tokenizer:
    raise ModelError("the tokenizer of an .apr file is not read here", where=path, remedy=_USE_TOKENS)


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
    """A byte-level BPE tokenizer in the metadata of a GGUF file; built when a text is to be encoded."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, GgufFile(path)
        tokens = self._array("tokens", str)
        if tokens is None or "tokenizer.ggml.model" not in self._file.metadata:
            raise ModelError("the GGUF file carries no tokenizer", where=path, remedy=_USE_TOKENS)
        self._tokens: list[str] = tokens

    def _array(self, name: str, kind: type) -> list[Any] | None:
        """Return one of the tokenizer's arrays, ``None`` where the file has none of that name."""
        found = self._file.array(f"tokenizer.ggml.{name}")
        if found is not None and not all(type(one) is kind for one in found):
            raise self._refused(f"tokenizer.ggml.{name} holds something else than {kind.__name__}")
        return found

    def _refused(self, what: str) -> ModelError:
        return ModelError(what, where=self._path, expected="a tokenizer", remedy=_USE_TOKENS)

    def encode(self, prompt: str) -> list[int]:
        ids = self._bpe.encode(prompt, add_special_tokens=False).ids
        metadata = self._file.metadata
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        if bos is None or metadata.get("tokenizer.ggml.add_bos_token", False) is not True:
            return list(ids)
        if type(bos) is not int or bos not in range(len(self._tokens)):
            raise self._refused(f"its beginning-of-sequence token is {bos!r} of {len(self._tokens)}")
        return [bos, *ids]

    def decode(self, ids: list[int]) -> str:
        beyond = [token for token in ids if token not in range(len(self._tokens))]
        if beyond:  # rows of the embedding table that only fill it up
            raise self._refused(f"it has no token {beyond[0]}, only {len(self._tokens)}")
        return b"".join(_bytes_of(self._tokens[token]) for token in ids).decode("utf-8", errors="replace")

    @cached_property
    def _bpe(self) -> Any:
        metadata, merges = self._file.metadata, self._array("merges", str)
        kind, pre = metadata["tokenizer.ggml.model"], str(metadata.get("tokenizer.ggml.pre", "default"))
        if kind != "gpt2" or merges is None or pre not in PRE_TOKENIZERS:
            raise ModelError(
                f"the tokenizer (model {kind!r}, pre-tokenizer {pre!r}) cannot be built here",
                where=self._path,
                expected=f"model 'gpt2' with merges and a pre-tokenizer of {', '.join(PRE_TOKENIZERS)}",
                remedy=_USE_TOKENS,
            )
        types = self._array("token_type", int) or []
        numbered = zip(self._tokens, types, strict=False)
        special = [token for token, number in numbered if number in _SPECIAL_TYPES]
        try:
            return _build_bpe(self._tokens, merges, pre, special)
        except MissingDependencyError:
            raise
        except Exception as error:  # the tokenizer library raises a bare Exception on merges of no tokens
            raise self._refused(f"the tokenizer cannot be built: {error}") from error


def _bytes_of(token: str) -> bytes:
    """Return the bytes that ``token`` stands for; a token with other letters than GPT-2's is its own text."""
    letters = _byte_letters()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode("utf-8", errors="surrogateescape")


@cache
def _byte_letters() -> Mapping[str, int]:
    """Return GPT-2's letters: printable Latin-1 stands for itself, the other bytes for 256 and on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_DIGITS_TO_3, _DIGIT = r"\p{N}{1,3}", r"\p{N}"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """How text is prepared for the merges.

    Attributes:
        patterns: what splits it, one after the other.
        nfc: whether it is brought to Unicode's composed form first.
        ignore_merges: whether a piece that is a token as a whole is taken as it is.

    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer(patterns=(_GPT2,)),
    "gpt-2": PreTokenizer(patterns=(_GPT2,)),
    "llama-bpe": PreTokenizer(patterns=(_WORDS % _DIGITS_TO_3,), ignore_merges=True),
    "qwen2": PreTokenizer(patterns=(_WORDS % _DIGIT,), nfc=True),
    "smollm": PreTokenizer(patterns=(_DIGIT, _GPT2)),
}
"""``tokenizer.ggml.pre`` -> what the tokenizer.json of GPT-2, Llama 3, Qwen2 and SmolLM does."""

_SPECIAL_TYPES = (3, 4)
"""``tokenizer.ggml.token_type``: control and user-defined tokens are found in the text as they stand."""


def _build_bpe(tokens: list[str], merges: list[str], pre: str, special: list[str]) -> Any:
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise _missing(error) from error
    rule = PRE_TOKENIZERS[pre]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {token: n for n, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=rule.ignore_merges))
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
