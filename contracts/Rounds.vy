# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
# pragma nonreentrancy on
"""
@title The rounds of federated learning tasks
@license Apache-2.0
@notice Draws who takes part, takes commitments and reveals, has the precompile make the next model,
        and tells the contract Tasks who earned what. Holds no ether. A round is opened by Tasks or
        by the close of the one before it. docs/tasks.md tells the life of a round.
"""

import bitmaps
import capacity
import drawing
import fedavg
import metrics
import seam
import submissions

initializes: metrics
initializes: submissions


struct Pages:
    measures: DynArray[fedavg.Blob, fedavg.MAX_PAGES]
    combines: DynArray[fedavg.Blob, fedavg.MAX_PAGES]


# What an aggregation is made of, in the order of the seats.
struct Entries:
    clients: DynArray[address, fedavg.MAX_CLIENTS]
    origins: DynArray[uint256, fedavg.MAX_CLIENTS]
    updates: DynArray[fedavg.Blob, fedavg.MAX_CLIENTS]
    weights: DynArray[uint256, fedavg.MAX_CLIENTS]
    total: uint256


event Aggregated:
    task: indexed(uint256)
    round: indexed(uint256)
    rule: fedavg.Rule
    base: fedavg.Blob
    velocity_before: fedavg.Blob
    clients: DynArray[address, fedavg.MAX_CLIENTS]
    origins: DynArray[uint256, fedavg.MAX_CLIENTS]
    updates: DynArray[fedavg.Blob, fedavg.MAX_CLIENTS]
    raw_weights: DynArray[uint256, fedavg.MAX_CLIENTS]
    shares: DynArray[uint256, fedavg.MAX_CLIENTS]
    scores: DynArray[int256, fedavg.MAX_CLIENTS]
    flags: DynArray[uint256, fedavg.MAX_CLIENTS]
    model: fedavg.Blob
    velocity: fedavg.Blob
    saturated: uint256
    pool: uint256


event Compensated:
    task: indexed(uint256)
    round: indexed(uint256)
    clients: DynArray[address, fedavg.MAX_CLIENTS]
    shares: DynArray[uint256, fedavg.MAX_CLIENTS]


event PageMade:
    task: indexed(uint256)
    round: indexed(uint256)
    page: uint256
    made: fedavg.Blob


splits: HashMap[uint256, capacity.Split]
# The round in progress or, between rounds, the last one.
current: HashMap[uint256, uint256]
aggregations: HashMap[uint256, uint256]
velocities: HashMap[uint256, fedavg.Blob]
pages: HashMap[uint256, HashMap[uint256, Pages]]


# -- the contract Tasks ------------------------------------------------------------------------


@external
def register(task: uint256, plan: seam.Plan, model: fedavg.Blob, join_seconds: uint256):
    """
    @notice Note the terms of a task that is being published, if its rounds can be closed.
    """
    self._check_tasks()
    self.splits[task] = capacity._plan(plan, model, join_seconds)
    submissions.plans[task] = plan


@external
def open(task: uint256, round: uint256, base: fedavg.Blob, seats: uint256, pool: uint256):
    """
    @notice Open the first round of a task, or the one after a pause.
    """
    self._check_tasks()
    self._open(task, round, base, seats, pool)


@external
def drop(task: uint256, seat: uint256):
    """
    @notice Stop waiting for a participant who leaves. Refused while a commitment binds it.
    """
    self._check_tasks()
    submissions._drop(task, self.current[task], seat)


@external
def stop(task: uint256):
    """
    @notice End the round in progress with its task: nothing is aggregated, nobody stays bound.
    """
    self._check_tasks()
    submissions.rounds[task][self.current[task]].state = submissions.STOPPED


# -- participants ------------------------------------------------------------------------------


@external
def commit(task: uint256, round: uint256, origin: uint256, commitment: bytes32):
    """
    @notice Bind the caller to one update without showing it; see `compute_commitment`. `origin` is
            the round whose base the update was trained on. When everybody drawn has committed, the
            reveal period begins at once.
    """
    self._check_current(task, round)
    seat: seam.Seat = self._get_seat(task, msg.sender)
    assert seat.active_from > 0, "rounds: not a participant"
    # A seat may have had another owner in a past round.
    assert seat.active_from <= origin, "rounds: not active in that round"
    assert seat.stake >= submissions.plans[task].base_stake, "rounds: stake below the base stake"
    submissions._commit(task, round, seat.seat, msg.sender, seat.stake, origin, commitment)


