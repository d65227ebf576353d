"""``apr-falsify compare``: compare two traces; runs nothing, writes nothing, needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_falsify.commands import options
from apr_falsify.errors import ModelError

if TYPE_CHECKING:
    from apr_falsify.formats.weights import Model
    from apr_falsify.traces.trace import Trace


@click.command()
@click.argument("oracle_trace", type=click.Path(path_type=Path))
@click.argument("subject_trace", type=click.Path(path_type=Path))
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="The model both ran; names geometry and checks tokens of a bare recording.",
)
@options.family
@options.layers
@options.stages
@options.tokens
@options.output_format
@options.debug
def compare(
    oracle_trace: Path,
    subject_trace: Path,
    weights: Path | None,
    layers: range | None,
    stages: tuple[str, ...],
    tokens: tuple[int, ...] | None,
    output: str,
) -> int:
    """Compare two traces; runs nothing, writes nothing, needs no torch.

    A directory without trace.json is read as apr leaves it.
    """
    from apr_falsify.commands.progress import busy
    from apr_falsify.commands.report import emit
    from apr_falsify.compare.localise import bisect
    from apr_falsify.formats.weights import open_model
    from apr_falsify.subjects.interface import Target
    from apr_falsify.subjects.recorded import open_recorded

    model = None if weights is None else open_model(weights)
    oracle = open_recorded(Target(path=oracle_trace, model=model, tokens=tokens)).trace
    subject = open_recorded(Target(path=subject_trace, model=model, reference=oracle, tokens=tokens))
    with options.naming_the_option():
        shared = tuple(layer for layer in subject.layers if layer in oracle.layers) or subject.layers
        judged = shared if layers is None else tuple(oracle.geometry.check_layers(layers))
    if model is not None:
        _check_weights(oracle, model)
    with busy("comparing"):
        result = bisect(
            oracle,
            subject.trace,
            weights=None if model is None else model.weights,
            subject_weights=None if subject.model is None else subject.model.weights,
            not_checked=subject.notes,
            layers=judged,
            stages=stages,
        )
    emit(result, output)
    return int(result.exit_code)


def _check_weights(oracle: Trace, model: Model) -> None:
    """Refuse weights that are known not to be those that the oracle's trace ran."""
    from apr_falsify.traces.identity import model_sha256

    ran = oracle.provenance.model_sha256
    if ran is not None and ran != model_sha256(model.files):
        raise ModelError(
            "these are not the weights that the oracle's trace ran",
            where=model.path,
            expected=f"the model of {oracle.provenance.model} (sha256 {ran})",
        )
