"""All that a contract, or a registry of bindings, says exists."""

from __future__ import annotations

from collections.abc import Iterator

from apr_falsify.contracts.citations import citations
from apr_falsify.contracts.located import located
from apr_falsify.contracts.model import Citation, Contract
from apr_falsify.contracts.proofs import proof_citations


def all_cited(contract: Contract) -> Iterator[Citation]:
    """Everything a contract cites, each once, by whichever of its blocks."""
    seen = set()
    for citation in (*citations(contract), *located(contract), *proof_citations(contract)):
        key = (citation.kind, citation.name, citation.paths, citation.place, citation.cargo)
        if key not in seen:
            seen.add(key)
            yield citation
