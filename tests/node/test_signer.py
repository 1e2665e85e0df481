"""The voting key never says two things in one view, whoever asks and after whatever restart."""

from pathlib import Path

import pytest

from steelyard.chain.bls import compute_public_key
from steelyard.chain.consensus.validators import Validator, ValidatorSet
from steelyard.chain.consensus.votes import NO_HASH, Kind, Statement, check_vote
from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Epoch, Hash, Power, View
from steelyard.node.signer import ConflictingVote, Signer
from steelyard.node.store import CorruptData
from tests.chain.evm_kit import DOMAIN

from .world import SECRETS

A, B, GENESIS = Hash(b"\xaa" * 32), Hash(b"\xbb" * 32), Hash(b"\x01" * 32)


def open_signer(path: Path) -> Signer:
    return Signer(path, SECRETS.voting, DOMAIN, GENESIS)


def say(kind: Kind, view: int, block: Hash = NO_HASH, epoch: int = 0) -> Statement:
    return Statement(Epoch(epoch), View(view), kind, block)


def test_a_vote_verifies(tmp_path: Path) -> None:
    key = compute_public_key(SECRETS.voting)
    validators = ValidatorSet((Validator(SECRETS.address, key, Power(1)),))
    signer = open_signer(tmp_path)
    check_vote(signer.sign_vote(say(Kind.NOTARIZE, 1, A), 0), validators, DOMAIN)
    signer.close()


def test_the_same_statement_again_has_the_same_bytes(tmp_path: Path) -> None:
    signer = open_signer(tmp_path)
    first = signer.sign_vote(say(Kind.NOTARIZE, 1, A), 0)
    signer.close()
    signer = open_signer(tmp_path)
    assert signer.sign_vote(say(Kind.NOTARIZE, 1, A), 0) == first
    assert not signer.is_new()
    signer.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (say(Kind.NOTARIZE, 5, A), say(Kind.NOTARIZE, 5, B)),
        (say(Kind.FINALIZE, 5, A), say(Kind.FINALIZE, 5, B)),
        (say(Kind.FINALIZE, 5, A), say(Kind.NULLIFY, 5)),
        (say(Kind.NULLIFY, 5), say(Kind.FINALIZE, 5, A)),
        (say(Kind.NOTARIZE, 5, A), say(Kind.FINALIZE, 5, B)),
        (say(Kind.FINALIZE, 5, A), say(Kind.NOTARIZE, 5, B)),
        (say(Kind.NULLIFY, 5), say(Kind.NOTARIZE, 5, A)),
    ],
)
def test_a_conflicting_vote_is_refused_even_after_a_restart(
    tmp_path: Path, first: Statement, second: Statement
) -> None:
    signer = open_signer(tmp_path)
    signer.sign_vote(first, 0)
    signer.close()
    signer = open_signer(tmp_path)
    with pytest.raises(ConflictingVote) as caught:
        signer.sign_vote(second, 0)
    assert caught.value.code == "vote_conflict"
    assert signer.get_statements() == (first,)
    signer.close()


def test_votes_that_may_go_together_do(tmp_path: Path) -> None:
    signer = open_signer(tmp_path)
    signer.sign_vote(say(Kind.NOTARIZE, 5, A), 0)
    signer.sign_vote(say(Kind.NULLIFY, 5), 0)
    signer.sign_vote(say(Kind.NOTARIZE, 6, B), 0)
    signer.sign_vote(say(Kind.FINALIZE, 6, B), 0)
    assert len(signer.get_statements()) == 4
    signer.close()


def test_nothing_is_signed_at_or_below_a_forgotten_view(tmp_path: Path) -> None:
    signer = open_signer(tmp_path)
    signer.sign_vote(say(Kind.NOTARIZE, 5, A), 0)
    signer.sign_vote(say(Kind.NOTARIZE, 8, A), 0)
    signer.raise_floor(0, 6)
    signer.close()
    signer = open_signer(tmp_path)
    assert signer.get_statements() == (say(Kind.NOTARIZE, 8, A),)
    for view in (5, 6):
        with pytest.raises(ConflictingVote) as caught:
            signer.sign_vote(say(Kind.NOTARIZE, view, A), 0)
        assert caught.value.code == "vote_too_old"
    signer.raise_floor(0, 3)
    with pytest.raises(ConflictingVote):
        signer.sign_vote(say(Kind.NOTARIZE, 4, A), 0)
    signer.sign_vote(say(Kind.NOTARIZE, 7, A), 0)
    signer.close()


def test_what_was_said_elsewhere_is_taken_over(tmp_path: Path) -> None:
    signer = open_signer(tmp_path)
    signer.sign_vote(say(Kind.NOTARIZE, 8, A), 0)
    signer.merge((say(Kind.NOTARIZE, 3, B), say(Kind.NULLIFY, 9)), (0, 4))
    signer.close()
    signer = open_signer(tmp_path)
    assert signer.get_statements() == (say(Kind.NOTARIZE, 8, A), say(Kind.NULLIFY, 9))
    assert signer.get_floor() == (0, 4)
    assert signer.get_last() == (0, 9)
    with pytest.raises(ConflictingVote):
        signer.sign_vote(say(Kind.FINALIZE, 9, A), 0)
    signer.close()


def test_a_contradiction_between_two_lives_ends_up_below_the_floor(tmp_path: Path) -> None:
    signer = open_signer(tmp_path)
    signer.sign_vote(say(Kind.FINALIZE, 8, A), 0)
    signer.sign_vote(say(Kind.NOTARIZE, 10, A), 0)
    signer.merge((say(Kind.NULLIFY, 8),), (0, 0))
    assert signer.get_floor() == (0, 8)
    assert signer.get_statements() == (say(Kind.NOTARIZE, 10, A),)
    assert signer.has_said(say(Kind.NULLIFY, 8))
    signer.close()


def test_the_floor_is_never_lowered(tmp_path: Path) -> None:
    signer = open_signer(tmp_path)
    signer.raise_floor(1, 6)
    signer.raise_floor(0, 99)
    assert signer.get_floor() == signer.get_last() == (1, 6)
    signer.close()


def test_a_database_of_another_key_or_chain_is_refused(tmp_path: Path) -> None:
    open_signer(tmp_path).close()
    with pytest.raises(SteelyardError) as caught:
        Signer(tmp_path, SECRETS.voting, DOMAIN, Hash(b"\x02" * 32))
    assert caught.value.code == "signer_mismatch"


def test_a_broken_database_is_refused(tmp_path: Path) -> None:
    open_signer(tmp_path).close()
    (tmp_path / "data.mdb").write_bytes(b"\x00" * 100)
    with pytest.raises(CorruptData, match="never copy signer/"):
        open_signer(tmp_path)