@external
def reveal(
    task: uint256,
    round: uint256,
    origin: uint256,
    update: fedavg.Blob,
    samples: uint256,
    salt: bytes32,
):
    """
    @notice Show the update that the caller committed to. The precompile checks its format, its
            binding to task, origin, base and sender, and its norm. When everybody who committed
            has revealed, the round may be closed at once.
    """
    self._check_current(task, round)
    seat: seam.Seat = self._get_seat(task, msg.sender)
    submissions._check_reveal(task, round, seat.seat, msg.sender, origin, update, samples, salt)
    assert samples > 0, "rounds: samples out of range"
    assert (
        samples <= seat.samples
        and submissions.plans[task].base_stake
        + samples * submissions.plans[task].stake_per_sample
        <= seat.stake
    ), "rounds: samples not covered by stake"
    norm2: uint256 = submissions._verify(task, round, origin, msg.sender, update)
    submissions._reveal(task, round, seat.seat, msg.sender, origin, update, samples, norm2)


@external
def report(
    task: uint256, round: uint256, samples: uint256, values: DynArray[int256, metrics.MAX_METRICS]
):
    """
    @notice Publish the caller's own evaluation of the model that `round` made, while that is asked
            for. Self-reported: nothing is paid or decided by it.
    """
    seat: seam.Seat = self._get_seat(task, msg.sender)
    assert seat.active_from > 0, "rounds: not a participant"
    metrics._report(task, round, msg.sender, samples, values)


# -- the organisation --------------------------------------------------------------------------


@external
def request_evaluation(task: uint256, round: uint256):
    """
    @notice Ask the participants to evaluate the model that `round` made.
    """
    assert msg.sender == submissions.plans[task].publisher, "rounds: not the publisher"
    assert (
        submissions.rounds[task][round].state == submissions.AGGREGATED
    ), "rounds: round made no model"
    assert (
        block.timestamp >= metrics.evaluation_ends[task][round]
    ), "rounds: evaluation is running"
    self._request_evaluation(task, round)


# -- anybody -----------------------------------------------------------------------------------


@external
def close(task: uint256, round: uint256):
    """
    @notice End a round that is due, or do the next page of it: aggregate if enough updates were
            revealed, else extend, skip or give up, as the task says. When it has ended, everybody
            is paid and the next round is opened. The caller is credited gas at the base fee, and
            for the end the bounty; in all at most the round's reserve.
    """
    gas_before: uint256 = msg.gas
    assert (
        self.current[task] == round and submissions._is_open(task, round)
    ), "rounds: not the current round"
    assert block.timestamp >= submissions._get_due(task, round), "rounds: not due"

    is_last: bool = True
    revealed: uint256 = bitmaps._count(submissions.rounds[task][round].revealed)
    if revealed >= submissions.plans[task].min_clients:
        is_last = self._aggregate(task, round)
    elif (
        submissions.rounds[task][round].extensions < submissions.plans[task].max_extensions
    ):
        submissions._extend(task, round)
        is_last = False
    else:
        self._fail(task, round)
    extcall seam.Tasks(seam.TASKS).pay_closer(
        task, round, msg.sender, gas_before - msg.gas, is_last
    )


# -- reading -----------------------------------------------------------------------------------


@view
@external
def get_round(task: uint256, round: uint256) -> submissions.Round:
    return submissions.rounds[task][round]


@view
@external
def get_submission(
    task: uint256, round: uint256, participant: address
) -> submissions.Submission:
    return submissions._get_submission(task, round, participant)


@view
@external
def get_plan(task: uint256) -> (seam.Plan, capacity.Split):
    """
    @notice The terms that the rounds follow, and the pages in which they are closed.
    """
    return submissions.plans[task], self.splits[task]


@view
@external
def get_pages(task: uint256, round: uint256) -> Pages:
    return self.pages[task][round]


