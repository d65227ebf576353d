"""Where a run comes from: kept through JSON, each field of its type."""

from __future__ import annotations

import json

import pytest

from apr_falsify.traces.provenance import Provenance

PROVENANCE = Provenance(
    runtime="apr",
    version="0.72.3",
    binary_sha256="ab",
    model_sha256="cd",
    prompt="What?",
    argmax={"id": 3, "text": "x"},
    libraries={"numpy": "2"},
    layers=(0, 2),
    stages=("embedding",),
    commit="ef",
)


def test_provenance_goes_through_json_unchanged() -> None:
    assert Provenance.from_json(json.loads(json.dumps(PROVENANCE.to_json()))) == PROVENANCE


@pytest.mark.parametrize("field", sorted(PROVENANCE.to_json()))
def test_every_field_of_the_provenance_is_checked_for_its_type(field: str) -> None:
    with pytest.raises(ValueError, match="not "):
        Provenance.from_json({**PROVENANCE.to_json(), field: 3.5})


@pytest.mark.parametrize("layers", [[0], [0, 1, 2], [0, "1"], "01"])
def test_layers_of_the_provenance_are_two_numbers(layers: object) -> None:
    with pytest.raises(ValueError, match=r"layers|unpack"):
        Provenance.from_json({"runtime": "x", "layers": layers})
