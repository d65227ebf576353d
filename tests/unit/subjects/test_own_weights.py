"""The weights that a mapping file names are the run's own: compared first, and replayed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from apr_falsify.compare.bisection import FindingType, Kind
from apr_falsify.compare.layout import canonical
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import AprFalsifyError
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.subjects.embedded import capture
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.mapping import MAPPING_YAML
from apr_falsify.subjects.recorded import RecordedSubject, open_recorded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.helpers import model_directory
from tests.unit.quantised_files import quantise_checkpoint

TOKENS = (3, 17, 9, 30, 1, 22, 8, 14)
Arrays = dict[str, npt.NDArray[Any]]
WIDE = {"hidden_size": 64, "intermediate_size": 96}


def traced(model: Model) -> Trace:
    request = Request(tokens=TOKENS, layers=range(2), stages=tuple(STAGES))
    return capture(model, request, MemorySink())


def recorded(folder: Path, trace: Trace, weights: object) -> Path:
    """Write a run as arrays with names of their own, and the mapping that says them and its weights."""
    arrays = {}
    for key, array in trace.stages.items():
        name = key.stage if key.layer is None else f"L{key.layer}.{key.stage}"
        arrays[name] = np.asarray(canonical(array, key, trace.geometry, len(TOKENS)), np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "run.npz", **arrays)
    names = dict.fromkeys(key.stage for key in trace.stages)
    layered = {key.stage: key.layer is not None and key.stage != "embedding" for key in trace.stages}
    said = {
        "schema": "apr-falsify/mapping/v1",
        "runtime": "port",
        "tokens": list(TOKENS),
        "dtype": "f32",
        "weights": weights,
        "stages": {
            name: {"from": f"L{{layer}}.{name}" if layered[name] or name == "embedding" else name}
            for name in names
        },
    }
    (folder / MAPPING_YAML).write_text(yaml.safe_dump(said))
    return folder / "run.npz"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("model"), **WIDE)


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Model:
    return open_model(directory)


@pytest.fixture(scope="module")
def ran(directory: Path) -> tuple[Arrays, Trace]:
    """Weights that are not the oracle's: f16 of them, and one of them with a wrong row; and their run."""
    held = {
        name: array.astype(np.float16).astype(np.float32)
        for name, array in load_file(directory / "model.safetensors").items()
    }
    held["model.layers.1.mlp.up_proj.weight"][5] *= 2
    model = open_model(directory)
    tensors = {name: PlainTensor(name=name, type="f32", data=array) for name, array in held.items()}
    return held, traced(replace(model, weights=replace(model.weights, tensors=tensors)))


def opened(path: Path, oracle: Model) -> RecordedSubject:
    return open_recorded(Target(path=path, model=oracle))


def port_names(held: Mapping[str, npt.NDArray[Any]]) -> tuple[Arrays, dict[str, str]]:
    """Return the weights as a port calls them, and the table that says so."""
    table = {
        "embed": "wte",
        "lm_head": "head",
        "final_norm": "norm",
        "model.layers.{layer}.mlp.up_proj.weight": "b{layer}/up",
        **{
            role: f"b{{layer}}/{role}"
            for role in ("attn_norm", "q", "k", "v", "o", "ffn_norm", "gate", "down")
        },
    }
    from apr_falsify.model.names import HF_DECODER

    arrays = {}
    for key, ours in table.items():
        template = HF_DECODER.get(key, key.replace("{layer}", "{n}"))
        for layer in range(2):
            arrays[ours.format(layer=layer)] = held[template.format(n=layer)]
    return arrays, table


