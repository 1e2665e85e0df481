"""Validators check in, jail the absent, report cheats: once, in turn, and whatever is killed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from eth_abi.abi import decode

from steelyard.chain.bls import sign
from steelyard.chain.consensus.certificates import Certificate, build_certificate
from steelyard.chain.consensus.messages import (
    CertificateReceived,
    ReportConflict,
    ReportOffence,
    VoteReceived,
)
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
    Statement,
    Vote,
    compute_signing_root,
)
from steelyard.chain.epochs import EpochSet
from steelyard.chain.execute import CallRequest
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.rlp import InvalidEncoding, encode_rlp
from steelyard.chain.types import Address, Domain, Epoch, Hash, View
from steelyard.node.alarms import State
from steelyard.node.duties import (
    EVIDENCE,
    MAX_EVIDENCE_EACH,
    EvidenceBook,
    build_evidence,
    compute_turn,
    decode_evidence,
    encode_evidence,
)
from steelyard.node.keeper import RANK_SECONDS
from steelyard.node.node import Node
from steelyard.node.store import CorruptData, Database
from steelyard.node.wallet import encode_call
from tests.chain.evm_kit import DOMAIN

from .cluster import Cluster, make_document, make_secrets
from .world import ALICE, COIN, sign_transaction

Begin = Callable[..., Cluster]
A, B = Hash(b"\xaa" * 32), Hash(b"\xbb" * 32)
EPOCH_BLOCKS = 8
JAIL_EPOCHS = 8


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Makes a cluster and starts the nodes at these places; `look` is the keeper's."""
    clusters: list[Cluster] = []

    def make(stakes: tuple[int, ...], *places: int, epoch_blocks: int = EPOCH_BLOCKS) -> Cluster:
        document = make_document(stakes, epoch_blocks=epoch_blocks, heartbeat_ms=60_000)
        cluster = Cluster(tmp_path / "nodes", document, len(stakes))
        clusters.append(cluster)
        cluster.start(*places)
        return cluster

    yield make
    for cluster in clusters:
        cluster.close()


def say(kind: Kind, block: Hash = A, view: int = 5) -> Statement:
    return Statement(Epoch(0), View(view), kind, NO_HASH if kind == Kind.NULLIFY else block)


def vote(place: int, statement: Statement, domain: Domain = DOMAIN) -> Vote:
    root = compute_signing_root(statement, domain)
    return Vote(statement, place, sign(make_secrets(place).voting, root))


def accuse(place: int, view: int = 5, domain: Domain = DOMAIN) -> ReportOffence:
    """Two notarizations by the validator at that place."""
    first, second = (vote(place, say(Kind.NOTARIZE, block, view), domain) for block in (A, B))
    return ReportOffence(first, second)


def certify(epoch_set: EpochSet, statement: Statement, *places: int) -> Certificate:
    votes = [vote(place, statement) for place in places]
    return build_certificate(votes, epoch_set.validators)


def ask(node: Node, signature: str, kind: str, *values: object) -> object:
    data = encode_call(signature, *values)
    result = node.call(CallRequest(to=Address(STAKING_ADDRESS), data=data))
    assert not result.is_error
    return decode([kind], result.output)[0]


def get_state(node: Node, place: int) -> State:
    standing = ask(node, "get_standing(address)", "uint8", make_secrets(place).address)
    return State(standing)  # type: ignore[arg-type]


def look(cluster: Cluster) -> None:
    """Every keeper looks once, and what that sends becomes final."""
    for node in cluster.nodes.values():
        node.duties.look()
        for transaction in node.get_pending():
            for other in cluster.nodes.values():
                if other.get_pending_transaction(transaction.hash) is None:
                    other.submit_transaction(transaction.raw)
    cluster.run(lambda: not any(node.get_pending() for node in cluster.nodes.values()))


def make_block(cluster: Cluster) -> None:
    """One block more, with a transfer."""
    node = next(iter(cluster.nodes.values()))
    nonce = node.get_nonce(Address(bytes.fromhex(ALICE.address[2:])), pending=True)
    height = cluster.get_height()
    cluster.submit(sign_transaction(ALICE, nonce))
    cluster.run(lambda: cluster.get_height() > height)


