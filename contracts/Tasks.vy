# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
# pragma nonreentrancy on
"""
@title Federated learning tasks
@license Apache-2.0
@notice The agreement between an organisation and its participants, and all the money. An
        organisation publishes a task with its first model and an escrow; participants join with a
        stake; the rounds are played in the contract Rounds, which reports here how each one ended,
        and who earned what. docs/tasks.md tells the life of a task; its parameters are frozen from
        the first transaction.

        Time is `block.timestamp` in seconds. A period ends at its `ends` second, exclusive. Every
        wait ends by itself, and whoever has something here can take it out: a participant who
        has no open commitment may leave, anybody may close or abort what is due.
"""

import capacity
import escrow
import fedavg
import lobby
import reputation
import roster
import seam
import terms

initializes: escrow
initializes: lobby
initializes: reputation
initializes: roster

# States of a task. 0 is a task that does not exist.
LOBBY: constant(uint8) = 1
RUNNING: constant(uint8) = 2
FINISHED: constant(uint8) = 3
ABORTED: constant(uint8) = 4
PAUSED: constant(uint8) = 5

# What the publisher has asked for when the round in progress ends.
NOTHING: constant(uint8) = 0
PAUSE: constant(uint8) = 1
CANCEL: constant(uint8) = 2

# What `next_action` answers.
WAIT: constant(uint8) = 0
START: constant(uint8) = 1
CLOSE: constant(uint8) = 2
ABORT: constant(uint8) = 3

# A pause that lasts longer may be ended by anybody.
MAX_PAUSE_SECONDS: constant(uint256) = 30 * 86_400


struct Task:
    name: String[64]
    publisher: address
    state: uint8
    parameters: terms.Parameters
    bundle: fedavg.Blob
    model: fedavg.Blob
    join_ends: uint256
    round: uint256
    # What the current round may pay out: fixed when it was opened.
    pool: uint256
    wish: uint8
    # When anybody may abort a paused task.
    pause_ends: uint256


event Published:
    task: indexed(uint256)
    publisher: indexed(address)
    name: String[64]
    parameters: terms.Parameters
    model: fedavg.Blob
    bundle: fedavg.Blob
    invited: DynArray[address, fedavg.MAX_CLIENTS]
    join_ends: uint256


event Started:
    task: indexed(uint256)
    participants: uint256


event Settled:
    task: indexed(uint256)
    round: indexed(uint256)
    outcome: uint8
    pool: uint256
    paid: uint256
    platform: uint256
    burned: uint256


event ClosePaid:
    task: indexed(uint256)
    round: indexed(uint256)
    closer: indexed(address)
    fee: uint256


event Wished:
    task: indexed(uint256)
    round: indexed(uint256)
    wish: uint8


event Paused:
    task: indexed(uint256)
    round: indexed(uint256)
    pause_ends: uint256


event Resumed:
    task: indexed(uint256)


event Finished:
    task: indexed(uint256)
    model: fedavg.Blob


event Aborted:
    task: indexed(uint256)
    caller: indexed(address)
    round: uint256


task_count: public(uint256)
tasks: HashMap[uint256, Task]
# Of a round's reserve, what closing its earlier pages and extensions has taken.
spent: HashMap[uint256, HashMap[uint256, uint256]]


# -- the organisation --------------------------------------------------------------------------


@external
@payable
def publish(
    name: String[64],
    parameters: terms.Parameters,
    model: fedavg.Blob,
    bundle: fedavg.Blob,
    invited: DynArray[address, fedavg.MAX_CLIENTS],
) -> uint256:
    """
    @notice Create a task, open its lobby and deposit its escrow: exactly
            `reward + rounds x close_reserve` wei.
    @return The task's number; the first is 1.
    """
    terms._check_parameters(parameters)
    assert len(name) > 0, "tasks: no name"
    assert (
        len(invited) == 0 or parameters.admission != terms.EVERYBODY
    ), "tasks: open to everybody"
    assert (
        msg.value == terms._compute_escrow(parameters)
    ), "tasks: escrow differs from reward and reserves"

    self.task_count += 1
    task: uint256 = self.task_count
    join_ends: uint256 = block.timestamp + parameters.join_seconds
    self.tasks[task] = Task(
        name=name,
        publisher=msg.sender,
        state=LOBBY,
        parameters=parameters,
        bundle=bundle,
        model=model,
        join_ends=join_ends,
        round=0,
        pool=0,
        wish=NOTHING,
        pause_ends=0,
    )
    lobby._invite(task, invited)
    escrow._deposit(task, msg.value, parameters.reward)
    extcall seam.Rounds(seam.ROUNDS).register(
        task, terms._get_plan(msg.sender, parameters), model, parameters.join_seconds
    )
    log Published(
        task=task,
        publisher=msg.sender,
        name=name,
        parameters=parameters,
        model=model,
        bundle=bundle,
        invited=invited,
        join_ends=join_ends,
    )
    return task


