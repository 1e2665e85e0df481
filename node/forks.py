"""Certificates of views that are decided: do they contradict what was made final here?

The machine forgets a view once a later one is final, and compares what comes late with its last
finalization only. The finalizations of all views are on disk. A certificate of the same view that
no honest quorum could have made beside one of these convicts a third of the power.
"""

from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.views import find_conflict
from steelyard.chain.consensus.votes import Kind
from steelyard.chain.types import View

from .store import ChainStore


def find_contradicted(
    store: ChainStore, certificate: Certificate, first: int, last: int
) -> Certificate | None:
    """Return the stored finalization that this certificate contradicts, or None.

    `first` and `last`: heights of the certificate's epoch that are final here. Its signatures are
    not checked: what costs that is left to the few that contradict anything.
    """
    if certificate.kind != Kind.NULLIFY and store.get_height(certificate.hash) is not None:
        return None
    final = _find_final(store, certificate.view, first, last)
    if final is None or find_conflict(final, certificate) is None:
        return None
    return final


def _find_final(store: ChainStore, view: View, first: int, last: int) -> Certificate | None:
    """The finalization of that view or the next one that has any: views ascend with heights."""
    while first < last:
        middle = (first + last) // 2
        found = store.get_certificate(middle)
        if found is not None and found.view < view:
            first = middle + 1
        else:
            last = middle
    return store.get_certificate(first)
