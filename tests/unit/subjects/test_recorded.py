"""A recording: what it needs to be read, and how its tokens are checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.errors import TokensError, TraceError
from apr_falsify.formats.aprt import read_aprt, write_aprt
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects.adoption import nearest_tokens
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.capture import MemorySink, Request, TraceWriter
from tests.support import DATA
from tests.unit.helpers import TINY

RECORDINGS = DATA / "apr-tiny-qwen2"
TOKENS = (274, 272, 332, 13, 20, 33)
REQUEST = Request(tokens=TOKENS, layers=range(3), stages=tuple(STAGES))


def target(path: Path = RECORDINGS / "base", tokens: tuple[int, ...] | None = TOKENS) -> Target:
    return Target(path=path, model=open_model(TINY), tokens=tokens)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDINGS / "base", tmp_path / "copy"))


def rewrite(path: Path, values: np.ndarray) -> None:
    layer = read_aprt(path).layer
    with path.open("wb") as file:
        write_aprt(file, values, layer)


def test_a_directory_of_apr_is_read_with_aprs_declared_layout() -> None:
    subject = open_recorded(target())
    assert (subject.tokens, subject.layers, subject.prompt) == (TOKENS, (0, 1, 2), "What is 2+2?")
    assert len(subject.trace.stages) == 54
    assert subject.trace.tokens_verified
    assert subject.trace.provenance.runtime == "apr"
    declared = {name for (_, name), array in subject.trace.stages.items() if array.layout}
    assert declared == {"attn_scores", "attn_softmax"}


@pytest.mark.parametrize("at", range(len(TOKENS)))
def test_every_token_is_verified_against_its_row_of_the_embedding(at: int) -> None:
    wrong = (*TOKENS[:at], TOKENS[at] + 1, *TOKENS[at + 1 :])
    with pytest.raises(TokensError, match=f"token {at} is given as {wrong[at]}") as raised:
        open_recorded(target(tokens=wrong))
    assert "274,272,332,13,20,33" in raised.value.expected


def test_a_quantised_table_still_verifies_its_tokens() -> None:
    assert open_recorded(target(RECORDINGS / "base-q4k")).trace.tokens_verified


def test_tokens_without_an_embedding_are_taken_but_called_unverified(copy: Path) -> None:
    (copy / "layer-0" / "embedding.bin").unlink()
    assert not open_recorded(target(copy)).trace.tokens_verified


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_row_without_a_direction_verifies_nothing_and_stops_nothing(copy: Path, value: float) -> None:
    path = copy / "layer-0" / "embedding.bin"
    rows = np.array(read_aprt(path).values).reshape(len(TOKENS), -1)
    rows[2] = value
    rewrite(path, rows)
    assert not open_recorded(target(copy)).trace.tokens_verified


def test_tokens_that_nobody_gave_are_asked_for_with_the_nearest_ones() -> None:
    with pytest.raises(TokensError) as raised:
        open_recorded(target(tokens=None))
    assert raised.value.remedy.startswith("--tokens 274,272,332,13,20,33 ")


def test_a_recording_of_which_nobody_knows_the_model_is_refused() -> None:
    with pytest.raises(TraceError, match="which model was run"):
        open_recorded(Target(path=RECORDINGS / "base", tokens=TOKENS))


def test_nearest_tokens_finds_each_row_of_the_table_itself() -> None:
    table = open_model(TINY).weights.tensor("embed")
    rows = table.rows(100, 140)
    ids, cosines = nearest_tokens(rows, table)
    assert list(ids) == list(range(100, 140))
    assert np.allclose(cosines, 1)


def test_a_copy_of_a_recording_is_known_as_the_same_and_a_changed_one_is_not(tmp_path: Path) -> None:
    subject = open_recorded(target())
    with TraceWriter(tmp_path / "trace") as writer:
        written = subject.capture(REQUEST, writer)
    assert subject.differs(written, REQUEST) is None
    again = open_recorded(Target(path=tmp_path / "trace"))
    assert again.tokens == TOKENS
    other = open_recorded(target(RECORDINGS / "norm-scaled")).capture(REQUEST, MemorySink())
    assert "other values than the recording" in str(subject.differs(other, REQUEST))