# -- evidence --------------------------------------------------------------------------------------
def test_a_pair_of_votes_becomes_evidence_against_their_signer(begin: Begin) -> None:
    current = begin((10, 10), 0).nodes[0].get_epoch_set()
    evidence = build_evidence(accuse(1), current)
    assert evidence is not None
    assert evidence.guilty == {make_secrets(1).address}
    assert decode_evidence(encode_evidence(evidence)) == evidence


def test_conflicting_certificates_become_evidence_against_whoever_signed_both(
    begin: Begin,
) -> None:
    current = begin((10, 10, 10, 10), 0).nodes[0].get_epoch_set()
    report = ReportConflict(
        certify(current, say(Kind.FINALIZE), 0, 1, 2), certify(current, say(Kind.NULLIFY), 1, 2, 3)
    )
    evidence = build_evidence(report, current)
    assert evidence is not None
    assert evidence.guilty == {make_secrets(1).address, make_secrets(2).address}


def test_finalizations_of_different_views_prove_nothing_against_anyone(begin: Begin) -> None:
    cluster = begin((10, 10, 10), 0)
    current = cluster.nodes[0].get_epoch_set()
    report = ReportConflict(
        certify(current, say(Kind.FINALIZE, A, 5), 0, 1, 2),
        certify(current, say(Kind.FINALIZE, B, 6), 0, 1, 2),
    )
    assert build_evidence(report, current) is None
    cluster.nodes[0].duties.report(report, current)
    look(cluster)
    assert cluster.get_height() == 0


@pytest.mark.parametrize(
    "data", [b"", b"\xc0", encode_rlp([[b"", [], b""]]), encode_rlp([[b"", [b"\0"], b""]] * 2)]
)
def test_bytes_that_are_no_evidence_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidEncoding):
        decode_evidence(data)


def test_evidence_is_kept_once_and_a_few_times_about_the_same(begin: Begin, tmp_path: Path) -> None:
    current = begin((10, 10), 0).nodes[0].get_epoch_set()
    made = [build_evidence(accuse(1, view), current) for view in range(1, 10)]
    book = EvidenceBook(tmp_path / EVIDENCE)
    assert book.add(made[0])  # type: ignore[arg-type]
    assert not book.add(made[0])  # type: ignore[arg-type]
    assert sum(book.add(one) for one in made[1:]) == MAX_EVIDENCE_EACH - 1  # type: ignore[arg-type]
    kept = set(book.list())
    book.close()
    book = EvidenceBook(tmp_path / EVIDENCE)
    assert set(book.list()) == kept
    book.remove(made[0])  # type: ignore[arg-type]
    book.close()
    book = EvidenceBook(tmp_path / EVIDENCE)
    assert set(book.list()) == kept - {made[0]}
    book.close()


def test_a_book_of_nonsense_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / EVIDENCE, (EVIDENCE,), 2**20)
    with database.write() as writer:
        writer.put(EVIDENCE, b"name", b"\xc0")
    database.close()
    with pytest.raises(CorruptData, match="delete this folder"):
        EvidenceBook(tmp_path / EVIDENCE)


# -- reporting -------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_cheat_is_reported_slashed_and_out_of_the_next_set_even_after_a_kill(
    begin: Begin,
) -> None:
    cluster = begin((90, 10), 0)
    node = cluster.nodes[0]
    node.duties.report(accuse(1, domain=node.rules.domain), node.get_epoch_set())
    cluster.kill(0)
    cluster.start(0)
    node = cluster.nodes[0]
    look(cluster)
    cheat = make_secrets(1).address
    assert ask(node, "get_penalty(address,uint256,uint256)", "uint256", cheat, 0, 5) == 10
    assert node._book.list() != ()
    cluster.now += node.config.keeper.retry_seconds
    sent = node.get_nonce(node.address, pending=False)
    look(cluster)
    assert node._book.list() == ()
    assert node.get_nonce(node.address, pending=False) == sent == 1
    while node.get_head().height < EPOCH_BLOCKS:
        make_block(cluster)
    assert [one.address for one in node.get_epoch_set().members] == [node.address]


