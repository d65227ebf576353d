"""Reading JSON and its values, strictly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apr_falsify.reading import flag, items, mapping, number, read_json, read_yaml, text, whole


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice", id="duplicate-key"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep-list"),
        pytest.param(b'{"a":' * 100_000, "nested too deeply", id="deep-object"),
        pytest.param(b"\xff\xfe", "decode", id="not-utf-8"),
        pytest.param(b"\xef\xbb\xbf{}", "BOM", id="byte-order-mark"),
        pytest.param(b"", "Expecting value", id="empty"),
        pytest.param(b'{"a": 1} x', "Extra data", id="more-after-the-end"),
        pytest.param(b"9" * 5000, "digits", id="absurd-number"),
    ],
)
def test_a_garbled_file_is_a_value_error(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=what):
        read_json(tmp_path / "x.json")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(OSError, match="not a regular file"):
        read_json(tmp_path / "x.json")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (whole, [0, -1, 10**30], [True, 1.0, "1", None, [1]]),
        (number, [0, 1.5, -2], [True, "1", None, float("nan"), float("inf"), 10**400, []]),
        (text, ["", "a"], [None, 1, b"a", ["a"]]),
        (flag, [True, False], [0, 1, None, "true"]),
        (items, [[], (1,)], [None, "ab", {"a": 1}, 3]),
        (mapping, [{}, {"a": 1}], [None, [], "a", [("a", 1)]]),
    ],
)
def test_a_value_is_taken_only_in_its_own_type(read, good: list[object], bad: list[object]) -> None:
    for value in good:
        assert read(value, "it") == (list(value) if isinstance(value, tuple) else value)
    for value in bad:
        with pytest.raises(ValueError, match="it is "):
            read(value, "it")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(b"a: 1\nb: {c: 1, c: 2}", "line 2: the key 'c' is there twice", id="duplicate-key"),
        pytest.param(b"[" * 5_000, "nested too deeply|no YAML", id="deep-list"),
        pytest.param(b"\xff\xfe", "decode", id="not-utf-8"),
        pytest.param(b"a: &x [1]\nb: *x", "an alias", id="alias"),
        pytest.param(b"a: 1\n---\nb: 2", "single document", id="two-documents"),
        pytest.param(b"a:\n\t- 1", "no YAML", id="tab"),
        pytest.param(b"!!python/object/apply:os.system ['true']", "no YAML", id="python-object"),
        pytest.param(b"a: 2024-99-99", "month", id="no-date"),
        pytest.param(b"#" * (3 << 20), "characters", id="too-large"),
    ],
)
def test_a_garbled_yaml_file_is_a_value_error(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=what):
        read_yaml(tmp_path / "x.yaml")


def test_plain_yaml_values_come_back_typed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [1, 2.5, yes]\nb: {c: null, d: 'x'}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": [1, 2.5, True], "b": {"c": None, "d": "x"}}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") is None
