# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
# pragma nonreentrancy on
"""
@title Federated learning tasks
@license Apache-2.0
@notice An organisation publishes a task with its first model and an escrow. Participants join with
        a stake and, in each round, commit to an update, reveal it, and are paid by their share in
        the mean that the precompile computes when the round is closed. docs/tasks.md tells the
        life of a task; its parameters are frozen from the first transaction.

        Time is `block.timestamp` in seconds. A period ends at its `ends` second, exclusive. Every
        wait ends by itself, and whoever has something here can take it out: a participant who
        has no open commitment may leave, anybody may close or abort what is due.
"""

import escrow
import fedavg
import metrics
import roster
import rounds
import terms

initializes: escrow
initializes: metrics
initializes: roster
initializes: rounds

# States of a task. 0 is a task that does not exist.
LOBBY: constant(uint8) = 1
RUNNING: constant(uint8) = 2
FINISHED: constant(uint8) = 3
ABORTED: constant(uint8) = 4

# What `next_action` answers.
WAIT: constant(uint8) = 0
START: constant(uint8) = 1
CLOSE: constant(uint8) = 2
ABORT: constant(uint8) = 3


struct Task:
    name: String[64]
    publisher: address
    state: uint8
    invited_only: bool
    parameters: terms.Parameters
    bundle: fedavg.Blob
    model: fedavg.Blob
    join_ends: uint256
    round: uint256
    # Rounds skipped since the last aggregation.
    skips: uint256


event Published:
    task: indexed(uint256)
    publisher: indexed(address)
    name: String[64]
    parameters: terms.Parameters
    model: fedavg.Blob
    bundle: fedavg.Blob
    allowlist: DynArray[address, fedavg.MAX_CLIENTS]
    join_ends: uint256


event Started:
    task: indexed(uint256)
    participants: uint256


event Aggregated:
    task: indexed(uint256)
    round: indexed(uint256)
    rule: fedavg.Rule
    base: fedavg.Blob
    clients: DynArray[address, fedavg.MAX_CLIENTS]
    updates: DynArray[fedavg.Blob, fedavg.MAX_CLIENTS]
    raw_weights: DynArray[uint256, fedavg.MAX_CLIENTS]
    shares: DynArray[uint256, fedavg.MAX_CLIENTS]
    scores: DynArray[int256, fedavg.MAX_CLIENTS]
    flags: DynArray[uint256, fedavg.MAX_CLIENTS]
    model: fedavg.Blob
    saturated: uint256


event ClosePaid:
    task: indexed(uint256)
    round: indexed(uint256)
    closer: indexed(address)
    fee: uint256


event Finished:
    task: indexed(uint256)
    model: fedavg.Blob


event Aborted:
    task: indexed(uint256)
    caller: indexed(address)
    round: uint256


task_count: public(uint256)
tasks: HashMap[uint256, Task]


# -- the organisation --------------------------------------------------------------------------


@external
@payable
def publish(
    name: String[64],
    parameters: terms.Parameters,
    model: fedavg.Blob,
    bundle: fedavg.Blob,
    allowlist: DynArray[address, fedavg.MAX_CLIENTS],
) -> uint256:
    """
    @notice Create a task, open its lobby and deposit its escrow: exactly
            `reward + rounds x close_reserve` wei. An empty allowlist admits everybody.
    @return The task's number; the first is 1.
    """
    terms._check_parameters(parameters)
    assert len(name) > 0, "tasks: no name"
    assert (
        msg.value == terms._compute_escrow(parameters)
    ), "tasks: escrow differs from reward and reserves"
    terms._check_capacity(parameters, model)

    self.task_count += 1
    task: uint256 = self.task_count
    join_ends: uint256 = block.timestamp + parameters.join_seconds
    self.tasks[task] = Task(
        name=name,
        publisher=msg.sender,
        state=LOBBY,
        invited_only=len(allowlist) > 0,
        parameters=parameters,
        bundle=bundle,
        model=model,
        join_ends=join_ends,
        round=0,
        skips=0,
    )
    for invited: address in allowlist:
        roster.invited[task][invited] = True
    escrow._deposit(task, msg.value)
    log Published(
        task=task,
        publisher=msg.sender,
        name=name,
        parameters=parameters,
        model=model,
        bundle=bundle,
        allowlist=allowlist,
        join_ends=join_ends,
    )
    return task


