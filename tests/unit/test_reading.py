"""Reading JSON, YAML, TOML and archives, and their values, strictly."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from apr_falsify.reading import (
    flag,
    items,
    mapping,
    number,
    opened_zip,
    read_json,
    read_toml,
    read_yaml,
    table,
    text,
    whole,
)


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
        pytest.param(b"[" + b"{}," * (1 << 20) + b"0]", "more values", id="many-empty-objects"),
        pytest.param(b'{"a": "\\ud800"}', "surrogates", id="half-a-surrogate-pair"),
        pytest.param(b'{"\\uDFFF": 1}', "surrogates", id="half-a-surrogate-pair-as-a-key"),
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
        pytest.param(b"#" * (3 << 20), "larger than 2 MiB", id="too-large"),
        pytest.param(b"a: [" + b"b," * 100_000 + b"]", "more than 65536 values", id="too-many-values"),
        pytest.param(b"a: [" + b"[" * 200 + b"]" * 201, "nested too deeply", id="deep-flow"),
        pytest.param(b"- " * 100_000, "nested too deeply", id="deep-block"),
        pytest.param(b"a: !!timestamp x", "no YAML", id="tag-of-no-time"),
        pytest.param(b"a: !!bool x", "no YAML", id="tag-of-no-truth-value"),
        pytest.param(b"a: !!int ''", "no YAML", id="tag-of-no-number"),
        pytest.param(b"a: " + b"9" * 5000, "digits", id="absurd-number"),
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


def test_a_whole_surrogate_pair_and_a_long_list_of_names_are_read(tmp_path: Path) -> None:
    names = [f"layer.{n}.weight" for n in range(300_000)]
    (tmp_path / "x.json").write_text(json.dumps({"\U0001f600": names}))
    assert read_json(tmp_path / "x.json") == {"\U0001f600": names}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(b"a = 1\na = 2\n", "Cannot overwrite", id="duplicate-key"),
        pytest.param(b"a = [", "Invalid value", id="cut-off"),
        pytest.param(b"\xff\xfea\x00", "decode", id="not-utf-8"),
        pytest.param(b"a = " + b"9" * 5000, "digits", id="absurd-number"),
        pytest.param(b"a = " + b"[" * 5000, "nested too deeply", id="deep"),
        pytest.param(b"#" * (2 << 20), "larger than 1 MiB", id="too-large"),
    ],
)
def test_a_garbled_toml_file_is_a_value_error(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(ValueError, match=what):
        read_toml(tmp_path / "x.toml")


def test_a_table_is_found_by_its_keys_and_empty_where_something_else_is(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[tool.x]\na = 1\nb = [1]\n")
    found = read_toml(tmp_path / "x.toml")
    assert table(found, "tool", "x") == {"a": 1, "b": [1]}
    assert table(found, "tool", "y") == table(found, "tool", "x", "a") == table(found, "tool", "x", "b") == {}


def zipped(path: Path, files: int, comment: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(files):
            archive.writestr(f"{number}", b"\xff\xff")
        archive.comment = comment
    return path


@pytest.mark.parametrize("files", [0, 1, 70_000], ids=["none", "one", "as-zip64"])
def test_an_archive_with_a_directory_as_announced_is_opened(tmp_path: Path, files: int) -> None:
    """From 65,536 files on the directory is told in other places: those of zip64."""
    path = zipped(tmp_path / "x.zip", files, b"a comment")
    with opened_zip(path, most=100_000) as archive:
        assert len(archive.infolist()) == files


@pytest.mark.parametrize("files", [1000, 70_000], ids=["zip", "zip64"])
def test_an_archive_with_far_too_many_files_is_refused_before_its_directory_is_read(
    tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "x.zip", files)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ValueError, match="more than 100 files"), opened_zip(path, most=100):
        pass


def encrypted(data: bytes) -> bytes:
    """Set the flag of a member in its own header and in the directory."""
    at, directory = data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8
    return data[:at] + b"\1" + data[at + 1 : directory] + b"\1" + data[directory + 1 :]


def packed_otherwise(data: bytes) -> bytes:
    directory = data.index(b"PK\1\2") + 10
    return data[:directory] + b"\x63\0" + data[directory + 2 :]


def of_garbage(data: bytes) -> bytes:
    """Say of a stored member that it is deflated."""
    at, directory = data.index(b"PK\3\4") + 8, data.index(b"PK\1\2") + 10
    return data[:at] + b"\x08" + data[at + 1 : directory] + b"\x08" + data[directory + 1 :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (encrypted, "encrypted"),
        (packed_otherwise, "compression method"),
        (of_garbage, "decompressing"),
        (lambda data: data[:-30], "not a zip file"),
        (lambda data: b"", "not a zip file"),
    ],
    ids=["encrypted", "unknown-method", "garbage", "cut-off", "empty"],
)
def test_whatever_is_wrong_with_an_archive_is_a_value_error(
    tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    path = zipped(tmp_path / "x.zip", 1)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=said), opened_zip(path, most=10) as archive:
        archive.read("0")
