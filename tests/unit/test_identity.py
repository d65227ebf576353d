"""What tells one model file from another, and one capture from another."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from apr_falsify.errors import ModelError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.identity import difference, model_sha256
from tests.unit.helpers import TINY

REQUEST = Request(tokens=(1, 2, 3), layers=range(1), stages=tuple(STAGES))


def test_one_file_has_its_own_sha256(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"weights")
    assert model_sha256((file,)) == hashlib.sha256(b"weights").hexdigest()


def test_several_files_have_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    lines = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("a", "b"))
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert model_sha256((tmp_path / "b", tmp_path / "a")) == expected
    assert model_sha256((tmp_path / "a", tmp_path / "b")) == expected


def test_a_file_that_was_rewritten_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = model_sha256((file,))
    file.write_bytes(b"two")
    os.utime(file, ns=(0, 1))
    assert model_sha256((file,)) != first


def test_a_file_that_is_gone_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        model_sha256((tmp_path / "gone",))
    assert raised.value.where == str(tmp_path / "gone")


def test_a_capture_is_the_same_only_where_all_that_matters_is() -> None:
    model = open_model(TINY)
    trace = capture(model, REQUEST, MemorySink())
    wanted = {"runtime": "embedded", "dtype": "f32"}

    def said(request: Request = REQUEST, **changed: object) -> str | None:
        return difference(trace, request, model.geometry, {**wanted, **changed})

    assert said() is None
    assert said(dtype="f16") == "dtype is f32, wanted f16"
    assert said(model_sha256="0") == f"model_sha256 is {trace.provenance.model_sha256}, wanted 0"
    assert "tokens are [1, 2, 3]" in str(said(replace(REQUEST, tokens=(1, 2))))
    assert said(replace(REQUEST, stages=("attn_norm",))) is None
    assert said(replace(REQUEST, layers=range(2))) == "17 of the wanted stages are not in it"