@view
@external
def get_current(task: uint256) -> uint256:
    """
    @notice The round in progress or, between rounds, the last one.
    """
    return self.current[task]


@view
@external
def get_velocity(task: uint256) -> fedavg.Blob:
    """
    @notice The newest momentum; of size 0 if there is none.
    """
    return self.velocities[task]


@view
@external
def get_metrics(task: uint256, round: uint256) -> (metrics.Totals, int256[metrics.MAX_METRICS]):
    """
    @notice Self-reported totals, and the mean of each metric in units of 2**-20.
    """
    return metrics.totals[task][round], metrics._compute_means(task, round)


@view
@external
def get_evaluation_ends(task: uint256, round: uint256) -> uint256:
    """
    @notice Until when reports about `round` are taken; 0 if none were asked for.
    """
    return metrics.evaluation_ends[task][round]


@view
@external
def has_reported(task: uint256, round: uint256, participant: address) -> bool:
    return metrics.reported[task][round][participant]


@view
@external
def is_drawn(task: uint256, round: uint256, participant: address) -> bool:
    """
    @notice Whether `participant` may still answer for `round`, as far as the drawing goes.
    """
    seat: seam.Seat = self._get_seat(task, participant)
    return (
        seat.active_from > 0
        and seat.active_from <= round
        and bitmaps._has(submissions.rounds[task][round].drawn, seat.seat)
    )


@view
@external
def is_bound(task: uint256, participant: address) -> bool:
    """
    @notice Whether an open commitment keeps `participant` from leaving.
    """
    round: uint256 = self.current[task]
    return (
        submissions._is_open(task, round)
        and submissions.packed[task][round][participant].commitment != empty(bytes32)
    )


@view
@external
def is_idle(task: uint256) -> bool:
    """
    @notice Whether nobody has committed to anything in the round in progress.
    """
    return submissions.rounds[task][self.current[task]].committed == 0


@view
@external
def is_due(task: uint256) -> bool:
    """
    @notice Whether the round in progress may be closed, or its next page done.
    """
    round: uint256 = self.current[task]
    return submissions._is_open(task, round) and block.timestamp >= self._get_due(task)


@view
@external
def get_due(task: uint256) -> uint256:
    """
    @notice From when the current round may be closed, as things stand.
    """
    return self._get_due(task)


@view
@external
def compute_commitment(
    task: uint256,
    round: uint256,
    origin: uint256,
    participant: address,
    update: fedavg.Blob,
    samples: uint256,
    salt: bytes32,
) -> bytes32:
    """
    @notice For those who check a client. A client that asked a node would tell it its update.
    """
    return submissions._compute_commitment(
        task, round, origin, participant, update, samples, salt
    )


# -- inside ------------------------------------------------------------------------------------


@view
@internal
def _check_tasks():
    assert msg.sender == seam.TASKS, "rounds: not the contract Tasks"


@view
@internal
def _check_current(task: uint256, round: uint256):
    """
    @notice `round` takes commitments and reveals.
    """
    assert (
        self.current[task] == round
        and submissions.rounds[task][round].state == submissions.OPEN
    ), "rounds: not the current round"


@view
@internal
def _get_seat(task: uint256, participant: address) -> seam.Seat:
    return staticcall seam.Tasks(seam.TASKS).get_seat(task, participant)


@view
@internal
def _get_due(task: uint256) -> uint256:
    return submissions._get_due(task, self.current[task])


@internal
def _open(task: uint256, round: uint256, base: fedavg.Blob, seats: uint256, pool: uint256):
    seed: bytes32 = drawing._make_seed(task, round)
    target: uint256 = drawing._compute_target(
        bitmaps._count(seats),
        submissions.plans[task].min_clients,
        submissions.plans[task].fraction_fit,
        submissions.plans[task].spare_clients,
    )
    drawn: uint256 = drawing._draw(seed, seats, target)
    commit_ends: uint256 = block.timestamp + submissions.plans[task].commit_seconds
    reveal_ends: uint256 = commit_ends + submissions.plans[task].reveal_seconds
    velocity: fedavg.Blob = self.velocities[task]
    self.current[task] = round
    submissions.rounds[task][round].state = submissions.OPEN
    submissions.rounds[task][round].base = base
    if velocity.size > 0:
        submissions.rounds[task][round].velocity = velocity
    submissions.rounds[task][round].pool = pool
    submissions.rounds[task][round].seed = seed
    submissions.rounds[task][round].drawn = drawn
    submissions.rounds[task][round].commit_ends = commit_ends
    submissions.rounds[task][round].reveal_ends = reveal_ends
    log submissions.RoundOpened(
        task=task,
        round=round,
        base=base,
        velocity=velocity,
        pool=pool,
        seed=seed,
        seats=seats,
        drawn=drawn,
        commit_ends=commit_ends,
        reveal_ends=reveal_ends,
    )