@external
def refund(task: uint256):
    """
    @notice Return to the publisher what a finished or aborted task left: the pools of skipped and
            unplayed rounds, roundings, and reserves.
    """
    state: uint8 = self.tasks[task].state
    assert msg.sender == self.tasks[task].publisher, "tasks: not the publisher"
    assert state == FINISHED or state == ABORTED, "tasks: not over"
    escrow._refund(task, msg.sender)


# -- participants ------------------------------------------------------------------------------


@external
@payable
def join(task: uint256, samples: uint256):
    """
    @notice Take part with up to `samples` training samples a round, covered by the stake sent:
            at least `base_stake + samples x stake_per_sample` wei. Whoever joins a running task
            is active from the next round. The lobby starts when it is full.
    """
    state: uint8 = self.tasks[task].state
    round: uint256 = self.tasks[task].round
    max_clients: uint256 = self.tasks[task].parameters.max_clients
    assert state == LOBBY or state == RUNNING, "tasks: not open"
    assert self._is_invited(task, msg.sender), "tasks: not invited"
    assert state == RUNNING or block.timestamp < self.tasks[task].join_ends, "tasks: lobby is over"
    assert round < self.tasks[task].parameters.rounds, "tasks: last round is running"
    assert not roster._is_member(task, msg.sender), "tasks: already joined"
    assert roster._count(task) < max_clients, "tasks: full"
    assert samples > 0 and samples <= terms.MAX_SAMPLES, "tasks: samples out of range"
    assert msg.value <= terms.MAX_WEI, "tasks: stake out of range"
    assert (
        msg.value
        >= self.tasks[task].parameters.base_stake
        + samples * self.tasks[task].parameters.stake_per_sample
    ), "tasks: samples not covered by stake"

    roster._add(task, msg.sender, samples, msg.value, round + 1)
    if state == LOBBY and roster._count(task) == max_clients:
        self._start(task)


@external
def commit(task: uint256, round: uint256, commitment: bytes32):
    """
    @notice Bind the caller to one update without showing it; see `compute_commitment`. When every
            active participant has committed, the reveal period begins at once.
    """
    self._check_current(task, round)
    assert roster._is_member(task, msg.sender), "tasks: not a participant"
    assert (
        roster.participants[task][msg.sender].active_from <= round
    ), "tasks: active from the next round"
    rounds._commit(
        task, round, msg.sender, commitment, self.tasks[task].parameters.reveal_seconds
    )


@external
def reveal(task: uint256, round: uint256, update: fedavg.Blob, samples: uint256, salt: bytes32):
    """
    @notice Show the update that the caller committed to. The precompile checks its format, its
            binding to task, round, base and sender, and its norm. When everybody who committed
            has revealed, the round may be closed at once.
    """
    self._check_current(task, round)
    rounds._check_reveal(task, round, msg.sender, update, samples, salt)
    assert samples > 0, "tasks: samples out of range"
    assert (
        samples <= roster.participants[task][msg.sender].samples
    ), "tasks: samples not covered by stake"
    norm2: uint256 = rounds._verify(
        task,
        round,
        msg.sender,
        update,
        self.tasks[task].parameters.admission_norm2,
        terms.CLOSE_TIMEOUT_SECONDS,
    )
    rounds._reveal(task, round, msg.sender, update, samples, norm2)


@external
def report(
    task: uint256, round: uint256, samples: uint256, values: DynArray[int256, metrics.MAX_METRICS]
):
    """
    @notice Publish the caller's own evaluation of the model that `round` made. Self-reported:
            nothing is paid or decided by it.
    """
    assert roster._is_member(task, msg.sender), "tasks: not a participant"
    assert rounds.rounds[task][round].state == rounds.AGGREGATED, "tasks: round made no model"
    metrics._report(task, round, msg.sender, samples, values)


@external
def claim(task: uint256):
    """
    @notice Pay out what the caller has earned in `task`: shares of the pool, and closing fees.
    """
    escrow._claim(task, msg.sender)


@external
def leave(task: uint256):
    """
    @notice Give up the place in a task and take the stake back. Only an open commitment binds, and
            only until its round is closed or the task is over. Earnings stay claimable.
    """
    round: uint256 = self.tasks[task].round
    running: bool = self.tasks[task].state == RUNNING
    assert (
        not running or not rounds._has_committed(task, round, msg.sender)
    ), "tasks: bound by a commitment"

    active_from: uint256 = roster.participants[task][msg.sender].active_from
    stake: uint256 = roster._remove(task, msg.sender)
    if running and active_from <= round:
        rounds._drop_active(task, round, self.tasks[task].parameters.reveal_seconds)
    escrow._send(msg.sender, stake)


