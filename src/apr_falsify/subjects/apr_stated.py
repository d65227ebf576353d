"""What an .apr file, its source or the other side states of the model that ``apr`` is to run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from apr_falsify.errors import AprFalsifyError, ModelError, TraceError
from apr_falsify.formats.apr_geometry import HeadsError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.subjects.adoption import adopted_geometry
from apr_falsify.subjects.interface import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What is known of a model before it runs; see :class:`~apr_falsify.subjects.apr.AprSubject`."""

    model: Model | None = None
    geometry: Geometry
    interleaved: bool
    torn: bool = False
    notes: tuple[str, ...] = ()


def stated(apr: Path, target: Target) -> Stated:
    """Return what is known of a model: as the .apr file says, else its source, else the other side.

    Raises:
        ModelError: nothing says which model it is.

    """
    try:
        model, notes = _with_source(open_model(apr), target.path)
        return Stated(
            model=model, geometry=model.geometry, interleaved=model.weights.interleaved, notes=notes
        )
    except HeadsError as error:
        torn, notes = error.geometry, (f"the subject's own weights: {error.what}",)
    except AprFalsifyError as error:
        torn, notes = None, (f"the subject's own weights: {error.what}",)
    geometry, interleaved = _stated_elsewhere(apr, target)
    return Stated(geometry=torn or geometry, interleaved=interleaved, torn=torn is not None, notes=notes)


def _with_source(model: Model, source: Path) -> tuple[Model, tuple[str, ...]]:
    """Return ``model`` with the weights that it was imported from, and what is not known of them."""
    if model.path == source:
        return model, ()
    try:
        weights = replace(model.weights, imported_from=open_model(source).weights)
    except AprFalsifyError as error:
        return model, (f"the import itself: {error.what}",)
    return replace(model, weights=weights), ()


def _stated_elsewhere(apr: Path, target: Target) -> tuple[Geometry, bool]:
    """Return geometry and rotary pairing as the source of the .apr file says, else the other side."""
    if target.path != apr:
        model = open_model(target.path)
        return model.geometry, model.weights.interleaved
    try:
        return adopted_geometry(target)
    except TraceError as error:
        raise ModelError(error.what, where=apr, remedy=error.remedy) from error