@view
@internal
def _collect(task: uint256, round: uint256) -> Entries:
    """
    @notice What was revealed, and how much each update counts before it is made a share.
    """
    weighting: uint8 = submissions.plans[task].weighting
    found: Entries = empty(Entries)
    found.clients = staticcall seam.Tasks(seam.TASKS).get_seated(
        task, submissions.rounds[task][round].revealed
    )
    for client: address in found.clients:
        submission: submissions.Submission = submissions._get_submission(task, round, client)
        weight: uint256 = self._weigh(weighting, submission.samples, submission.stake)
        for late: uint256 in range(round - submission.origin, bound=8):
            weight = (weight * submissions.plans[task].staleness_discount) >> fedavg.SHARE_BITS
        found.origins.append(submission.origin)
        found.updates.append(submission.update)
        found.weights.append(weight)
        found.total += weight
    return found


@pure
@internal
def _weigh(weighting: uint8, samples: uint256, stake: uint256) -> uint256:
    """
    @return Raw weight with fedavg.SHARE_BITS fraction bits.
    """
    weight: uint256 = 1
    if weighting == seam.BY_SAMPLES:
        weight = samples
    elif weighting == seam.BY_STAKE:
        weight = stake
    return weight << fedavg.SHARE_BITS


@internal
def _aggregate(task: uint256, round: uint256) -> bool:
    """
    @notice Have the precompile make the next model, or the next page of it.
    @return Whether the round has ended.
    """
    entries: Entries = self._collect(task, round)
    if entries.total == 0:
        # All that came was late and counts for nothing.
        self._end_without_model(task, round, seam.SKIPPED, [], [])
        return True

    inputs: fedavg.Inputs = fedavg.Inputs(
        rule=submissions.plans[task].rule,
        base=submissions.rounds[task][round].base,
        velocity=submissions.rounds[task][round].velocity,
        updates=entries.updates,
        weights=entries.weights,
    )
    split: capacity.Split = self.splits[task]
    made: fedavg.Aggregate = empty(fedavg.Aggregate)
    if not capacity._is_paged(split):
        made = fedavg._aggregate(inputs)
    elif submissions.rounds[task][round].pages < split.measures + split.combines:
        self._make_page(task, round, split, inputs)
        return False
    else:
        made = fedavg._assemble(
            inputs, self.pages[task][round].measures, self.pages[task][round].combines
        )
    self._end_with_model(task, round, inputs, entries, made)
    return True


@internal
def _make_page(
    task: uint256, round: uint256, split: capacity.Split, inputs: fedavg.Inputs
):
    page: uint256 = submissions.rounds[task][round].pages
    made: fedavg.Blob = empty(fedavg.Blob)
    if page < split.measures:
        made = fedavg._measure(
            inputs,
            page * split.blocks // split.measures,
            (page + 1) * split.blocks // split.measures,
        )
        self.pages[task][round].measures.append(made)
    else:
        part: uint256 = page - split.measures
        made = fedavg._combine(
            inputs,
            self.pages[task][round].measures,
            part * split.blocks // split.combines,
            (part + 1) * split.blocks // split.combines,
        )
        self.pages[task][round].combines.append(made)
    submissions.rounds[task][round].state = submissions.CLOSING
    submissions.rounds[task][round].pages = page + 1
    log PageMade(task=task, round=round, page=page, made=made)


