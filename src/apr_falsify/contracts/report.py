"""What a validation found: the problems, and the counts that are their denominators."""

from __future__ import annotations

from dataclasses import dataclass

from apr_falsify.contracts.problem import Problem
from apr_falsify.symbols.states import quickly_pickled


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Denominators: what was looked at, and what became of it."""

    files: int = 0
    contracts: int = 0
    falsifiers: int = 0
    bindings: int = 0  # of registries of bindings, which are no contracts
    resolved: int = 0
    missing: int = 0
    unresolved: int = 0
    unchecked: int = 0
    functional: int = 0
    evidence_unchecked: int = 0  # of the functional ones
    bundles: int = 0  # that contracts name, where they are looked at
    fresh: int = 0  # of these: verified, and of today's claim and code

    @property
    def names(self) -> int:
        """All names cited."""
        return self.resolved + self.missing + self.unresolved + self.unchecked

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All problems of all files, in the order of the files, and the counts.

    ``without_contract`` are the paths that were asked for in which no file is a contract or a registry.
    """

    problems: tuple[Problem, ...]
    counts: Counts
    without_contract: tuple[str, ...] = ()
