"""Whether both sides make the same token ids of a text."""

from __future__ import annotations

from apr_falsify.commands.specs import OracleSide
from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.errors import MissingDependencyError, ModelError, ProcessError
from apr_falsify.oracle.tokenizer import encode
from apr_falsify.subjects.interface import Subject, Tokenizing


def tokenizer_check(
    oracle: OracleSide, subject: Subject, text: str | None, ids: tuple[int, ...]
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Compare the ids that a subject fixes, or would give, with those of the oracle's tokenizer."""
    if subject.tokens is None:
        return _own_tokenizer_check(oracle, subject, text)
    if oracle.model is None or text is None:
        return (), ("the tokenizer: no prompt, or no model whose tokenizer could be asked",)
    try:
        ours = encode(oracle.model, text)
    except (MissingDependencyError, ModelError) as error:
        return (), (f"the tokenizer: {error.what}",)
    said = f"the subject ran {list(ids)}; the oracle was run on the subject's ids"
    return _tokenizer_findings(text, ours, ids, said), ()


def _own_tokenizer_check(
    oracle: OracleSide, subject: Subject, text: str | None
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Compare the tokenizer of a subject that runs the ids it is given with the oracle's."""
    if not isinstance(subject, Tokenizing) or text is None:
        return (), ()
    if oracle.model is None:
        return (), ("the tokenizer: no model whose tokenizer could be asked",)
    try:
        ours, theirs = encode(oracle.model, text), subject.encode(text)
    except (MissingDependencyError, ModelError, ProcessError) as error:
        return (), (f"the tokenizer: {error.what}",)
    said = f"the subject's own gives {list(theirs)}; both were run on the same ids"
    return _tokenizer_findings(text, ours, theirs, said), ()


def _tokenizer_findings(
    text: str, ours: tuple[int, ...], theirs: tuple[int, ...], said: str
) -> tuple[Finding, ...]:
    if ours == theirs:
        return ()
    if len(ours) > 1 and ours[1:] == theirs:
        said = f"{said}: {ours[0]}, which begins a sequence, is left out"
    elif theirs[1:] == ours:
        said = f"{said}: {theirs[0]} stands before them"
    finding = Finding(
        type=FindingType.TOKENIZER,
        explanation=f"the oracle's tokenizer gives {list(ours)} for {text!r}, {said}",
        advice="compare the subject's pre-tokenizer and merges with tokenizer.json",
        size=float(abs(len(ours) - len(theirs))),
    )
    return (finding,)