# -- anybody -----------------------------------------------------------------------------------


@external
def start(task: uint256):
    """
    @notice End the lobby and open the first round: the publisher as soon as there are enough
            participants, anybody once the lobby's time is over.
    """
    assert self.tasks[task].state == LOBBY, "tasks: not in the lobby"
    assert (
        roster._count(task) >= self.tasks[task].parameters.min_clients
    ), "tasks: too few participants"
    assert (
        msg.sender == self.tasks[task].publisher
        or block.timestamp >= self.tasks[task].join_ends
    ), "tasks: not due"
    self._start(task)


@external
def close(task: uint256, round: uint256):
    """
    @notice End a round that is due: aggregate and pay if enough updates were revealed, else skip
            it; then open the next round or finish the task. The caller is credited gas at the
            base fee plus the bounty, at most the round's reserve.
    """
    gas_before: uint256 = msg.gas
    self._check_current(task, round)
    min_clients: uint256 = self.tasks[task].parameters.min_clients
    assert block.timestamp >= rounds._get_due(task, round, min_clients), "tasks: not due"

    if rounds.rounds[task][round].revealed >= min_clients:
        self._aggregate(task, round)
        self.tasks[task].skips = 0
    else:
        rounds._skip(task, round)
        self.tasks[task].skips += 1
    if round < self.tasks[task].parameters.rounds:
        self._open_round(task)
    else:
        self.tasks[task].state = FINISHED
        log Finished(task=task, model=self.tasks[task].model)
    self._pay_closer(task, round, gas_before)


@external
def abort(task: uint256):
    """
    @notice End a task early. A lobby: the publisher at any time, anybody when its time is over
            with too few participants. A running task: anybody when a due round has waited for
            CLOSE_TIMEOUT_SECONDS; the publisher after a skipped round, before the next commitment.
    """
    round: uint256 = self.tasks[task].round
    state: uint8 = self.tasks[task].state
    min_clients: uint256 = self.tasks[task].parameters.min_clients
    is_publisher: bool = msg.sender == self.tasks[task].publisher
    assert state == LOBBY or state == RUNNING, "tasks: not open"
    if state == LOBBY:
        is_stale: bool = (
            block.timestamp >= self.tasks[task].join_ends and roster._count(task) < min_clients
        )
        assert is_publisher or is_stale, "tasks: too early to abort"
    else:
        due: uint256 = rounds._get_due(task, round, min_clients)
        is_stale: bool = block.timestamp >= due + terms.CLOSE_TIMEOUT_SECONDS
        is_idle: bool = (
            self.tasks[task].skips > 0 and rounds.rounds[task][round].committed == 0
        )
        assert is_stale or (is_publisher and is_idle), "tasks: too early to abort"

    self.tasks[task].state = ABORTED
    log Aborted(task=task, caller=msg.sender, round=round)


# -- reading -----------------------------------------------------------------------------------


@view
@external
def get_task(task: uint256) -> Task:
    return self.tasks[task]


@view
@external
def get_round(task: uint256, round: uint256) -> rounds.Round:
    return rounds.rounds[task][round]


@view
@external
def get_participant(task: uint256, participant: address) -> roster.Participant:
    return roster.participants[task][participant]


@view
@external
def get_participants(task: uint256) -> DynArray[address, fedavg.MAX_CLIENTS]:
    return roster.members[task]


@view
@external
def get_submission(task: uint256, round: uint256, participant: address) -> rounds.Submission:
    return rounds.submissions[task][round][participant]


@view
@external
def get_account(task: uint256) -> escrow.Account:
    return escrow.accounts[task]


@view
@external
def get_metrics(task: uint256, round: uint256) -> (metrics.Totals, int256[metrics.MAX_METRICS]):
    """
    @notice Self-reported totals, and the mean of each metric in units of 2**-20.
    """
    return metrics.totals[task][round], metrics._compute_means(task, round)


@view
@external
def has_reported(task: uint256, round: uint256, participant: address) -> bool:
    return metrics.reported[task][round][participant]


@view
@external
def is_invited(task: uint256, participant: address) -> bool:
    return self._is_invited(task, participant)


@view
@external
def claimable(task: uint256, owner: address) -> uint256:
    return escrow.claimable[task][owner]


