"""trace.json: one that is garbled, incomplete or contradicts itself or its files is refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.errors import AprFalsifyError, GeometryError
from apr_falsify.traces.trace import SCHEMA, read_trace
from tests.unit.traces import edit_json, refusal_of, write_trace


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no usable JSON"),
        (b"{", "no usable JSON"),
        (b"\xff", "no usable JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema": "apr-falsify/trace/v1", "schema": "x"}', "is there twice"),
        (b"[]", "the schema"),
        (b"null", "the schema"),
        (b"{}", "the schema"),
    ],
)
def test_a_garbled_trace_json_is_refused(run: Path, content: bytes, what: str) -> None:
    (run / "trace.json").write_bytes(content)
    refusal_of(run, what)


def test_a_key_that_stands_twice_deep_inside_is_refused(run: Path) -> None:
    text = (run / "trace.json").read_text().replace('"hidden": 16', '"hidden": 16, "hidden": 16')
    (run / "trace.json").write_text(text)
    refusal_of(run, "'hidden' is there twice")


@pytest.mark.parametrize("schema", ["apr-falsify/trace/v2", "apr-falsify/bisection/v1", None, 1, ["x"]])
def test_another_schema_is_refused(run: Path, schema: object) -> None:
    edit_json(run, lambda data: data.update(schema=schema))
    error = refusal_of(run, "the schema of trace.json is")
    assert error.expected == SCHEMA


@pytest.mark.parametrize("key", ["provenance", "geometry", "tokens", "stages"])
def test_a_part_left_out_is_refused(run: Path, key: str) -> None:
    edit_json(run, lambda data: data.pop(key))
    refusal_of(run, f"has no '{key}'")


@pytest.mark.parametrize("key", ["layer", "stage", "shape", "layout", "sha256"])
def test_a_part_of_a_stage_left_out_is_refused(run: Path, key: str) -> None:
    edit_json(run, lambda data: data["stages"][3].pop(key))
    refusal_of(run, f"has no '{key}'")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data["stages"].append(data["stages"][0]), "listed twice"),
        (lambda data: data["stages"][0].update(layer=7), "layer 7 in a model of 2 layers"),
        (lambda data: data["stages"][0].update(layer=-1), "layer -1"),
        (
            lambda data: data["stages"][0].update(stage="../../etc/passwd"),
            "1 stage file of trace.json missing",
        ),
        (lambda data: data["stages"][0].update(layout=["sideways"]), "sideways"),
        (lambda data: data["stages"][0].update(shape=[16, 5]), "gives the shape"),
        (lambda data: data["stages"][0].update(sha256="0" * 64), "its sha256 is"),
        (lambda data: data.update(tokens=[]), "no tokens"),
        (lambda data: data.update(tokens=[1, 2, 3, 4, 32]), "outside the vocabulary"),
        (lambda data: data.update(tokens=[1, 2, 3, 4, -1]), "outside the vocabulary"),
        (lambda data: data.update(tokens=[1, 2, 3]), "fit no shape"),
        (lambda data: data["geometry"].update(heads=8), "fit no shape"),
        (lambda data: data["provenance"].pop("runtime"), "no runtime"),
    ],
)
def test_a_trace_json_that_contradicts_itself_is_refused(run: Path, change: Any, what: str) -> None:
    edit_json(run, change)
    refusal_of(run, what)


def test_keys_of_a_later_minor_version_are_passed_over(run: Path) -> None:
    edit_json(run, lambda data: (data.update(new=1), data["provenance"].update(new={"a": 1})))
    assert read_trace(run).provenance.runtime == "embedded"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every position in ``value``, inner ones first; of a long list the first two entries."""
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from leaves(value[index], (*path, index))
    if path:
        yield path


WRONG: list[Any] = [None, "x", "", [], [1], {}, {"a": {}}, -1, 0, True, 2.5, 10**400, 10**12, [[["x"]]]]


def raised_by(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def test_any_value_of_the_wrong_type_anywhere_is_taken_or_refused_with_a_type(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_trace(run, stages=("embedding", "attn_scores", "lm_head"))
    data = json.loads((run / "trace.json").read_text())
    positions = list(leaves(data))
    assert len(positions) > 45
    for position in positions:
        for wrong in [*WRONG, float("inf"), float("nan")]:
            broken = copy.deepcopy(data)
            parent = broken
            for step in position[:-1]:
                parent = parent[step]
            parent[position[-1]] = wrong
            (run / "trace.json").write_text(json.dumps(broken))
            error = raised_by(lambda: read_trace(run))
            assert error is None or (isinstance(error, AprFalsifyError) and error.where), (position, wrong)


def test_absurd_geometry_is_refused(run: Path) -> None:
    edit_json(run, lambda data: data["geometry"].update(layers=10**9))
    refusal_of(run, "layers is 1000000000", GeometryError)
