"""Rounds on a real chain: one validator with its driver, keeper and disk, in this process.

Everything that the chain sees is what a client would send: signed transactions, declared blobs
uploaded to the node, a commitment, then a reveal. The validator's keeper closes the rounds and the
contracts aggregate, pay and open the next round.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from eth_account.signers.local import LocalAccount

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.execute import CallRequest
from steelyard.chain.params import WEIGHT_TOTAL
from steelyard.chain.types import Address, BlobName, Hash
from steelyard.client.abi import Contract, Event, Log
from steelyard.client.contracts import compute_commitment, get_contract
from steelyard.client.records import (
    FRACTION_UNIT,
    NO_BLOB,
    Parameters,
    RoundInfo,
    RoundState,
    RuleTerms,
)
from steelyard.client.training import Prepared
from steelyard.client.transactions import (
    Call,
    Fees,
    compute_blob_call_gas,
    compute_blob_gas,
    sign_call,
)
from steelyard.node.config import KeeperConfig
from steelyard.node.node import Node
from steelyard.node.records import LogQuery

from ...node.world import CONFIG, found, open_node, upload
from ..cluster import COIN, get_address, make_account, wait_until
from .servers import (
    ADMISSION_NORM2,
    CHAIN_ID,
    TASK,
    UPDATE_BITS,
    Deal,
    Typist,
    decode_arrays,
    encode_first_model,
)
from .training import Arrays

SALT: Final = bytes(32)
"""Nobody hides anything from anybody in a benchmark."""
PERIOD_SECONDS: Final = 3_600
"""Everybody is in time, and periods end when all have done their part."""
REWARD_PER_ROUND: Final = COIN
CLOSE_RESERVE: Final = COIN // 10
BASE_STAKE: Final = COIN // 10
STAKE_PER_SAMPLE: Final = COIN // 1_000
BOND: Final = COIN // 100
PUBLISH_GAS: Final = 4_000_000
CALL_GAS: Final = 600_000
FEES: Final = Fees(10**12, 10**6)
KEEPER: Final = KeeperConfig(interval_seconds=0.1, retry_seconds=5.0)
ENDLESS: Final = 2**256 - 1


def get_participants(count: int) -> list[LocalAccount]:
    """Return the accounts that take part; number 0 is the publisher."""
    return [make_account(1 + place) for place in range(count)]


@contextmanager
def run_validator(participants: int) -> Iterator[Node]:
    """Found a chain on which the publisher and the participants are rich, and start its node."""
    funds = {get_address(make_account(number)): 10**6 * COIN for number in range(participants + 1)}
    with tempfile.TemporaryDirectory(prefix="steelyard-learning-") as temporary:
        home = found(
            Path(temporary) / "validator",
            funds=funds,
            heartbeat_ms=1_000,
            blob_retention_seconds=30 * 86_400,
        )
        node = open_node(home, replace(CONFIG, keeper=KEEPER))
        try:
            node.start()
            yield node
        finally:
            node.stop()


@dataclass(frozen=True, slots=True)
class Sent:
    """What transactions weighed and used."""

    bytes: int
    gas: int


@dataclass(frozen=True, slots=True)
class Played:
    """What a round cost, paid and made. The close is all in its blocks that is no commitment or
    reveal: the keeper's transactions. Pool in wei."""

    commits: Sent
    reveals: Sent
    close_gas: int
    blob_bytes: int
    pool: int
    shares: dict[Address, int]
    flags: dict[Address, int]

    @property
    def gas(self) -> int:
        return self.commits.gas + self.reveals.gas + self.close_gas

    @property
    def bytes_sent(self) -> int:
        return self.commits.bytes + self.reveals.bytes + self.blob_bytes


