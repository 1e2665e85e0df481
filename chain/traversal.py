"""Walking a whole state: what each stored node refers to, for downloads and for pruning.

A state is a trie of accounts; each account names a trie of its storage and a code. All of them are
stored by their keccak-256, so a walk needs only to know what kind of thing it has in its hands.
Source: Ethereum yellow paper, appendix D.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from .proofs import EMPTY_CODE_HASH, decode_account
from .rlp import InvalidEncoding, Item, decode_rlp
from .trie import EMPTY_ROOT, MissingState, decode_path
from .types import Hash


class Kind(IntEnum):
    """What a hash stands for."""

    ACCOUNTS = 1
    """A node of the trie of accounts."""
    STORAGE = 2
    """A node of the trie of one account's storage."""
    CODE = 3


@dataclass(frozen=True, slots=True)
class Reference:
    """Something stored under its hash, and what it is."""

    kind: Kind
    hash: Hash


def list_roots(state_root: Hash) -> tuple[Reference, ...]:
    """Return where a walk begins; an empty state has nothing to walk."""
    return () if state_root == EMPTY_ROOT else (Reference(Kind.ACCOUNTS, state_root),)


def list_references(kind: Kind, data: bytes) -> tuple[Reference, ...]:
    """Return what `data` refers to, in its order. Raises MissingState if it is no such node."""
    if kind is Kind.CODE:
        return ()
    try:
        return tuple(_iter_node(kind, decode_rlp(data)))
    except (InvalidEncoding, IndexError) as error:
        raise MissingState(b"") from error


def _iter_node(kind: Kind, node: Item) -> Iterator[Reference]:
    """Yield the references of a node, those of children that it holds itself included."""
    if not isinstance(node, list) or len(node) not in {2, 17}:
        raise MissingState(b"")
    if len(node) == 17:
        for child in node[:16]:
            yield from _iter_child(kind, child)
        if node[16]:
            yield from _iter_value(kind, node[16])
        return
    path = node[0]
    if not isinstance(path, bytes):
        raise MissingState(b"")
    _, is_leaf = decode_path(path)
    yield from _iter_value(kind, node[1]) if is_leaf else _iter_child(kind, node[1])


def _iter_child(kind: Kind, child: Item) -> Iterator[Reference]:
    if isinstance(child, list):
        yield from _iter_node(kind, child)
    elif child:
        if len(child) != 32:
            raise MissingState(b"")
        yield Reference(kind, Hash(child))


def _iter_value(kind: Kind, value: Item) -> Iterator[Reference]:
    if not isinstance(value, bytes):
        raise MissingState(b"")
    if kind is not Kind.ACCOUNTS:
        return
    account = decode_account(value)
    if account.storage_root != EMPTY_ROOT:
        yield Reference(Kind.STORAGE, account.storage_root)
    if account.code_hash != EMPTY_CODE_HASH:
        yield Reference(Kind.CODE, account.code_hash)