@pytest.mark.slow
def test_votes_that_contradict_each_other_cost_their_signer_a_tenth(begin: Begin) -> None:
    cluster = begin((10, 10, 10, 10))
    node = cluster.nodes[2]
    make_block(cluster)
    lies = accuse(3, node.driver.get_view(), node.rules.domain)
    for said in (lies.first, lies.second):
        node.driver.deliver(VoteReceived(said))
    cluster.run(node._book.list)
    look(cluster)
    cluster.now += 4 * RANK_SECONDS
    look(cluster)
    cheat = make_secrets(3).address
    view = lies.first.statement.view
    assert ask(node, "get_penalty(address,uint256,uint256)", "uint256", cheat, 0, view) == 10
    assert ask(node, "total_stake()", "uint256") == 39 * COIN


@pytest.mark.slow
def test_a_certificate_against_any_view_that_is_final_here_becomes_evidence(begin: Begin) -> None:
    cluster = begin((10, 10, 10, 10), epoch_blocks=100)
    for _ in range(4):
        make_block(cluster)
    node = cluster.nodes[0]
    peer, domain, current = node.driver, node.rules.domain, node.get_epoch_set()
    finals = [node.get_certificate(height) for height in (1, 2)]

    def deliver(said: Statement, *places: int, forged: bool = False) -> None:
        made = build_certificate([vote(one, said, domain) for one in places], current.validators)
        signature = vote(0, said, domain).signature if forged else made.signature
        peer.deliver(CertificateReceived(replace(made, signature=signature)), node.address)
        cluster.rest(0.1)

    for number, final in enumerate(finals):
        assert final is not None
        against = say(Kind.NULLIFY, view=final.view)
        deliver(replace(against, kind=Kind.NOTARIZE, hash=final.hash), 0, 1, 2)
        deliver(against, 1, 2, 3, forged=True)
        assert len(node._book.list()) == number
        assert cluster.refused == [(node.address, node.address, "certificate_signature")]
        cluster.refused.clear()
        deliver(against, 1, 2, 3)
        deliver(against, 1, 2, 3)
        assert len(node._book.list()) == number + 1
    guilty = {make_secrets(place).address for place in (1, 2, 3)}
    assert all(one.guilty <= guilty for one in node._book.list())
    unused = {block.view for block in map(node.get_certificate, range(1, 5)) if block is not None}
    skipped = [view for view in range(1, max(unused)) if view not in unused]
    for view in skipped:
        deliver(say(Kind.NULLIFY, view=view), 1, 2, 3)
    assert len(node._book.list()) == len(finals)