class ChainServer:
    """Task 1 of a chain: published and joined at once; every `play` is a round."""

    def __init__(self, node: Node, arrays: Arrays, deal: Deal, rounds: int) -> None:
        self._node, self.deal = node, deal
        self._publisher = make_account(0)
        self._clients = get_participants(len(deal.weights))
        self._nonces = dict.fromkeys(
            [self._publisher.address, *(c.address for c in self._clients)], 0
        )
        self._tasks, self._rounds = get_contract("Tasks"), get_contract("Rounds")
        self._typist = Typist([get_address(client) for client in self._clients])
        self.rounds: list[Played] = []
        self.draws: list[Sequence[int]] = []
        """The places that took part in each round."""
        self.model = encode_first_model(arrays)
        self._publish(rounds)
        self._join()

    @property
    def arrays(self) -> Arrays:
        return decode_arrays(self.model)

    @property
    def addresses(self) -> tuple[Address, ...]:
        return self._typist.addresses

    def get_pay(self) -> list[int]:
        """Return what each participant has earned so far, in wei."""
        return [
            int(self._read(self._tasks, "claimable", TASK, address)) for address in self.addresses
        ]

    # -- a task ------------------------------------------------------------------------------------
    def _publish(self, rounds: int) -> None:
        parameters = make_parameters(self.deal, rounds)
        name = compute_blob_name(self.model)
        data = self._tasks.encode_call(
            "publish", "bench", parameters.encode(), (name.digest, name.size),
            (NO_BLOB.digest, NO_BLOB.size), [],
        )  # fmt: skip
        call = Call(
            self._tasks.address,
            data,
            parameters.escrow,
            gas=PUBLISH_GAS + compute_blob_gas([name]),
            blobs=(name,),
        )
        self._send([(self._publisher, call)], {name: self.model})

    def _join(self) -> None:
        """Everybody joins; filling the last place starts the task."""
        calls = []
        for client, samples in zip(self._clients, self.deal.weights, strict=True):
            stake = BASE_STAKE + samples * STAKE_PER_SAMPLE
            data = self._tasks.encode_call("join", TASK, samples)
            calls.append((client, Call(self._tasks.address, data, stake, gas=CALL_GAS)))
        self._send(calls[:-1])
        self._send(calls[-1:])

    # -- a round -----------------------------------------------------------------------------------
    def get_drawn(self) -> Sequence[int]:
        """Return the places drawn for the next round; seats are taken in the order of joining."""
        drawn = self._get_round(len(self.rounds) + 1).drawn
        return [place for place in range(len(self._clients)) if drawn >> place & 1]

    def play(self, deltas: Mapping[int, Arrays]) -> None:
        number, first_height = len(self.rounds) + 1, self._node.get_head().height + 1
        updates = self._typist.prepare(self.model, number, deltas)
        commits = self._send(
            [self._make_commit(number, place, one) for place, one in updates.items()]
        )
        reveals = self._send(
            [self._make_reveal(number, place, one) for place, one in updates.items()],
            {one.update: one.data for one in updates.values()},
        )
        made = self._wait_for_model(number)
        record = self._find_record(number)
        clients = [Address(client) for client in record.values["clients"]]
        gas = sum(
            self._get_gas(height)
            for height in range(first_height, self._node.get_head().height + 1)
        )
        self.model = bytes(self._node.blobs.read(made))
        self.draws.append(tuple(deltas))
        self.rounds.append(
            Played(
                commits,
                reveals,
                gas - commits.gas - reveals.gas,
                sum(len(one.data) for one in updates.values()),
                record.values["pool"],
                dict(zip(clients, record.values["shares"], strict=True)),
                dict(zip(clients, record.values["flags"], strict=True)),
            )
        )

    def _make_commit(self, number: int, place: int, update: Prepared) -> tuple[LocalAccount, Call]:
        client, samples = self._clients[place], self.deal.weights[place]
        commitment = compute_commitment(
            CHAIN_ID, TASK, number, number, get_address(client), update.update, samples, SALT
        )
        data = self._rounds.encode_call("commit", TASK, number, number, commitment)
        return client, Call(self._rounds.address, data, gas=CALL_GAS)

    def _make_reveal(self, number: int, place: int, update: Prepared) -> tuple[LocalAccount, Call]:
        name, base = update.update, compute_blob_name(self.model)
        words = (name.digest, name.size), self.deal.weights[place], SALT
        data = self._rounds.encode_call("reveal", TASK, number, number, *words)
        gas = compute_blob_call_gas((name,), (name, base), name.size)
        return self._clients[place], Call(self._rounds.address, data, gas=gas, blobs=(name,))

    def _wait_for_model(self, number: int) -> BlobName:
        """Return the model that the round made. Raises AssertionError if it was skipped."""

        def is_closed() -> bool:
            return self._get_round(number).state in (RoundState.AGGREGATED, RoundState.SKIPPED)

        wait_until(is_closed, f"round {number} is closed")
        closed = self._get_round(number)
        assert closed.state is RoundState.AGGREGATED, f"round {number} was skipped"
        return closed.model

    def _get_round(self, number: int) -> RoundInfo:
        fields = self._read(self._rounds, "get_round", TASK, number)
        return RoundInfo(**fields | {"state": RoundState(fields["state"])})

    def _find_record(self, number: int) -> Event:
        words = [n.to_bytes(32, "big") for n in (TASK, number)]
        query = LogQuery(
            0,
            self._node.get_head().height,
            frozenset({self._rounds.address}),
            tuple(frozenset({word}) for word in (self._rounds.get_topic("Aggregated"), *words)),
        )
        (entry,) = self._node.get_logs(query, 2)
        log = Log(
            entry.log.address, tuple(entry.log.topics), entry.log.data, entry.height,
            entry.transaction_hash, entry.log_index,
        )  # fmt: skip
        event = self._rounds.decode_event(log)
        assert event is not None
        return event

    # -- the node ----------------------------------------------------------------------------------
    def _send(
        self,
        calls: Sequence[tuple[LocalAccount, Call]],
        blobs: dict[BlobName, bytes] | None = None,
    ) -> Sent:
        """Send all and wait until they are final. None may be reverted."""
        sent: list[tuple[Hash, Call]] = []
        length = 0
        for account, call in calls:
            assert call.gas is not None
            signed = sign_call(
                account,
                call,
                chain_id=CHAIN_ID,
                nonce=self._nonces[account.address],
                gas=call.gas,
                fees=FEES,
            )
            self._nonces[account.address] += 1
            self._node.submit_transaction(signed.raw)
            for name in call.blobs:
                assert blobs is not None
                upload(self._node, blobs[name])
            sent.append((signed.hash, call))
            length += len(signed.raw)
        for transaction_hash, _ in sent:
            wait_until(
                lambda name=transaction_hash: self._node.find_transaction(name) is not None,
                "a transaction is final",
            )
        return Sent(length, sum(self._check_success(*one) for one in sent))

    def _check_success(self, transaction_hash: Hash, call: Call) -> int:
        """Return the gas used. Raises AssertionError if the call was reverted."""
        inclusion = self._node.find_transaction(transaction_hash)
        assert inclusion is not None
        receipts = self._node.get_receipts(inclusion.block_hash)
        receipt = receipts[inclusion.index]
        contract = self._tasks if call.to == self._tasks.address else self._rounds
        assert receipt.status == 1, f"reverted: {contract.decode_call(call.data)}"
        before = receipts[inclusion.index - 1].cumulative_gas_used if inclusion.index else 0
        return receipt.cumulative_gas_used - before

    def _read(self, contract: Contract, name: str, *arguments: Any) -> Any:
        """Return what a view answers at the head."""
        request = CallRequest(to=contract.address, data=contract.encode_call(name, *arguments))
        result = self._node.call(request)
        assert not result.is_error, name
        return contract.decode_output(name, result.output)[0]

    def _get_gas(self, height: int) -> int:
        header = self._node.get_header(Hash(self._node.get_hash(height) or b""))
        assert header is not None
        return header.gas_used