@external
@payable
def fund(task: uint256):
    """
    @notice Add to the reward of a task: the pools of the rounds after this one grow. What no round
            pays out goes to the publisher in the end, like the rest of the escrow.
    """
    self._check_open(task)
    assert (
        self.tasks[task].round < self.tasks[task].parameters.rounds
    ), "tasks: last round is running"
    self._check_amount(msg.value)
    escrow._fund(task, msg.sender, msg.value)


@external
def invite(task: uint256, participants: DynArray[address, fedavg.MAX_CLIENTS]):
    """
    @notice Let these accounts join.
    """
    self._check_publisher(task)
    self._check_open(task)
    assert self.tasks[task].parameters.admission != terms.EVERYBODY, "tasks: open to everybody"
    lobby._invite(task, participants)
    log lobby.Invited(task=task, participants=participants)


@external
def uninvite(task: uint256, participant: address):
    """
    @notice Take an invitation back. Whoever has joined already stays.
    """
    self._check_publisher(task)
    assert lobby.invited[task][participant], "tasks: not invited"
    lobby.invited[task][participant] = False
    log lobby.Uninvited(task=task, participant=participant)


@external
@payable
def sponsor(task: uint256, participant: address, gas_wei: uint256):
    """
    @notice Pay for somebody who is to join: `gas_wei` of the value is sent at once, for its
            transactions, and the rest is kept as its stake. That part is never the participant's:
            when it leaves, the publisher can claim it.
    """
    self._check_publisher(task)
    self._check_open(task)
    assert not roster._is_member(task, participant), "tasks: already joined"
    self._check_amount(msg.value)
    assert gas_wei <= msg.value, "tasks: more gas than value"

    stake: uint256 = msg.value - gas_wei
    lobby.sponsorships[task][participant] += stake
    escrow.accounts[task].sponsorships += stake
    log lobby.Sponsored(task=task, participant=participant, gas_wei=gas_wei, stake=stake)
    escrow._send(participant, gas_wei)


@external
def unsponsor(task: uint256, participant: address):
    """
    @notice Take back a sponsorship that has not been used.
    """
    self._check_publisher(task)
    amount: uint256 = lobby._take_sponsorship(task, participant)
    assert amount > 0, "tasks: nothing sponsored"
    escrow.accounts[task].sponsorships -= amount
    log lobby.Unsponsored(task=task, participant=participant, amount=amount)
    escrow._send(msg.sender, amount)


@external
def pause(task: uint256):
    """
    @notice Hold the task when the round in progress has ended.
    """
    self._check_publisher(task)
    assert self.tasks[task].state == RUNNING, "tasks: not running"
    assert self.tasks[task].wish == NOTHING, "tasks: already ending"
    self._wish(task, PAUSE)


@external
def resume(task: uint256):
    """
    @notice Open the next round of a paused task, or take back a pause that is not in effect yet.
    """
    self._check_publisher(task)
    if self.tasks[task].state == PAUSED:
        self.tasks[task].state = RUNNING
        log Resumed(task=task)
        self._open_round(task)
    else:
        assert (
            self.tasks[task].state == RUNNING and self.tasks[task].wish == PAUSE
        ), "tasks: not paused"
        self._wish(task, NOTHING)


