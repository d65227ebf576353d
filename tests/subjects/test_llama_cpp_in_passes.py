"""The real llama.cpp with its cache: decoding and chunks are clean, a cache nobody asked for is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.compare.bisection import Bisection, FindingType, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import open_model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects import embedded
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.llama_cpp.child import _parts
from apr_falsify.subjects.llama_cpp.settings import CACHE_TYPES
from apr_falsify.traces.capture import MemorySink, Request
from tests.acceptance.programs import run
from tests.llama_models import llama_cpp_or_skip, random_gguf

TOKENS = (1, 5, 9, 22, 30, 3, 7, 40, 41, 2, 60, 33, 12)
DECODED, CHUNKED = (5, *(1,) * 8), (4, 4, 4, 1)
IDS = ",".join(map(str, TOKENS))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    llama_cpp_or_skip()
    return random_gguf(tmp_path / "qwen3.gguf", model_type="qwen3", head_dim=64)


def in_passes(path: Path, sizes: tuple[int, ...], **options: str) -> Bisection:
    """Bisect llama.cpp in passes against the embedded decoder in the same."""
    model, named = open_model(path), {name.replace("_", "-"): text for name, text in options.items()}
    layers = range(model.geometry.layers)
    request = Request(
        tokens=TOKENS, layers=layers, stages=tuple(STAGES), feeder=True, in_passes=Passes(sizes=sizes)
    )
    subject = open_llama_cpp(Target(path=path, options=named)).capture(request, MemorySink())
    assert subject.passes.sizes == sizes
    oracle = embedded.capture(model, request, MemorySink())
    return bisect(oracle, subject, weights=model.weights, subject_weights=model.weights, layers=tuple(layers))


def residuals(result: Bisection) -> list[float]:
    return [row.residual for row in result.rows if row.residual is not None]


@pytest.mark.live
@pytest.mark.parametrize("sizes", [DECODED, CHUNKED], ids=["decoded", "in-chunks"])
def test_a_run_with_a_cache_is_explained_and_nothing_is_accused(sizes: tuple[int, ...], model: Path) -> None:
    result = in_passes(model, sizes)
    assert (result.kind, result.findings, result.complete) == (Kind.CONSISTENT, (), True)
    assert len(residuals(result)) == 2 * 15 + 3
    assert max(residuals(result)) <= 1e-6


QUANTISED = [name for name in CACHE_TYPES if name[0] in "qi"]


@pytest.mark.live
@pytest.mark.parametrize("kind", sorted(CACHE_TYPES))
def test_a_k_cache_nobody_asked_for_is_named_in_passes(kind: str, model: Path) -> None:
    result = in_passes(model, DECODED, cache_type_k=kind)
    assert result.kind is Kind.CONSISTENT
    assert max(residuals(result)) <= 1e-6
    if kind == "f16":
        assert result.findings == ()
        return
    ((stages, said),) = [(found.stages, found.explanation) for found in result.findings]
    named = {"f32": "f32 fits", "bf16": "bf16 q and k fits"}
    assert stages == ("attn_scores",)
    assert named.get(kind, f"{kind} k cache, Hadamard-rotated fits") in said


@pytest.mark.live
@pytest.mark.parametrize("kind", QUANTISED)
def test_a_v_cache_nobody_asked_for_is_named_in_passes(kind: str, model: Path) -> None:
    """Only flash attention takes such; K stays in f16, as it is expected."""
    result = in_passes(model, CHUNKED, cache_type_v=kind, flash_attn="on")
    ((stages, said),) = [(found.stages, found.explanation) for found in result.findings]
    assert (stages, result.findings[0].type) == (("attention",), FindingType.ARITHMETIC)
    assert f"f16 q and k; {kind} v cache, Hadamard-rotated fits" in said
    assert max(residuals(result)) <= 1e-6


@pytest.mark.live
@pytest.mark.parametrize("options", [("--decode", 8), ("--chunks", 4), ("--passes", "6,6,1")], ids=str)
def test_llama_cpp_with_its_cache_is_compared_with_itself_without(
    options: tuple[object, ...], model: Path
) -> None:
    sides = ("--oracle", f"llama-cpp:{model}", "--subject", f"llama-cpp:{model}")
    done = run("bisect", *sides, "--tokens", IDS, "--layers", "0..2", *options)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("consistent: no stage introduces an error")


@pytest.mark.live
def test_llama_cpp_on_other_threads_is_itself_to_the_last_bit(model: Path) -> None:
    sides = ("--oracle", f"llama-cpp:{model}", "--oracle-option", "threads=1")
    own = ("--subject", f"llama-cpp:{model}", "--subject-option", "threads=2")
    done = run("bisect", *sides, *own, "--tokens", IDS, "--layers", "0..2", "--decode", 4)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("consistent: no stage introduces an error")


@pytest.mark.live
def test_another_cache_type_than_the_reference_s_is_named(model: Path) -> None:
    sides = ("--oracle", f"llama-cpp:{model}", "--subject", f"llama-cpp:{model}")
    other = ("--subject-option", "cache-type-k=q8_0")
    done = run("bisect", *sides, *other, "--tokens", IDS, "--layers", "0..2", "--decode", 8)
    assert done.code == 1
    assert "q8_0 k cache, Hadamard-rotated" in done.out


@pytest.mark.live
def test_positions_that_llama_cpp_does_not_take_are_an_error_in_its_own_words(model: Path) -> None:
    arguments = ("--oracle", model, "--subject", f"llama-cpp:{model}", "--layers", "0..1")
    done = run("bisect", *arguments, "--tokens", "1,5,9,22", "--passes", "2,2", "--positions", "0,1,9,3")
    assert done.code == 2
    assert "llama_decode returned -1" in done.err


def test_a_pass_longer_than_the_context_holds_is_run_in_parts() -> None:
    assert _parts([7, 1, 4], 3) == [3, 3, 1, 1, 3, 1]