def make_parameters(deal: Deal, rounds: int) -> Parameters:
    """Return the terms of a task in which everybody drawn takes part."""
    count, rule = len(deal.weights), deal.rule
    return Parameters(
        rule=RuleTerms(rule.kind, rule.bound, rule.max_share, rule.server_lr, rule.momentum),
        weighting=2 if deal.is_uniform else 0,
        bits=UPDATE_BITS,
        rounds=rounds,
        min_clients=deal.drawn,
        max_clients=count,
        fraction_fit=max(1, FRACTION_UNIT * deal.drawn // count),
        spare_clients=0,
        max_staleness=0,
        staleness_discount=0,
        on_failed_quorum=0,
        max_extensions=0,
        max_saturated=ENDLESS,
        evaluate_every=0,
        join_seconds=PERIOD_SECONDS,
        commit_seconds=PERIOD_SECONDS,
        reveal_seconds=PERIOD_SECONDS,
        base_stake=BASE_STAKE,
        stake_per_sample=STAKE_PER_SAMPLE,
        bond=BOND,
        admission=0,
        min_reputation=0,
        admission_norm2=ADMISSION_NORM2,
        reward=rounds * REWARD_PER_ROUND,
        close_reserve=CLOSE_RESERVE,
        close_bounty=0,
        platform=Address(bytes(20)),
        platform_share=0,
    )


assert WEIGHT_TOTAL == FRACTION_UNIT