@external
def cancel(task: uint256):
    """
    @notice End the task: at once, or, where somebody has committed to an update in the round in
            progress, when that round has ended and is paid.
    """
    self._check_publisher(task)
    self._check_open(task)
    if self.tasks[task].state == RUNNING:
        if not staticcall seam.Rounds(seam.ROUNDS).is_idle(task):
            assert self.tasks[task].wish != CANCEL, "tasks: already ending"
            self._wish(task, CANCEL)
            return
        extcall seam.Rounds(seam.ROUNDS).stop(task)
    self._abort(task, msg.sender)


@external
def refund(task: uint256):
    """
    @notice Return to the publisher what a finished or aborted task left: the pools of skipped and
            unplayed rounds, roundings, and reserves.
    """
    self._check_publisher(task)
    assert self._is_over(task), "tasks: not over"
    escrow._refund(task, msg.sender)


# -- participants ------------------------------------------------------------------------------


@external
def apply(task: uint256, statement: fedavg.Blob):
    """
    @notice Ask to be invited to a task that takes applicants.
    """
    self._check_open(task)
    assert (
        self.tasks[task].parameters.admission == terms.APPLICANTS
    ), "tasks: takes no applicants"
    lobby._apply(task, msg.sender, statement)


@external
@payable
def join(task: uint256, samples: uint256):
    """
    @notice Take part with up to `samples` training samples a round, covered by the value and what
            the publisher has sponsored: at least `base_stake + samples x stake_per_sample` wei.
            Whoever joins after the start is active from the next round. The lobby starts when it
            is full.
    """
    self._check_open(task)
    state: uint8 = self.tasks[task].state
    round: uint256 = self.tasks[task].round
    max_clients: uint256 = self.tasks[task].parameters.max_clients
    assert self._is_invited(task, msg.sender), "tasks: not invited"
    assert state != LOBBY or block.timestamp < self.tasks[task].join_ends, "tasks: lobby is over"
    assert round < self.tasks[task].parameters.rounds, "tasks: last round is running"
    assert not roster._is_member(task, msg.sender), "tasks: already joined"
    assert roster._count(task) < max_clients, "tasks: full"
    assert samples > 0 and samples <= seam.MAX_SAMPLES, "tasks: samples out of range"
    assert (
        reputation._get(self.tasks[task].publisher, msg.sender)
        >= self.tasks[task].parameters.min_reputation
    ), "tasks: reputation too low"
    sponsored: uint256 = lobby._take_sponsorship(task, msg.sender)
    stake: uint256 = msg.value + sponsored
    assert stake <= terms.MAX_WEI, "tasks: stake out of range"
    assert (
        stake
        >= self.tasks[task].parameters.base_stake
        + samples * self.tasks[task].parameters.stake_per_sample
    ), "tasks: samples not covered by stake"

    escrow.accounts[task].sponsorships -= sponsored
    escrow.accounts[task].stakes += stake
    roster._add(task, msg.sender, samples, stake, sponsored, round + 1)
    if state == LOBBY and roster._count(task) == max_clients:
        self._start(task)


@external
@payable
def add_stake(task: uint256):
    """
    @notice Add to the caller's stake, for instance after it lost a bond.
    """
    self._check_open(task)
    self._check_amount(msg.value)
    escrow.accounts[task].stakes += msg.value
    roster._add_stake(
        task, msg.sender, msg.value, self.tasks[task].parameters.base_stake, terms.MAX_WEI
    )


@external
def claim(task: uint256):
    """
    @notice Pay out what the caller has earned in `task`: shares of the pool, and closing fees.
    """
    escrow._claim(task, msg.sender)


@external
def leave(task: uint256):
    """
    @notice Give up the seat in a task and take the stake back. Only an open commitment binds, and
            only until its round is closed or the task is over. Earnings stay claimable.
    """
    gone: roster.Participant = self._unseat(task, msg.sender)
    if self.tasks[task].state == RUNNING and gone.active_from <= self.tasks[task].round:
        extcall seam.Rounds(seam.ROUNDS).drop(task, gone.position - 1)
    escrow._send(msg.sender, gone.stake - gone.sponsored)


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
def release(task: uint256, participant: address):
    """
    @notice Take somebody out of a task that is over, so that a participant who never leaves holds
            no sponsor's stake: its own part becomes claimable by it, the rest by the publisher.
    """
    assert self._is_over(task), "tasks: not over"
    gone: roster.Participant = self._unseat(task, participant)
    escrow._credit(task, participant, gone.stake - gone.sponsored)


