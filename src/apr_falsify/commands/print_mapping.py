"""``apr-falsify capture recorded:DUMP --print-mapping``: what a starter is made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apr_falsify.commands.progress import busy
from apr_falsify.commands.sides import DEFAULT_DTYPES
from apr_falsify.commands.specs import OracleSide, open_oracle
from apr_falsify.commands.starter import ProposalContext, propose, token_arrays
from apr_falsify.commands.starter_text import starter_text
from apr_falsify.commands.wired import every_stage, tokens_run, tokens_said, wired_mapping
from apr_falsify.errors import TokensError
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.foreign import Dump


def mapping_starter(
    path: Path,
    oracle_spec: str | None,
    *,
    tokens: tuple[int, ...] | None,
    dtype: str | None,
    device: str,
) -> str:
    """Return a starter of MAPPING.yaml for the recording at ``path``.

    Args:
        path: the recording.
        oracle_spec: the model that was recorded, or a trace of it; without one only names are compared.
        tokens: the token ids that were run, where the user says so.
        dtype: the oracle's number format.
        device: where the oracle runs.

    Raises:
        TraceError: no recording that is read here.
        TokensError: ids that are not those of the oracle's trace.

    """
    dump = read_dump(path)
    oracle = None if oracle_spec is None else open_oracle(oracle_spec)
    known = _known(path, dump, oracle, tokens)
    if oracle is not None and oracle.model is not None and known.tokens is not None:
        dtype = dtype or DEFAULT_DTYPES[device]
        trace = every_stage(oracle.model, known.tokens, dtype=dtype, device=device)
        return wired_mapping(path, dump, trace, oracle.model.weights, tokens_from=known.tokens_from).text
    with busy("comparing"), np.errstate(invalid="ignore"):  # any bits may stand there: signalling NaN too
        return starter_text(propose(dump, known, path), dump, known, path.name)


def _known(
    path: Path, dump: Dump, oracle: OracleSide | None, tokens: tuple[int, ...] | None
) -> ProposalContext:
    geometry = None if oracle is None else oracle.geometry
    trace = None if oracle is None else oracle.trace
    if trace is not None:
        if tokens not in (None, trace.tokens):
            raise TokensError(
                "not the tokens of the oracle's trace", where="--tokens", expected=str(list(trace.tokens))
            )
        tokens = trace.tokens
    held = token_arrays(dump, None if geometry is None else geometry.vocab)
    tokens, source = tokens_run(held, tokens_said(path, tokens))
    return ProposalContext(geometry=geometry, tokens=tokens, tokens_from=source, oracle=trace)