def test_validators_behind_the_leader_wait_before_they_report(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = begin((90, 10), 0)
    node = cluster.nodes[0]
    monkeypatch.setattr(node.driver, "get_rank", lambda: 2)
    node.duties.report(accuse(1, domain=node.rules.domain), node.get_epoch_set())
    node.duties.look()
    assert not node.get_pending()
    cluster.now += 2 * RANK_SECONDS
    node.duties.look()
    node.duties.look()
    assert len(node.get_pending()) == 1


def test_nobody_reports_itself_and_forged_evidence_is_dropped(begin: Begin) -> None:
    node = begin((90, 10), 0).nodes[0]
    node.duties.report(accuse(0, domain=node.rules.domain), node.get_epoch_set())
    assert node._book.list() == ()
    true = accuse(1, domain=node.rules.domain)
    forged = ReportOffence(true.first, replace(true.second, signature=true.first.signature))
    node.duties.report(forged, node.get_epoch_set())
    node.duties.look()
    assert node._book.list() == ()
    assert not node.get_pending()


def test_a_full_disk_stops_no_driver(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    node = begin((90, 10), 0).nodes[0]

    def fail(_evidence: object) -> bool:
        raise CorruptData(Path("evidence"), "broken")

    monkeypatch.setattr(node._book, "add", fail)
    node.duties.report(accuse(1, domain=node.rules.domain), node.get_epoch_set())


# -- liveness --------------------------------------------------------------------------------------
def test_validators_check_in_one_after_the_other_in_the_first_quarter() -> None:
    assert [compute_turn(place, 4, 1_000) for place in range(4)] == [0, 62, 125, 187]
    assert [compute_turn(place, 64, 8) for place in (0, 63)] == [0, 1]


@pytest.mark.slow
def test_the_absent_are_jailed_and_return_by_themselves(begin: Begin) -> None:
    cluster = begin((90, 10), 0, epoch_blocks=2)
    node = cluster.nodes[0]
    while get_state(node, 1) == State.ACTIVE:
        assert node.get_head().height < 2 * (JAIL_EPOCHS + 4)
        make_block(cluster)
        look(cluster)  # checks in
        look(cluster)  # jails
        cluster.now += RANK_SECONDS
    assert get_state(node, 1) == State.JAILED
    epochs = node.get_head().height // 2
    assert epochs > JAIL_EPOCHS
    assert epochs - 2 <= node.get_nonce(node.address, pending=False) <= epochs + 2

    cluster.start(1)
    other = cluster.nodes[1]
    cluster.run(lambda: cluster.get_height() == node.get_head().height)
    for _ in range(4):
        make_block(cluster)
        cluster.run(lambda: other.get_head() == node.get_head())
        look(cluster)
    assert get_state(node, 1) == State.ACTIVE


def test_who_may_not_unjail_itself_stays(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    node = begin((90, 10), 0).nodes[0]
    monkeypatch.setattr(node.duties, "_may_return", False)
    monkeypatch.setattr(node.duties._wallet, "ask", lambda *_: (2).to_bytes(32, "big"))
    node.duties.look()
    assert not node.get_pending()
    monkeypatch.setattr(node.duties, "_settled_epoch", -1)
    monkeypatch.setattr(node.duties, "_may_return", True)
    submitted: list[bytes] = []

    def submit(_to: bytes, data: bytes) -> Hash:
        submitted.append(data)
        return Hash(bytes(32))

    monkeypatch.setattr(node.duties._wallet, "submit", submit)
    node.duties.look()
    assert submitted == [encode_call("unjail()")]


@pytest.mark.parametrize("may_return", [True, False])
def test_a_waiting_validator_enters_once_a_place_is_free_if_it_may(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, may_return: bool
) -> None:
    cluster = begin((90, 10), 0)
    node, tried, submitted = cluster.nodes[0], list[bytes](), list[bytes]()
    refusals: list[str | None] = ["staking: the set is full", None]
    answers = {"next_duty(address)": 0, "get_standing(address)": State.WAITING}

    def try_out(_to: bytes, data: bytes) -> str | None:
        tried.append(data)
        return refusals[len(tried) - 1]

    def submit(_to: bytes, data: bytes) -> Hash:
        submitted.append(data)
        return Hash(bytes(32))

    wallet = node.duties._wallet
    monkeypatch.setattr(
        wallet, "ask", lambda _to, signature, *_: answers.get(signature, 0).to_bytes(32, "big") * 4
    )
    monkeypatch.setattr(wallet, "find_refusal", try_out)
    monkeypatch.setattr(wallet, "submit", submit)
    monkeypatch.setattr(node.duties, "_may_return", may_return)
    for _ in range(2):  # a second look at the same block is no second try
        node.duties._do_own(0)
    assert (len(tried), submitted) == (1 if may_return else 0, [])
    make_block(cluster)
    node.duties._do_own(0)
    assert submitted == ([encode_call("enter()")] if may_return else [])


def test_staking_refuses_to_let_in_who_does_not_wait(begin: Begin) -> None:
    wallet = begin((90, 10), 0).nodes[0].duties._wallet
    refusal = wallet.find_refusal(STAKING_ADDRESS, encode_call("enter()"))
    assert refusal == "staking: not waiting"
    assert wallet.find_refusal(STAKING_ADDRESS, encode_call("request_exit()")) is None