@external
def abort(task: uint256):
    """
    @notice End a task that cannot go on: a lobby whose time is over with too few participants, a
            round that nobody closed for CLOSE_TIMEOUT_SECONDS after it was due, a pause that has
            lasted for MAX_PAUSE_SECONDS.
    """
    self._check_open(task)
    state: uint8 = self.tasks[task].state
    if state == RUNNING:
        assert (
            block.timestamp
            >= staticcall seam.Rounds(seam.ROUNDS).get_due(task) + seam.CLOSE_TIMEOUT_SECONDS
        ), "tasks: too early to abort"
        extcall seam.Rounds(seam.ROUNDS).stop(task)
    else:
        assert self._is_stale(task), "tasks: too early to abort"
    self._abort(task, msg.sender)


# -- the contract Rounds -----------------------------------------------------------------------


@external
def settle(settlement: seam.Settlement) -> (bool, uint256, uint256):
    """
    @notice Pay a round that has ended, punish who committed and did not reveal, and move on.
            Nothing here can be made to fail by a participant, a sponsor or the publisher: nobody
            is paid by a call, and the burn goes to an address without code.
    @return Whether another round begins now, who can be drawn in it, and its pool.
    """
    self._check_rounds()
    task: uint256 = settlement.task
    assert (
        self.tasks[task].state == RUNNING and self.tasks[task].round == settlement.round
    ), "tasks: not running"
    publisher: address = self.tasks[task].publisher
    paid: uint256 = 0
    platform: uint256 = 0
    if settlement.outcome == seam.AGGREGATED:
        self.tasks[task].model = settlement.model
    if len(settlement.clients) > 0:
        paid, platform = self._pay(publisher, settlement)
    burned: uint256 = 0
    if settlement.silent > 0:
        burned = self._punish(publisher, settlement)
    log Settled(
        task=task,
        round=settlement.round,
        outcome=settlement.outcome,
        pool=self.tasks[task].pool,
        paid=paid,
        platform=platform,
        burned=burned,
    )
    seats: uint256 = 0
    goes_on: bool = self._move_on(task, settlement)
    if goes_on:
        seats = self._begin_round(task)
    escrow._send(empty(address), burned)
    return goes_on, seats, self.tasks[task].pool


@external
def pay_closer(
    task: uint256, round: uint256, closer: address, gas_used: uint256, is_last: bool
):
    """
    @notice Credit who closed a round, or a page of it: gas at the base fee, and with the last page
            the bounty; together at most the round's reserve. The tip is the caller's own choice
            and is not repaid.
    """
    self._check_rounds()
    bounty: uint256 = self.tasks[task].parameters.close_bounty
    reserve: uint256 = self.tasks[task].parameters.close_reserve - self.spent[task][round]
    fee: uint256 = (gas_used + capacity.CLOSE_GAS_UNMETERED) * block.basefee
    if is_last:
        fee = min(fee + bounty, reserve)
    else:
        # The bounty is kept for the last page.
        fee = min(fee, reserve - bounty)
        self.spent[task][round] += fee
    escrow._credit_fee(task, closer, fee)
    log ClosePaid(task=task, round=round, closer=closer, fee=fee)


# -- reading -----------------------------------------------------------------------------------


@view
@external
def get_task(task: uint256) -> Task:
    return self.tasks[task]


@view
@external
def get_participant(task: uint256, participant: address) -> roster.Participant:
    return roster.participants[task][participant]


@view
@external
def get_participants(task: uint256) -> DynArray[address, fedavg.MAX_CLIENTS]:
    """
    @notice In the order of their seats.
    """
    return roster._list(task, roster.occupied[task])


@view
@external
def get_seat(task: uint256, participant: address) -> seam.Seat:
    """
    @notice What Rounds needs to know of a participant; all zero for a stranger.
    """
    found: roster.Participant = roster.participants[task][participant]
    return seam.Seat(
        seat=max(found.position, 1) - 1,
        stake=found.stake,
        samples=found.samples,
        active_from=found.active_from,
    )


