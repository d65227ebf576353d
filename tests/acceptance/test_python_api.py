"""The public API: docs/python.md as one program, what importing it costs, and what else it takes."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import apr_falsify as af
from apr_falsify import api
from apr_falsify.model.stages import Key
from tests.acceptance.programs import TINY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"


def programs(text: str) -> Iterator[tuple[str, str]]:
    """Give each block of Python with what the page says that it prints."""
    yield from re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", text, flags=re.DOTALL)


def test_the_page_is_one_program_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("src", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)  # the page writes a run into the current folder
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(programs(text))
    assert len(blocks) == text.count("```python") == 5
    names: dict[str, object] = {}
    for code, printed in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, str(PAGE), "exec"), names)
        assert out.getvalue() == printed, code


def test_the_page_names_every_function() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("assert_one_source", "bisect", "capture", "open_model", "read_trace"):
        assert f"af.{name}(" in text


def test_importing_it_loads_nothing() -> None:
    code = "import apr_falsify, sys; print(len([m for m in sys.modules if m.startswith('apr_falsify')]))\n"
    code += "print([m for m in ('numpy', 'torch', 'click', 'yaml', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1", "[]"]


def test_pytest_is_needed_by_tests_alone() -> None:
    code = "import sys; sys.modules['pytest'] = None\nimport apr_falsify as af; print(af.Kind.CONSISTENT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "consistent\n"


def test_it_offers_what_it_lists_and_nothing_else() -> None:
    assert sorted(api.__all__) == sorted(set(af.__all__) - {"__version__"})
    for name in af.__all__:
        assert getattr(af, name) is not None
    assert set(af.__all__) <= set(dir(af))
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = af.no_such_thing


TOKENS = (5, 6, 7, 9)


def test_a_trace_in_memory_is_compared_with_a_model_on_its_own_tokens_and_layers() -> None:
    subject = af.capture(f"embedded:{TINY}", tokens=TOKENS, layers=range(1, 3))
    key = Key(2, "ffn_gate")
    data = np.array(subject.stages[key].data)
    data[:, 3] *= 2
    wrong = replace(subject, stages={**subject.stages, key: replace(subject.stages[key], data=data)})
    assert af.bisect(TINY, subject).kind is af.Kind.CONSISTENT
    found = af.bisect(TINY, wrong)
    assert {(one.layer, one.stages) for one in found.sources} == {(2, ("ffn_gate",)), (2, ("ffn_silu",))}
    assert found.tokens == TOKENS


def test_of_two_traces_the_weights_are_named_apart_and_their_absence_is_told() -> None:
    oracle = af.capture(TINY, tokens=TOKENS)
    subject = af.capture(f"embedded:{TINY}", tokens=TOKENS)
    bare, whole = af.bisect(oracle, subject), af.bisect(oracle, subject, weights=TINY)
    assert (bare.kind, whole.kind) == (af.Kind.CONSISTENT, af.Kind.CONSISTENT)
    assert any("needs weights" in line for line in bare.not_checked)
    assert not any("needs weights" in line for line in whole.not_checked)


def test_a_run_is_kept_and_used_again(tmp_path: Path) -> None:
    first = af.bisect(TINY, tokens=TOKENS, out=tmp_path / "run")
    written = (tmp_path / "run" / "oracle" / "trace.json").stat().st_mtime_ns
    again = af.bisect(TINY, tokens=TOKENS, out=tmp_path / "run")
    assert (first.kind, again.kind) == (af.Kind.CONSISTENT, af.Kind.CONSISTENT)
    assert (tmp_path / "run" / "oracle" / "trace.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: af.capture(TINY, tokens=TOKENS, oracle=TINY), "named twice"),
        (lambda: af.bisect(TINY, f"nosuch:{TINY}", tokens=TOKENS), "not a subject"),
        (
            lambda: af.bisect(TINY, af.capture(f"embedded:{TINY}", tokens=(1, 2)), tokens=(3,)),
            "tokens of its own",
        ),
        (lambda: af.bisect(af.capture(TINY, tokens=(1, 2))), "needs a subject"),
        (lambda: af.capture(TINY, tokens=(10**9,)), "vocabulary"),
        (lambda: af.capture(TINY, tokens=["a"]), "not token ids"),
        (lambda: af.capture(TINY, tokens=[1.5]), "not token ids"),
        (lambda: af.capture(TINY, tokens=TOKENS, layers=range(0)), "not layers"),
        (lambda: af.capture(TINY, tokens=TOKENS, layers=[0]), "not layers"),
        (lambda: af.capture(TINY, tokens=TOKENS, layers=range(0, 3, 2)), "not layers"),
        (lambda: af.capture(TINY, tokens=TOKENS, layers=range(9)), "beyond the model"),
        (lambda: af.capture(TINY, tokens=TOKENS, stages=["attn_norm", "attn_nrom"]), "attn_nrom"),
        (lambda: af.capture(TINY, tokens=TOKENS, stages="attn_norm"), "not a list"),
        (lambda: af.capture(TINY, tokens=TOKENS, device="mps"), "no device"),
        (lambda: af.capture(TINY, tokens=TOKENS, dtype="float32"), "float32"),
        (lambda: af.bisect(TINY, af.capture(TINY, tokens=(1, 2)), out="x"), "not saved"),
        (lambda: af.bisect(TINY, af.capture(TINY, tokens=(1, 2)), options={"a": "b"}), "no options"),
        (lambda: af.open_model("no/such/model"), "no such file"),
    ],
)
def test_what_cannot_be_meant_is_a_typed_error(call: object, said: str) -> None:
    assert callable(call)
    with pytest.raises(af.AprFalsifyError, match=said):
        call()