@internal
def _end_with_model(
    task: uint256,
    round: uint256,
    inputs: fedavg.Inputs,
    entries: Entries,
    made: fedavg.Aggregate,
):
    submissions.rounds[task][round].state = submissions.AGGREGATED
    submissions.rounds[task][round].model = made.model
    if made.saturated > 0:
        submissions.rounds[task][round].saturated = made.saturated
    if made.velocity.size > 0:
        self.velocities[task] = made.velocity
    aggregations: uint256 = self.aggregations[task] + 1
    self.aggregations[task] = aggregations
    log Aggregated(
        task=task,
        round=round,
        rule=inputs.rule,
        base=inputs.base,
        velocity_before=inputs.velocity,
        clients=entries.clients,
        origins=entries.origins,
        updates=inputs.updates,
        raw_weights=inputs.weights,
        shares=made.shares,
        scores=made.scores,
        flags=made.flags,
        model=made.model,
        velocity=made.velocity,
        saturated=made.saturated,
        pool=submissions.rounds[task][round].pool,
    )
    every: uint256 = submissions.plans[task].evaluate_every
    if every > 0 and (aggregations % every == 0 or round == submissions.plans[task].rounds):
        self._request_evaluation(task, round)
    self._settle(
        seam.Settlement(
            task=task,
            round=round,
            outcome=seam.AGGREGATED,
            model=made.model,
            saturated=made.saturated,
            clients=entries.clients,
            shares=made.shares,
            silent=submissions._get_silent(task, round),
        ),
        made.model,
    )


@internal
def _fail(task: uint256, round: uint256):
    """
    @notice End a round without a quorum. Where the silence of others is the reason, those who have
            shown their work are paid by weight, the silent ones counted as high as they may claim,
            nobody above the cap: nobody can harvest updates for nothing. No rule has judged these
            updates: they are neither excluded nor deduplicated.
    """
    clients: DynArray[address, fedavg.MAX_CLIENTS] = []
    shares: DynArray[uint256, fedavg.MAX_CLIENTS] = []
    silent: DynArray[address, fedavg.MAX_CLIENTS] = staticcall seam.Tasks(seam.TASKS).get_seated(
        task, submissions._get_silent(task, round)
    )
    if len(silent) > 0:
        entries: Entries = self._collect(task, round)
        total: uint256 = entries.total
        for participant: address in silent:
            seat: seam.Seat = self._get_seat(task, participant)
            total += self._weigh(
                submissions.plans[task].weighting,
                seat.samples,
                submissions._get_submission(task, round, participant).stake,
            )
        clients = entries.clients
        cap: uint256 = max(
            submissions.plans[task].rule.max_share, seam.ONE // (len(clients) + len(silent))
        )
        for weight: uint256 in entries.weights:
            shares.append(min((weight << fedavg.SHARE_BITS) // total, cap))
    outcome: uint8 = seam.SKIPPED
    if submissions.plans[task].on_failed_quorum == seam.REFUND:
        outcome = seam.FAILED
    self._end_without_model(task, round, outcome, clients, shares)


@internal
def _end_without_model(
    task: uint256,
    round: uint256,
    outcome: uint8,
    clients: DynArray[address, fedavg.MAX_CLIENTS],
    shares: DynArray[uint256, fedavg.MAX_CLIENTS],
):
    submissions._skip(task, round)
    if len(clients) > 0:
        log Compensated(task=task, round=round, clients=clients, shares=shares)
    settlement: seam.Settlement = empty(seam.Settlement)
    settlement.task = task
    settlement.round = round
    settlement.outcome = outcome
    settlement.clients = clients
    settlement.shares = shares
    settlement.silent = submissions._get_silent(task, round)
    self._settle(settlement, submissions.rounds[task][round].base)


@internal
def _settle(settlement: seam.Settlement, base: fedavg.Blob):
    """
    @notice Have Tasks pay the round, and open the next one if there is one now.
    """
    goes_on: bool = False
    seats: uint256 = 0
    pool: uint256 = 0
    goes_on, seats, pool = extcall seam.Tasks(seam.TASKS).settle(settlement)
    if goes_on:
        self._open(settlement.task, settlement.round + 1, base, seats, pool)


@internal
def _request_evaluation(task: uint256, round: uint256):
    metrics._request(
        task,
        round,
        submissions.rounds[task][round].model,
        submissions.plans[task].commit_seconds + submissions.plans[task].reveal_seconds,
    )