@view
@external
def get_seated(task: uint256, seats: uint256) -> DynArray[address, fedavg.MAX_CLIENTS]:
    """
    @notice Who sits on the seats of a bitmap, in their order; the zero address on a free one.
    """
    return roster._list(task, seats)


@view
@external
def get_seats(task: uint256) -> (uint256, uint256):
    """
    @return Bitmaps of the seats that are taken, and of those whose stake lets them be drawn.
    """
    return roster.occupied[task], roster.ready[task]


@view
@external
def get_account(task: uint256) -> escrow.Account:
    return escrow.accounts[task]


@view
@external
def get_reputation(publisher: address, participant: address) -> uint256:
    """
    @notice Units of 2**-20.
    """
    return reputation._get(publisher, participant)


@view
@external
def get_sponsorship(task: uint256, participant: address) -> uint256:
    """
    @notice Stake that waits for `participant` to join, in wei.
    """
    return lobby.sponsorships[task][participant]


@view
@external
def is_invited(task: uint256, participant: address) -> bool:
    return self._is_invited(task, participant)


@view
@external
def has_applied(task: uint256, applicant: address) -> bool:
    return lobby.applied[task][applicant]


@view
@external
def claimable(task: uint256, owner: address) -> uint256:
    return escrow.claimable[task][owner]


@view
@external
def next_action(task: uint256) -> (uint8, uint256):
    """
    @notice What a keeper may do now: 0 nothing, 1 `start`, 2 `Rounds.close` the round, 3 `abort`.
    """
    state: uint8 = self.tasks[task].state
    round: uint256 = self.tasks[task].round
    if self._is_stale(task):
        return ABORT, round
    if state == LOBBY and block.timestamp >= self.tasks[task].join_ends:
        return START, round
    if state == RUNNING and block.timestamp >= staticcall seam.Rounds(seam.ROUNDS).get_due(task):
        return CLOSE, round
    return WAIT, round


# -- inside ------------------------------------------------------------------------------------


@view
@internal
def _check_publisher(task: uint256):
    assert msg.sender == self.tasks[task].publisher, "tasks: not the publisher"


@view
@internal
def _check_rounds():
    assert msg.sender == seam.ROUNDS, "tasks: not the contract Rounds"


@view
@internal
def _check_open(task: uint256):
    assert self.tasks[task].state > 0 and not self._is_over(task), "tasks: not open"


@pure
@internal
def _check_amount(amount: uint256):
    assert amount > 0 and amount <= terms.MAX_WEI, "tasks: amount out of range"


@view
@internal
def _is_over(task: uint256) -> bool:
    state: uint8 = self.tasks[task].state
    return state == FINISHED or state == ABORTED


@view
@internal
def _is_invited(task: uint256, participant: address) -> bool:
    return (
        self.tasks[task].parameters.admission == terms.EVERYBODY or lobby.invited[task][participant]
    )


@view
@internal
def _is_stale(task: uint256) -> bool:
    """
    @notice Whether a lobby or a pause has outlived its time.
    """
    state: uint8 = self.tasks[task].state
    if state == PAUSED:
        return block.timestamp >= self.tasks[task].pause_ends
    return (
        state == LOBBY
        and block.timestamp >= self.tasks[task].join_ends
        and roster._count(task) < self.tasks[task].parameters.min_clients
    )


@internal
def _unseat(task: uint256, participant: address) -> roster.Participant:
    """
    @notice Free a seat, and let the publisher claim what it had sponsored.
    @return What was there; the caller gives back the participant's own part of the stake.
    """
    gone: roster.Participant = roster._remove(task, participant)
    escrow.accounts[task].stakes -= gone.stake
    escrow._credit(task, self.tasks[task].publisher, gone.sponsored)
    return gone


@internal
def _wish(task: uint256, wish: uint8):
    self.tasks[task].wish = wish
    log Wished(task=task, round=self.tasks[task].round, wish=wish)


