"""The reader: every value with its place, every broken file a problem with a code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_falsify.contracts.files import MOST_BYTES, read_bytes
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.source import Mapping, Sequence, Text, parse


def value(text: str) -> Mapping:
    source = parse("x.yaml", text.encode())
    assert not source.problems
    assert isinstance(source.data, Mapping)
    return source.data


def code(raw: bytes) -> tuple[str, int, int]:
    (problem,) = parse("x.yaml", raw).problems
    return problem.code, problem.line, problem.column


def test_every_value_and_key_knows_its_line_and_column() -> None:
    data = value("metadata:\n  id: C-1\n  list:\n  - one\n  -   two\n")
    metadata = data["metadata"]
    assert isinstance(metadata, Mapping)
    assert (metadata.line, metadata.column) == (2, 3)
    identity, items = metadata["id"], metadata["list"]
    assert isinstance(identity, Text)
    assert (identity.line, identity.column) == (2, 7)
    assert isinstance(items, Sequence)
    assert [(one.line, one.column) for one in items if isinstance(one, Text)] == [(4, 5), (5, 7)]
    assert [(key.line, key.column) for key in metadata if isinstance(key, Text)] == [(2, 3), (3, 3)]


@pytest.mark.parametrize("text", ["1.10", "2026-05-04", "0x1F", "yes", "1e3", "007", "12:30:00", "!!int 5"])
def test_a_scalar_stays_as_it_is_written(text: str) -> None:
    assert value(f"version: {text}\n")["version"] == text.removeprefix("!!int ")


@pytest.mark.parametrize("text", ["", "~", "null", "Null"])
def test_null_is_none_and_quoted_null_is_text(text: str) -> None:
    assert value(f"a: {text}\n")["a"] is None
    assert value(f"a: '{text}'\n")["a"] == text


def test_crlf_is_read_as_lf() -> None:
    data = value("a: 1\r\nb: |\r\n  x\r\n  y\r\n")
    assert data == {"a": "1", "b": "x\ny\n"}


def test_columns_count_characters_also_behind_a_byte_order_mark() -> None:
    source = parse("x.yaml", "\ufeffä: ö\nb: c\n".encode())
    assert [problem.code for problem in source.problems] == ["byte-order-mark"]
    assert isinstance(source.data, Mapping)
    assert isinstance(source.data["ä"], Text)
    assert (source.data["ä"].line, source.data["ä"].column) == (1, 4)


def test_merge_keys_are_merged_and_what_is_given_wins() -> None:
    assert value("base: &b {x: 1, y: 2}\nmade:\n  <<: *b\n  y: 3\n")["made"] == {"x": "1", "y": "3"}


@pytest.mark.falsify_validator_004
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a: 1\na: 2\n", ("duplicate-key", 2, 1)),
        (b"a:\n\tb: 1\n", ("yaml-tab", 2, 1)),
        (b"a: caf\xe9\n", ("not-utf8", 1, 7)),
        (b"a: 1\nb: \x00\n", ("control-character", 2, 4)),
        (b"a: {b: c\n", ("yaml-syntax", 2, 1)),
        (b"a: *nowhere\n", ("yaml-syntax", 1, 4)),
        (b"a: 1\n---\nb: 2\n", ("several-documents", 2, 1)),
        (b"{a: 1}: 2\n", ("yaml-syntax", 1, 1)),
        (b"[" * 10_000, ("yaml-too-deep", 1, 201)),
        (b"- " * 10_000, ("yaml-too-deep", 1, 401)),
        (b"{a: " * 10_000, ("yaml-too-deep", 1, 801)),
        (b"a: &a [*a]\n", ("yaml-alias-explosion", 1, 4)),
        ("\ufffe".encode(), ("control-character", 1, 1)),
        (b"\xff\xfea\x00", ("not-utf8", 1, 1)),
    ],
)
def test_a_bad_file_is_a_problem_with_a_code(raw: bytes, expected: tuple[str, int, int]) -> None:
    assert code(raw) == expected


def test_indentation_ten_thousand_deep_is_refused() -> None:
    text = "\n".join(" " * depth + f"k{depth}:" for depth in range(1200))
    assert code(text.encode())[0] == "yaml-too-deep"


def test_aliases_that_multiply_are_refused_before_they_are_built() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert code("\n".join(lines).encode())[0] == "yaml-alias-explosion"


def test_a_tag_that_would_build_an_object_is_text() -> None:
    assert value("a: !!python/object/apply:os.system [echo]\n")["a"] == ["echo"]


@pytest.mark.parametrize("raw", [b"", b"# only a comment\n", b"---\n...\n"])
def test_an_empty_file_has_no_data_and_no_problem(raw: bytes) -> None:
    assert parse("x.yaml", raw).data is None
    assert not parse("x.yaml", raw).problems


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    source = parse("x.yaml", raw)
    assert all(problem.line >= 1 and problem.column >= 1 for problem in source.problems)


@given(text=st.text(alphabet="ab:-[]{}&*#'\"|>! \n\t,?%@`", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    source = parse("x.yaml", text.encode())
    assert source.data is None or isinstance(source.data, Text | Mapping | Sequence)


def test_a_directory_is_no_contract(tmp_path: Path) -> None:
    found = read_bytes(tmp_path)
    assert isinstance(found, Problem)
    assert found.code == "unreadable-file"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    found = read_bytes(tmp_path / "pipe.yaml")
    assert isinstance(found, Problem)
    assert found.code == "unreadable-file"


def test_a_link_to_itself_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    found = read_bytes(tmp_path / "loop.yaml")
    assert isinstance(found, Problem)
    assert found.code == "unreadable-file"


def test_a_file_of_fifty_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with open(path, "wb") as file:
        file.truncate(50 * 2**20)
    found = read_bytes(path)
    assert isinstance(found, Problem)
    assert (found.code, found.path) == ("file-too-large", path.as_posix())
    assert MOST_BYTES < 50 * 2**20
