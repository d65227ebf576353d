"""Token ids from the tokenizer that a model carries."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from apr_falsify.errors import ModelError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import family_of
from apr_falsify.oracle.tokenizer import PRE_TOKENIZERS, decode, encode
from tests.support import DATA
from tests.unit.gguf_models import metadata_of, write_gguf
from tests.unit.helpers import TINY, random_tensors, small_geometry

PROMPT = "What is 2+2?"
QWEN2_GGUF = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"
BYTE_TOKENS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))] + [
    chr(256 + n) for n in range(68)
]
"""GPT-2's 256 letters, one a byte."""


def gguf_model(path: Path, metadata: dict[str, object]) -> Model:
    geometry = small_geometry(model_type="qwen2")
    row = family_of(geometry)
    by_name = {
        row.weights[role].format(n=n): name.format(n=n)
        for role, name in row.gguf_weights.items()
        for n in range(geometry.layers)
    }
    tensors = {by_name[name]: data for name, data in random_tensors(geometry).items()}
    return open_model(
        write_gguf(path, tensors, {**metadata_of(geometry, "qwen2"), **metadata}, architecture="qwen2")
    )


def bpe(pre: str, merges: list[str], *, extra: tuple[str, ...] = (), **more: object) -> dict[str, object]:
    tokens = [*BYTE_TOKENS, *(merge.replace(" ", "") for merge in merges), *extra]
    types = [1] * (len(tokens) - len(extra)) + [3] * len(extra)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.mark.parametrize("path", [TINY, QWEN2_GGUF])
def test_the_tiny_checkpoint_gives_the_ids_that_huggingface_gives(path: Path) -> None:
    model = open_model(path)

    assert encode(model, PROMPT) == (274, 272, 223, 20, 13, 20, 33)
    assert decode(model, encode(model, PROMPT)) == PROMPT


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40).filter(lambda text: "<|" not in text))
def test_a_gguf_tokenizer_gives_what_the_directory_it_came_from_gives(text: str) -> None:
    assert encode(open_model(QWEN2_GGUF), text) == encode(open_model(TINY), text)


def test_a_directory_gives_the_ids_of_auto_tokenizer() -> None:
    expected = AutoTokenizer.from_pretrained(TINY)("<|im_start|>user\nIt's 1234 <|im_end|>")["input_ids"]

    assert encode(open_model(TINY), "<|im_start|>user\nIt's 1234 <|im_end|>") == tuple(expected)


MERGES = ["1 2", "12 3", "123 4", "I T", "' S", "a b", "Ġ 1"]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["1234", "Ġ1", "IT", "'", "S"]),
        ("default", ["1234", "Ġ1", "IT", "'", "S"]),
        ("smollm", ["1", "2", "3", "4", "Ġ", "1", "IT", "'", "S"]),
        ("qwen2", ["1", "2", "3", "4", "Ġ", "1", "IT", "'S"]),
        ("llama-bpe", ["123", "4", "Ġ", "1", "IT", "'S"]),
    ],
)
def test_each_pre_tokenizer_splits_in_its_own_way(pre: str, pieces: list[str], tmp_path: Path) -> None:
    metadata = bpe(pre, MERGES)
    model = gguf_model(tmp_path / "model.gguf", metadata)

    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[token] for token in encode(model, "1234 1IT'S")] == pieces


def test_every_pre_tokenizer_of_the_table_is_tested() -> None:
    (mark,) = test_each_pre_tokenizer_splits_in_its_own_way.pytestmark

    assert {case[0] for case in mark.args[1]} == set(PRE_TOKENIZERS)


@pytest.mark.parametrize(("add", "first"), [(True, (257,)), (False, ())])
def test_the_beginning_of_sequence_is_added_where_the_file_says_so(
    add: bool, first: tuple[int, ...], tmp_path: Path
) -> None:
    metadata = bpe("gpt-2", ["a b"], extra=("<s>",), bos_token_id=257, add_bos_token=add)
    model = gguf_model(tmp_path / "model.gguf", metadata)

    assert encode(model, "!") == (*first, 0)
    assert encode(model, "!<s>!") == (*first, 0, 257, 0)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, tmp_path)

    with pytest.raises(ModelError, match="carries no tokenizer") as caught:
        encode(open_model(tmp_path), PROMPT)
    assert "--tokens" in caught.value.remedy


def test_a_garbled_tokenizer_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "model" / name).unlink()

    with pytest.raises(ModelError, match="the tokenizer cannot be read") as caught:
        encode(open_model(tmp_path / "model"), PROMPT)
    assert "--tokens" in caught.value.remedy


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "carries no tokenizer"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}, "model 'llama'"),
        (bpe("tekken", []) | {"tokenizer.ggml.merges": ["a b"]}, "pre-tokenizer 'tekken'"),
        (bpe("gpt-2", ["a b"]) | {"tokenizer.ggml.merges": [1, 2]}, "merges holds something else than str"),
        (bpe("gpt-2", ["a b"]) | {"tokenizer.ggml.tokens": [1.5]}, "tokens holds something else than str"),
        (bpe("gpt-2", ["a b"]) | {"tokenizer.ggml.token_type": ["1"]}, "token_type holds something else"),
        (bpe("gpt-2", ["a b"]) | {"tokenizer.ggml.merges": ["no such"]}, "out of vocabulary"),
        (bpe("gpt-2", ["a b"], bos_token_id=257, add_bos_token=True), "beginning-of-sequence token is 257"),
        (bpe("gpt-2", ["a b"], bos_token_id="NaN", add_bos_token=True), "token is 'NaN'"),
        (bpe("gpt-2", ["a b"], bos_token_id=float("inf"), add_bos_token=True), "token is inf"),
    ],
    ids=[
        *("none", "sentencepiece", "unknown-pre-tokenizer", "merges-of-numbers", "tokens-of-numbers"),
        *(
            "types-of-texts",
            "merge-of-no-tokens",
            "first-token-beyond",
            "first-token-text",
            "first-token-inf",
        ),
    ],
)
def test_a_gguf_tokenizer_that_cannot_be_built_is_refused(
    metadata: dict[str, object], message: str, tmp_path: Path
) -> None:
    model = gguf_model(tmp_path / "model.gguf", metadata)

    with pytest.raises(ModelError, match=message) as caught:
        encode(model, PROMPT)
    assert "--tokens" in caught.value.remedy


def test_a_row_that_only_fills_the_embedding_table_up_is_no_token(tmp_path: Path) -> None:
    model = gguf_model(tmp_path / "model.gguf", bpe("gpt-2", ["a b"]))

    assert decode(model, (256,)) == "ab"
    with pytest.raises(ModelError, match="no token 257, only 257"):
        decode(model, (257,))
