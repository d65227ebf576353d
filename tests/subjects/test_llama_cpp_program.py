"""``llama-cpp:MODEL.gguf`` on the command line: what it says, what it keeps, and how it fails."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from apr_falsify.errors import MissingDependencyError, ProcessError
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import live, open_llama_cpp
from apr_falsify.subjects.llama_cpp.live import LlamaCppSubject
from apr_falsify.subjects.llama_cpp.nodes import NODES
from apr_falsify.subjects.llama_cpp.settings import SETTINGS
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.identity import model_sha256
from apr_falsify.traces.trace import read_trace
from tests.acceptance.programs import TINY as HF_TINY
from tests.acceptance.programs import program_without, run
from tests.llama_models import llama_cpp_or_skip, random_gguf, with_metadata
from tests.support import DATA

GGUF = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"
TOKENS = (274, 272, 332, 13, 20, 33)
REQUEST = Request(tokens=TOKENS, layers=range(3), stages=tuple(STAGES))


@pytest.fixture
def _installed() -> None:
    llama_cpp_or_skip()


live_only = [pytest.mark.live, pytest.mark.usefixtures("_installed")]


def live_test(test):
    for mark in live_only:
        test = mark(test)
    return test


def subject_of(path: Path, **options: str) -> LlamaCppSubject:
    named = {name.replace("_", "-"): text for name, text in options.items()}
    subject = open_llama_cpp(Target(path=path, options=named))
    assert isinstance(subject, LlamaCppSubject)
    return subject


@live_test
def test_a_gguf_alone_is_bisected_and_kept_with_its_log(tmp_path: Path) -> None:
    arguments = (
        "bisect",
        "--subject",
        f"llama-cpp:{GGUF}",
        "--layers",
        "0..3",
        "--out",
        str(tmp_path / "run"),
    )
    outcome = run(*arguments, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["kind"] == "consistent"
    subject = outcome.json["subject"]
    assert subject["runtime"] == "llama-cpp"
    assert subject["version"].startswith(f"llama-cpp-python {version('llama-cpp-python')}, ggml ")
    assert subject["model_sha256"] == model_sha256((GGUF,))
    assert len(subject["binary_sha256"]) == 64
    assert (subject["device"], subject["settings"]) == ("cpu", {})
    assert "CPU" in subject["libraries"]["system"]
    log = (tmp_path / "run" / "subject-llama-cpp.log").read_text()
    assert "llama_model_loader: loaded meta data" in log
    assert "llama_model_loader" not in outcome.out + outcome.err
    again = run(*arguments)
    assert again.code == 0, again.err


@live_test
def test_another_setting_is_not_the_capture_that_lies_there(tmp_path: Path) -> None:
    arguments = ("capture", f"llama-cpp:{GGUF}", "--out", str(tmp_path / "trace"))
    assert run(*arguments).code == 0
    assert read_trace(tmp_path / "trace").provenance.absent.keys() == {"ffn_silu"}
    other = run(*arguments, "--subject-option", "threads=2")
    assert other.code == 2
    assert "settings is {}, wanted {'threads': '2'}" in other.err


@live_test
def test_a_raw_capture_is_kept_and_read_again_with_the_same_verdict(tmp_path: Path) -> None:
    raw = tmp_path / "graph.npz"
    options = ("--subject-option", f"raw-capture={raw}", "--subject-option", "cache-type-k=q8_0")
    first = run("bisect", "--subject", f"llama-cpp:{GGUF}", "--layers", "0..3", *options, "--format", "json")
    second = run("bisect", "--subject", f"llama-cpp:{raw}", "--oracle", str(GGUF), "--format", "json")
    assert (first.code, second.code) == (1, 1), first.err + second.err
    assert first.json["findings"] == second.json["findings"]
    assert "q8_0 k cache fits" in first.json["findings"][0]["explanation"]
    assert [row["residual"] for row in first.json["stages"]] == [
        row["residual"] for row in second.json["stages"]
    ]
    third = run("capture", f"llama-cpp:{raw}", str(GGUF), "--out", str(tmp_path / "trace"))
    assert third.code == 0, third.err
    again = run("capture", f"llama-cpp:{GGUF}", *options[:2], "--out", str(tmp_path / "other"))
    assert again.code == 2
    assert f"{raw}: exists already" in again.err


@live_test
def test_a_tokenizer_that_would_give_other_ids_is_a_finding(tmp_path: Path) -> None:
    other = with_metadata(GGUF, tmp_path / "other.gguf", tokenizer__ggml__pre="llama-bpe")
    arguments = ("--oracle", str(GGUF), "--layers", "0..3", "--prompt", "in 12345 days", "--format", "json")
    same = run("bisect", "--subject", f"llama-cpp:{GGUF}", *arguments)
    assert (same.code, same.json["findings"]) == (0, [])
    outcome = run("bisect", "--subject", f"llama-cpp:{other}", *arguments)
    assert outcome.code == 1, outcome.err
    (finding,) = outcome.json["findings"]
    assert finding["type"] == "tokenizer"
    assert "the subject's own gives" in finding["explanation"]


@live_test
def test_ids_that_the_user_gives_are_run_without_asking_a_tokenizer() -> None:
    ids = ",".join(str(token) for token in TOKENS)
    outcome = run("bisect", "--subject", f"llama-cpp:{GGUF}", "--tokens", ids, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["tokens"] == list(TOKENS)


@live_test
def test_native_code_that_aborts_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "no-vocab.gguf", head_dim=16)
    with pytest.raises(ProcessError) as caught:
        subject_of(path).encode("some text")
    assert "`llama.cpp encode` was killed by SIGABRT" in caught.value.what
    assert "GGML_ASSERT(tokenizer" in caught.value.remedy


@live_test
def test_a_file_that_llama_cpp_refuses_is_an_error_in_its_own_words(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "odd.gguf", model_type="qwen2", head_dim=32)  # qwen2 has hidden / heads
    request = Request(tokens=(1, 2, 3), layers=range(1), stages=tuple(STAGES))
    with pytest.raises(ProcessError) as caught:
        subject_of(path).capture(request, MemorySink())
    assert caught.value.what == "llama.cpp could not load the model"
    assert "has wrong shape" in caught.value.remedy
    assert str(path) in str(caught.value)


@live_test
@pytest.mark.parametrize(
    ("options", "what", "said"),
    [
        ({"cache_type_v": "q8_0"}, "llama.cpp refused these settings", "requires flash_attn"),
        ({"ctx_size": "2"}, "llama_decode returned 1", "failed to find a memory slot"),
    ],
    ids=["v-cache", "small-context"],
)
def test_settings_that_llama_cpp_cannot_run_are_an_error_in_its_own_words(
    options: dict[str, str], what: str, said: str
) -> None:
    tokens = TOKENS * 60  # more than the smallest context that it makes
    request = Request(tokens=tokens, layers=range(1), stages=tuple(STAGES))
    with pytest.raises(ProcessError) as caught:
        subject_of(GGUF, **options).capture(request, MemorySink())
    assert caught.value.what.startswith(what)
    assert said in caught.value.remedy


@live_test
def test_a_python_without_the_package_is_an_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(ProcessError) as caught:
        subject_of(GGUF, python=str(python)).capture(REQUEST, MemorySink())
    assert "No module named" in str(caught.value)


def test_where_it_is_not_installed_the_command_that_installs_it_is_told() -> None:
    outcome = program_without(
        "llama_cpp", "bisect", "--subject", f"llama-cpp:{GGUF}", "--oracle", str(HF_TINY)
    )
    assert outcome.code == 2
    assert "llama-cpp-python is not installed" in outcome.err
    assert "try: pip install 'apr-falsify[llama-cpp]'" in outcome.err


def test_an_absent_package_is_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PACKAGE", "no_such_package")
    with pytest.raises(MissingDependencyError):
        subject_of(GGUF).capture(REQUEST, MemorySink())


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    outcome = run("bisect", "--subject", f"llama-cpp:{GGUF}", "--subject-option", "cache-type=q8_0")
    assert outcome.code == 2
    assert "the runtime llama-cpp has no setting 'cache-type'" in outcome.err
    assert "rope-freq-base" in outcome.err


def test_every_setting_and_every_node_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "subjects" / "llama-cpp.md").read_text(encoding="utf-8")
    assert [name for name in SETTINGS if f"`{name}`" not in page] == []
    newest = {node.names[0].replace("{n}", "N") for stage, node in NODES.items() if stage != "ffn_silu"}
    newest -= {"kqv_unrotated-N"}
    assert [node for node in newest if f"`{node}`" not in page] == []