@internal
def _start(task: uint256):
    self.tasks[task].state = RUNNING
    log Started(task=task, participants=roster._count(task))
    self._open_round(task)


@internal
def _abort(task: uint256, caller: address):
    self.tasks[task].state = ABORTED
    log Aborted(task=task, caller=caller, round=self.tasks[task].round)


@internal
def _open_round(task: uint256):
    """
    @notice Open a round that no closed one has led to: the first, or the one after a pause.
    """
    seats: uint256 = self._begin_round(task)
    extcall seam.Rounds(seam.ROUNDS).open(
        task, self.tasks[task].round, self.tasks[task].model, seats, self.tasks[task].pool
    )


@internal
def _begin_round(task: uint256) -> uint256:
    """
    @notice Count the next round and fix its pool: an equal part of the reward that is left.
    @return Bitmap of the seats that can be drawn.
    """
    round: uint256 = self.tasks[task].round + 1
    self.tasks[task].round = round
    self.tasks[task].pool = escrow.accounts[task].reward_left // (
        self.tasks[task].parameters.rounds - round + 1
    )
    return roster.ready[task]


@internal
def _pay(publisher: address, settlement: seam.Settlement) -> (uint256, uint256):
    """
    @notice Credit the platform its part of the pool and each client its share of the rest, rounded
            down. Who has a share in a model gains reputation. A round that made none pays those who
            revealed all the same, but neither fee nor reputation.
    @return What the clients and the platform were credited together, in wei.
    """
    task: uint256 = settlement.task
    is_made: bool = settlement.outcome == seam.AGGREGATED
    fee: uint256 = 0
    if is_made:
        fee = (
            self.tasks[task].pool * self.tasks[task].parameters.platform_share
        ) >> fedavg.SHARE_BITS
    pool: uint256 = self.tasks[task].pool - fee
    paid: uint256 = 0
    assert len(settlement.shares) == len(settlement.clients), "tasks: wrong shares"
    for index: uint256 in range(len(settlement.clients), bound=fedavg.MAX_CLIENTS):
        share: uint256 = settlement.shares[index]
        assert share <= seam.ONE, "tasks: wrong shares"
        if share > 0:
            pay: uint256 = (pool * share) >> fedavg.SHARE_BITS
            paid += pay
            escrow._credit(task, settlement.clients[index], pay)
            if is_made:
                reputation._raise(publisher, settlement.clients[index])
    assert paid <= pool, "tasks: wrong shares"
    escrow._credit(task, self.tasks[task].parameters.platform, fee)
    escrow._spend_pool(task, paid, fee)
    return paid, fee


@internal
def _punish(publisher: address, settlement: seam.Settlement) -> uint256:
    """
    @return The bonds that are to be burned, in wei: nobody may gain from a silence.
    """
    task: uint256 = settlement.task
    bond: uint256 = self.tasks[task].parameters.bond
    base_stake: uint256 = self.tasks[task].parameters.base_stake
    burned: uint256 = 0
    participants: DynArray[address, fedavg.MAX_CLIENTS] = roster._list(task, settlement.silent)
    for silent: address in participants:
        burned += roster._slash(task, settlement.round, silent, bond, base_stake)
        reputation._halve(publisher, silent)
    escrow._burn(task, burned)
    return burned


@internal
def _move_on(task: uint256, settlement: seam.Settlement) -> bool:
    """
    @return Whether the next round begins at once.
    """
    round: uint256 = settlement.round
    wish: uint8 = self.tasks[task].wish
    if settlement.outcome == seam.FAILED or wish == CANCEL:
        self._abort(task, seam.ROUNDS)
    elif round == self.tasks[task].parameters.rounds:
        self.tasks[task].state = FINISHED
        log Finished(task=task, model=self.tasks[task].model)
    elif wish == PAUSE or settlement.saturated > self.tasks[task].parameters.max_saturated:
        pause_ends: uint256 = block.timestamp + MAX_PAUSE_SECONDS
        self.tasks[task].state = PAUSED
        self.tasks[task].wish = NOTHING
        self.tasks[task].pause_ends = pause_ends
        log Paused(task=task, round=round, pause_ends=pause_ends)
    else:
        return True
    return False