@view
@external
def compute_commitment(
    task: uint256,
    round: uint256,
    participant: address,
    update: fedavg.Blob,
    samples: uint256,
    salt: bytes32,
) -> bytes32:
    """
    @notice For those who check a client. A client that asked a node would tell it its update.
    """
    return rounds._compute_commitment(task, round, participant, update, samples, salt)


@view
@external
def next_action(task: uint256) -> (uint8, uint256):
    """
    @notice What a keeper may do now: 0 nothing, 1 `start`, 2 `close` the round, 3 `abort`.
    """
    state: uint8 = self.tasks[task].state
    round: uint256 = self.tasks[task].round
    min_clients: uint256 = self.tasks[task].parameters.min_clients
    if state == LOBBY and block.timestamp >= self.tasks[task].join_ends:
        return (START if roster._count(task) >= min_clients else ABORT), 0
    if state == RUNNING:
        if block.timestamp >= rounds._get_due(task, round, min_clients):
            return CLOSE, round
    return WAIT, round


# -- inside ------------------------------------------------------------------------------------


@view
@internal
def _check_current(task: uint256, round: uint256):
    assert self.tasks[task].state == RUNNING, "tasks: not running"
    assert self.tasks[task].round == round, "tasks: not the current round"


@view
@internal
def _is_invited(task: uint256, participant: address) -> bool:
    return not self.tasks[task].invited_only or roster.invited[task][participant]


@internal
def _start(task: uint256):
    self.tasks[task].state = RUNNING
    log Started(task=task, participants=roster._count(task))
    self._open_round(task)


@internal
def _open_round(task: uint256):
    round: uint256 = self.tasks[task].round + 1
    self.tasks[task].round = round
    rounds._open(
        task,
        round,
        self.tasks[task].model,
        roster._count(task),
        self.tasks[task].parameters.commit_seconds,
        self.tasks[task].parameters.reveal_seconds,
    )


@internal
def _aggregate(task: uint256, round: uint256):
    """
    @notice Have the precompile compute the next model, and credit each client its share of the
            round's pool, rounded down.
    """
    clients: DynArray[address, fedavg.MAX_CLIENTS] = []
    updates: DynArray[fedavg.Blob, fedavg.MAX_CLIENTS] = []
    raw_weights: DynArray[uint256, fedavg.MAX_CLIENTS] = []
    weighting: uint8 = self.tasks[task].parameters.weighting
    for index: uint256 in range(rounds.rounds[task][round].revealed, bound=fedavg.MAX_CLIENTS):
        client: address = rounds.revealers[task][round][index]
        clients.append(client)
        updates.append(rounds.submissions[task][round][client].update)
        raw_weights.append(
            terms._compute_weight(
                weighting,
                rounds.submissions[task][round][client].samples,
                roster.participants[task][client].stake,
            )
        )

    rule: fedavg.Rule = self.tasks[task].parameters.rule
    base: fedavg.Blob = rounds.rounds[task][round].base
    made: fedavg.Aggregate = fedavg._aggregate(rule, base, updates, raw_weights)
    assert len(made.shares) == len(clients), "tasks: wrong shares"

    pool: uint256 = self.tasks[task].parameters.reward // self.tasks[task].parameters.rounds
    paid: uint256 = 0
    for index: uint256 in range(len(clients), bound=fedavg.MAX_CLIENTS):
        pay: uint256 = (pool * made.shares[index]) >> fedavg.SHARE_BITS
        paid += pay
        escrow._credit_reward(task, clients[index], pay)
    assert paid <= pool, "tasks: wrong shares"
    self.tasks[task].model = made.model
    rounds._set_aggregated(task, round, made.model, made.saturated)
    log Aggregated(
        task=task,
        round=round,
        rule=rule,
        base=base,
        clients=clients,
        updates=updates,
        raw_weights=raw_weights,
        shares=made.shares,
        scores=made.scores,
        flags=made.flags,
        model=made.model,
        saturated=made.saturated,
    )


@internal
def _pay_closer(task: uint256, round: uint256, gas_before: uint256):
    """
    @notice The tip is the caller's own choice and is not repaid.
    """
    gas_used: uint256 = gas_before - msg.gas + terms.CLOSE_GAS_UNMETERED
    fee: uint256 = min(
        self.tasks[task].parameters.close_reserve,
        gas_used * block.basefee + self.tasks[task].parameters.close_bounty,
    )
    escrow._credit_fee(task, msg.sender, fee)
    log ClosePaid(task=task, round=round, closer=msg.sender, fee=fee)
