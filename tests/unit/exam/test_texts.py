"""The texts of correct runs: what shall repeat itself does, and what shall be natural is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer

from apr_falsify.exam.texts import PASSAGE, TEXTS, embedding_rows
from tests.unit.helpers import TINY

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
NATURAL = TOKENIZER.encode(PASSAGE.read_text(encoding="utf-8")).ids
VOCAB = 512


@pytest.mark.parametrize("length", [2, 7, 1024])
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_has_its_length_and_ids_of_the_vocabulary(name: str, length: int) -> None:
    first, again, other = (TEXTS[name].ids(seed, length, VOCAB, NATURAL) for seed in (1, 1, 2))
    assert len(first) == length
    assert all(0 <= token < VOCAB for token in first)
    assert first == again
    assert first != other


def test_a_repeated_token_is_one() -> None:
    assert len(set(TEXTS["one token repeated"].ids(1, 64, VOCAB, NATURAL))) == 1


def test_a_led_text_is_another_token_and_then_one() -> None:
    first, *rest = TEXTS["one token, then another repeated"].ids(1, 64, VOCAB, NATURAL)
    assert len(set(rest)) == 1
    assert first not in rest


def test_runs_of_repeats_are_few_ids_that_mostly_follow_themselves() -> None:
    ids = TEXTS["runs of repeats"].ids(1, 64, VOCAB, NATURAL)
    assert 1 < len(set(ids)) <= 4
    assert sum(a == b for a, b in pairwise(ids)) > 32


def test_a_natural_text_is_a_part_of_the_passage() -> None:
    ids = TEXTS["natural"].ids(3, 40, VOCAB, NATURAL)
    said = TOKENIZER.decode(list(ids))
    whole = PASSAGE.read_text(encoding="utf-8")
    assert said.strip() in f"{whole}{whole}"


def test_the_passage_is_long_enough_for_the_longest_run() -> None:
    assert len(NATURAL) > 1024


def test_rows_are_the_same_or_near_each_other() -> None:
    table = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    same, near = embedding_rows("same", table), embedding_rows("near", table)
    assert len(np.unique(same, axis=0)) == 1
    assert len(np.unique(near, axis=0)) == len(near)
    apart = np.linalg.norm(near - table[5], axis=1) / np.linalg.norm(table[5])
    assert apart.max() < 0.1
    assert apart.min() < 1e-5
