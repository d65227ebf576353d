"""A quantised GGUF against the checkpoint it was made from: what quantising costs is nobody's fault.

``apr import`` holds Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 in f32. The files are written by the gguf package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.formats.apr import AprFile
from tests.acceptance.programs import TINY, Outcome, run
from tests.llama_models import llama_cpp_or_skip
from tests.support import DATA
from tests.unit.apr_files import gguf_tensors, made, needs_apr, regrown, tiny_llama_gguf

Tensors = dict[str, npt.NDArray[Any]]

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
Q4K = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"
LLAMA = DATA / "apr-tiny-llama-hf" / "model"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path / "cache"))


def quantised(path: Path, kind: str, spoil: Callable[[Tensors], None] = lambda tensors: None) -> Path:
    """Quantise the tiny checkpoint, whose tensors ``spoil`` changes before."""
    tensors = gguf_tensors(TINY, gguf.MODEL_ARCH.QWEN2)
    spoil(tensors)
    return regrown(Q4K, path, kind, values=tensors)


def swap_rows(tensors: Tensors) -> None:
    tensors["blk.1.attn_v.weight"][[5, 40]] = tensors["blk.1.attn_v.weight"][[40, 5]]


def scale_row(tensors: Tensors) -> None:
    tensors["blk.1.attn_v.weight"][5] *= np.float32(1.05)


FAULTS = {"swapped-rows": swap_rows, "scaled-row": scale_row}


def bisected(subject: str, oracle: Path = TINY, layers: str = "0..3") -> Outcome:
    return run("bisect", "--oracle", oracle, "--subject", subject, "--layers", layers, "--format", "json")


def weights_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in found["findings"] if finding["type"] == "weights"]


def arithmetics(found: dict[str, Any]) -> set[str]:
    return {row["arithmetic"] for row in found["stages"] if row["stage"] == "ffn_up"}


def assert_consistent(found: dict[str, Any], *others: str) -> None:
    assert found["kind"] == "consistent"
    assert [finding["type"] for finding in found["findings"]] == list(others)
    compared = [row["verdict"] for row in found["stages"] if row["status"] == "compared"]
    assert set(compared) == {"within-floor"}


@needs_apr
@pytest.mark.parametrize("kind", KINDS)
def test_what_quantising_costs_is_no_finding_though_apr_holds_it_in_f32(tmp_path: Path, kind: str) -> None:
    found = bisected(f"apr:{quantised(tmp_path / 'x.gguf', kind)}").json
    assert_consistent(found, "tokenizer")
    assert arithmetics(found) == {"f32 x f32"}  # replayed as apr holds it


@needs_apr
@pytest.mark.parametrize(
    ("kind", "fault"), [("Q8_0", "scaled-row"), *((kind, "swapped-rows") for kind in KINDS)]
)
def test_a_fault_of_the_conversion_to_gguf_is_located_at_its_tensor(
    tmp_path: Path, kind: str, fault: str
) -> None:
    found = bisected(f"apr:{quantised(tmp_path / 'x.gguf', kind, FAULTS[fault])}").json
    (finding,) = weights_of(found)
    assert found["kind"] == "localised"
    assert (finding["layer"], finding["stages"]) == (1, ["qkv_matmul"])
    assert finding["explanation"].startswith(f"x.gguf's v of layer 1 ({kind.lower()}) is not the oracle's")
    assert finding["explanation"].endswith("its import left it as it was")


@needs_apr
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("oracle", ["checkpoint", "the same file"])
def test_a_tensor_that_the_import_changed_is_told_as_that(tmp_path: Path, kind: str, oracle: str) -> None:
    source = Q4K if kind == "Q4_K" else quantised(tmp_path / "x.gguf", kind)
    reference = TINY if oracle == "checkpoint" else source
    assert weights_of(bisected(f"apr:{source}", reference).json) == []
    (held,) = (tmp_path / "cache" / "apr-import").glob("*.apr")
    info = next(info for name, info in AprFile(held).tensors.items() if name.endswith("2.mlp.up_proj.weight"))
    with held.open("r+b") as file:  # the second half of it lies where the first should
        file.seek(info.offset + info.nbytes // 2)
        second = file.read(info.nbytes // 2)
        file.seek(info.offset)
        file.write(second)
    found = bisected(f"apr:{source}", reference).json
    (finding,) = weights_of(found)
    assert (finding["layer"], finding["stages"]) == (2, ["ffn_up"])
    assert finding["explanation"].endswith(f"the import of {source.name} changed it")


@needs_apr
def test_an_apr_file_that_does_not_say_what_it_was_imported_from_asks_for_that(tmp_path: Path) -> None:
    held = made(tmp_path / "x.apr", "import", quantised(tmp_path / "x.gguf", "Q8_0"))
    findings = weights_of(bisected(f"apr:{held}", layers="0..1").json)
    assert len(findings) == 9
    assert all("imported from a quantised file, name that one" in finding["try"] for finding in findings)


@needs_apr
def test_the_same_file_and_a_finer_one_are_sound_oracles_of_a_quantised_file(tmp_path: Path) -> None:
    fine, coarse = (quantised(tmp_path / f"{kind}.gguf", kind) for kind in ("Q8_0", "Q4_0"))
    for oracle in (fine, coarse):
        assert weights_of(bisected(f"apr:{coarse}", oracle, "0..1").json) == []


@needs_apr
@pytest.mark.parametrize("order", ["interleaved", "half-split"])
def test_rotary_pairs_are_in_the_order_of_the_file_that_was_imported(tmp_path: Path, order: str) -> None:
    source = tiny_llama_gguf(LLAMA, Q4K, tmp_path / "f32.gguf")
    kept = gguf_tensors(LLAMA, gguf.MODEL_ARCH.LLAMA) if order == "half-split" else None
    found = bisected(f"apr:{regrown(source, tmp_path / 'x.gguf', 'Q8_0', values=kept)}", LLAMA, "0..1").json
    if order == "interleaved":
        assert_consistent(found)
        return
    told = [finding["explanation"].split(" (")[0] for finding in weights_of(found)]
    assert told == ["x.gguf's q of layer 0", "x.gguf's k of layer 0"]


@pytest.mark.live
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_on_a_quantised_file_is_consistent_and_its_conversion_is_checked(
    tmp_path: Path, kind: str
) -> None:
    llama_cpp_or_skip()
    sound = bisected(f"llama-cpp:{quantised(tmp_path / 'x.gguf', kind)}").json
    assert_consistent(sound)
    assert all(name.startswith(f"{kind.lower()} x q8") for name in arithmetics(sound))
    found = bisected(f"llama-cpp:{quantised(tmp_path / 'y.gguf', kind, swap_rows)}").json
    (finding,) = weights_of(found)
    assert (finding["layer"], finding["stages"]) == (1, ["qkv_matmul"])