@pytest.mark.parametrize("form", ["safetensors", "folder", "npz", "renamed"])
def test_a_run_is_judged_by_the_weights_that_it_names(
    form: str, oracle: Model, directory: Path, ran: tuple[Arrays, Trace], tmp_path: Path
) -> None:
    held, trace = ran
    said: object = f"own.{form}"
    if form == "folder":
        save_file(held, model_directory(tmp_path / "own.folder", **WIDE) / "model.safetensors")
    elif form == "safetensors":
        save_file(held, tmp_path / "own.safetensors")
    elif form == "npz":
        np.savez(tmp_path / "own.npz", **held)
    else:
        arrays, table = port_names(held)
        np.savez(tmp_path / "own.npz", **arrays)
        said = {"from": "own.npz", "names": table}
    subject = opened(recorded(tmp_path, trace, said), oracle)
    assert subject.model is not None
    assert subject.notes == ()
    found = bisect(
        traced(oracle), subject.trace, weights=oracle.weights, subject_weights=subject.model.weights
    )
    # Rounding to f16 alone is told of each tensor; what was computed with them is right.
    assert {one.type for one in found.sources} == {FindingType.WEIGHTS}
    wrong = [one for one in found.sources if "1 of 96 rows" in one.explanation]
    assert all((one.layer, one.stages) == (1, ("ffn_up",)) for one in wrong)
    assert all(row.verdict.value != "introduces" or (row.layer, row.stage) for row in found.rows)
    without = bisect(traced(oracle), subject.trace, weights=oracle.weights)
    assert any(one.type is not FindingType.WEIGHTS for one in without.findings)


def test_a_quantised_folder_is_the_runs_own(oracle: Model, directory: Path, tmp_path: Path) -> None:
    quantise_checkpoint(directory, tmp_path / "gptq", "gptq", {"group_size": 32})
    trace = traced(open_model(tmp_path / "gptq"))
    subject = opened(recorded(tmp_path, trace, "gptq"), oracle)
    assert subject.model is not None
    found = bisect(
        traced(oracle), subject.trace, weights=oracle.weights, subject_weights=subject.model.weights
    )
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())


def test_what_the_file_lacks_is_the_oracles_and_that_is_told(
    oracle: Model, directory: Path, tmp_path: Path
) -> None:
    held = load_file(directory / "model.safetensors")
    save_file(
        {name: array for name, array in held.items() if "q_proj" not in name}, tmp_path / "w.safetensors"
    )
    subject = opened(recorded(tmp_path, traced(oracle), "w.safetensors"), oracle)
    assert subject.model is not None
    tensor = subject.model.weights.tensor("q", 1)
    np.testing.assert_array_equal(tensor.rows(0, 3), held["model.layers.1.self_attn.q_proj.weight"][:3])
    assert subject.notes == ("the subject's own q: w.safetensors does not hold them; the oracle's were used",)


DEFECTS: Mapping[str, tuple[object, str]] = {
    "no such file": ("none.safetensors", "no file or folder none.safetensors"),
    "no path": ({"names": {}}, "weights.from"),
    "another key": ({"from": "w.safetensors", "name": {}}, "unknown key 'name'"),
    "no weight": ({"from": "w.safetensors", "names": {"qq": "x"}}, "'qq' is no weight"),
    "no array": ({"from": "w.safetensors", "names": {"q": "wq{layer}"}}, "there is no array 'wq0'"),
    "no weight's name": ("other.safetensors", "has the name of a weight"),
    "another model": ("smaller", "hidden 16"),
    "names of a model": ({"from": "same", "names": {"q": "x"}}, "is for arrays"),
}


@pytest.mark.parametrize("case", DEFECTS)
def test_weights_that_cannot_be_meant_are_refused(
    case: str, oracle: Model, directory: Path, tmp_path: Path
) -> None:
    said, message = DEFECTS[case]
    save_file(load_file(directory / "model.safetensors"), tmp_path / "w.safetensors")
    save_file({"x": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    model_directory(tmp_path / "smaller")
    (tmp_path / "same").symlink_to(directory)
    path = recorded(tmp_path, traced(oracle), said)
    with pytest.raises(AprFalsifyError) as refusal:
        opened(path, oracle)
    assert refusal.value.where == str(tmp_path / MAPPING_YAML)
    assert message in str(refusal.value)


def test_the_first_layer_is_where_the_recording_begins(oracle: Model, tmp_path: Path) -> None:
    subject = opened(recorded(tmp_path, traced(oracle), None), oracle)
    assert subject.model is None
    assert Key(0, "embedding") in subject.trace.stages
