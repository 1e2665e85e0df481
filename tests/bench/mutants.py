"""Mistakes that somebody could make in Tasks and Rounds: checks removed or turned, off by one,
accounts swapped, books forgotten."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file; `old` must be there exactly once."""

    name: str
    module: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "anybody acts as the publisher",
        "Tasks",
        'assert msg.sender == self.tasks[task].publisher, "tasks: not the publisher"',
        'assert self.tasks[task].state > 0, "tasks: not the publisher"',
    ),
    Mutant(
        "anybody settles rounds",
        "Tasks",
        'assert msg.sender == seam.ROUNDS, "tasks: not the contract Rounds"',
        'assert msg.sender != empty(address), "tasks: not the contract Rounds"',
    ),
    Mutant(
        "anybody opens, drops and stops rounds",
        "Rounds",
        'assert msg.sender == seam.TASKS, "rounds: not the contract Tasks"',
        'assert msg.sender != empty(address), "rounds: not the contract Tasks"',
    ),
    Mutant(
        "invitations are not looked at",
        "Tasks",
        'assert self._is_invited(task, msg.sender), "tasks: not invited"',
        "pass",
    ),
    Mutant(
        "reputation is not looked at",
        "Tasks",
        "        >= self.tasks[task].parameters.min_reputation\n",
        "        >= 0\n",
    ),
    Mutant(
        "an over task is open",
        "Tasks",
        "assert self.tasks[task].state > 0 and not self._is_over(task), ",
        "assert self.tasks[task].state > 0, ",
    ),
    Mutant(
        "a running task is refunded",
        "Tasks",
        '    self._check_publisher(task)\n    assert self._is_over(task), "tasks: not over"\n',
        "    self._check_publisher(task)\n",
    ),
    Mutant(
        "a member joins again",
        "Tasks",
        'assert not roster._is_member(task, msg.sender), "tasks: already joined"',
        "pass",
    ),
    Mutant(
        "one place too many",
        "Tasks",
        'assert roster._count(task) < max_clients, "tasks: full"',
        'assert roster._count(task) <= max_clients, "tasks: full"',
    ),
    Mutant(
        "joining in the last round",
        "Tasks",
        "assert round < self.tasks[task].parameters.rounds, ",
        "assert round <= self.tasks[task].parameters.rounds, ",
    ),
    Mutant(
        "the lobby closes a second late",
        "Tasks",
        "block.timestamp < self.tasks[task].join_ends, ",
        "block.timestamp <= self.tasks[task].join_ends, ",
    ),
    Mutant(
        "a lobby starts with one too few",
        "Tasks",
        "        roster._count(task) >= self.tasks[task].parameters.min_clients\n"
        '    ), "tasks: too few participants"',
        "        roster._count(task) + 1 >= self.tasks[task].parameters.min_clients\n"
        '    ), "tasks: too few participants"',
    ),
    Mutant(
        "anybody starts a lobby early",
        "Tasks",
        "        or block.timestamp >= self.tasks[task].join_ends\n",
        "        or block.timestamp > 0\n",
    ),
    Mutant(
        "a due round is aborted at once",
        "Tasks",
        "staticcall seam.Rounds(seam.ROUNDS).get_due(task) + seam.CLOSE_TIMEOUT_SECONDS",
        "staticcall seam.Rounds(seam.ROUNDS).get_due(task)",
    ),
    Mutant(
        "a cancelled round stays open",
        "Tasks",
        "            return\n        extcall seam.Rounds(seam.ROUNDS).stop(task)",
        "            return",
    ),
    Mutant(
        "cancelling ignores commitments",
        "Tasks",
        "if not staticcall seam.Rounds(seam.ROUNDS).is_idle(task):",
        "if False:",
    ),
    Mutant(
        "stake is not checked against samples",
        "Tasks",
        "        + samples * self.tasks[task].parameters.stake_per_sample\n"
        '    ), "tasks: samples not covered by stake"',
        '    ), "tasks: samples not covered by stake"',
    ),
    Mutant(
        "a sponsored stake counts twice",
        "Tasks",
        "    escrow.accounts[task].sponsorships -= sponsored\n",
        "",
    ),
    Mutant(
        "a sponsorship stays after joining",
        "lobby",
        "        self.sponsorships[task][participant] = 0\n",
        "        pass\n",
    ),
    Mutant(
        "the leaver takes the sponsor's part",
        "Tasks",
        "    escrow._send(msg.sender, gone.stake - gone.sponsored)\n",
        "    escrow._send(msg.sender, gone.stake)\n",
    ),
    Mutant(
        "the leaver is credited the sponsor's part",
        "Tasks",
        "escrow._credit(task, self.tasks[task].publisher, gone.sponsored)",
        "escrow._credit(task, msg.sender, gone.sponsored)",
    ),
    Mutant(
        "stakes stay in the books",
        "Tasks",
        "    escrow.accounts[task].stakes -= gone.stake\n",
        "",
    ),
    Mutant(
        "a leaver is waited for",
        "Tasks",
        "gone.active_from <= self.tasks[task].round:",
        "gone.active_from < self.tasks[task].round:",
    ),
    Mutant(
        "the gas of a sponsor goes back to it",
        "Tasks",
        "    escrow._send(participant, gas_wei)",
        "    escrow._send(msg.sender, gas_wei)",
    ),
    Mutant(
        "a claim is paid for ever",
        "escrow",
        "    self.claimable[task][owner] = 0\n",
        "",
    ),
    Mutant(
        "a refund leaves the escrow in the books",
        "escrow",
        "    self.accounts[task].left = 0\n",
        "",
    ),
    Mutant(
        "funding does not grow the reward",
        "escrow",
        "    self.accounts[task].reward_left += amount\n",
        "",
    ),
    Mutant(
        "a pool is not taken from the reward",
        "escrow",
        "    self.accounts[task].reward_left -= paid + platform\n",
        "",
    ),
    Mutant(
        "a burn stays in the stakes",
        "escrow",
        "    self.accounts[task].stakes -= amount\n",
        "",
    ),
    Mutant(
        "the pool is divided by one round too many",
        "Tasks",
        "self.tasks[task].parameters.rounds - round + 1\n",
        "self.tasks[task].parameters.rounds - round + 2\n",
    ),
    Mutant(
        "the platform takes twice",
        "Tasks",
        "    pool: uint256 = self.tasks[task].pool - fee\n",
        "    pool: uint256 = self.tasks[task].pool\n",
    ),
    Mutant(
        "the fee goes to the publisher",
        "Tasks",
        "escrow._credit(task, self.tasks[task].parameters.platform, fee)",
        "escrow._credit(task, publisher, fee)",
    ),
    Mutant(
        "pay is rounded up",
        "Tasks",
        "pay: uint256 = (pool * share) >> fedavg.SHARE_BITS",
        "pay: uint256 = (pool * share + seam.ONE - 1) >> fedavg.SHARE_BITS",
    ),
    Mutant(
        "everybody is paid as the first",
        "Tasks",
        "escrow._credit(task, settlement.clients[index], pay)",
        "escrow._credit(task, settlement.clients[0], pay)",
    ),
    Mutant(
        "a page takes the bounty",
        "Tasks",
        "fee = min(fee, reserve - bounty)",
        "fee = min(fee, reserve)",
    ),
    Mutant(
        "pages forget what they took",
        "Tasks",
        "        self.spent[task][round] += fee\n",
        "",
    ),
    Mutant(
        "the burn stays here",
        "Tasks",
        "    escrow._send(empty(address), burned)\n",
        "",
    ),
    Mutant(
        "a pause is forgotten",
        "Tasks",
        "elif wish == PAUSE or settlement.saturated",
        "elif settlement.saturated",
    ),
    Mutant(
        "saturation is not looked at",
        "Tasks",
        "wish == PAUSE or settlement.saturated > self.tasks[task].parameters.max_saturated:",
        "wish == PAUSE:",
    ),
    Mutant(
        "saturation pauses one early",
        "Tasks",
        "settlement.saturated > self.tasks[task].parameters.max_saturated:",
        "settlement.saturated >= self.tasks[task].parameters.max_saturated:",
    ),
    Mutant(
        "a slashed seat can be drawn",
        "roster",
        "    if silent.stake - lost < base_stake:\n"
        "        self.ready[task] &= ~(1 << (silent.position - 1))\n",
        "",
    ),
    Mutant(
        "a topped-up seat is not drawn",
        "roster",
        "    if stake >= base_stake:\n",
        "    if stake > base_stake:\n",
    ),
    Mutant(
        "the sponsor's part is slashed first",
        "roster",
        "    sponsored: uint256 = lost - min(lost, own)\n",
        "    sponsored: uint256 = min(lost, silent.sponsored)\n",
    ),
    Mutant(
        "a bond may exceed the stake",
        "roster",
        "    lost: uint256 = min(bond, silent.stake)\n",
        "    lost: uint256 = bond\n",
    ),
    Mutant(
        "a seat stays taken",
        "roster",
        "    self.occupied[task] &= ~(1 << seat)\n",
        "",
    ),
    Mutant(
        "a free seat can be drawn",
        "roster",
        "    self.ready[task] &= ~(1 << seat)\n",
        "",
    ),
    Mutant(
        "reputation has no floor",
        "reputation",
        "return max(FLOOR, self.reputations[publisher][participant])",
        "return self.reputations[publisher][participant]",
    ),
    Mutant(
        "reputation rises by an eighth",
        "reputation",
        "RISE: constant(uint256) = 16",
        "RISE: constant(uint256) = 8",
    ),
    Mutant(
        "the silent lose no reputation",
        "Tasks",
        "        reputation._halve(publisher, silent)\n",
        "",
    ),
    Mutant(
        "a late seat has any owner",
        "Rounds",
        '    assert seat.active_from <= origin, "rounds: not active in that round"\n',
        "",
    ),
    Mutant(
        "a stake below the base commits",
        "Rounds",
        '    assert seat.stake >= submissions.plans[task].base_stake, "rounds: stake '
        'below the base stake"\n',
        "",
    ),
    Mutant(
        "samples beyond the stake",
        "Rounds",
        "        samples <= seat.samples\n"
        "        and submissions.plans[task].base_stake\n"
        "        + samples * submissions.plans[task].stake_per_sample\n"
        "        <= seat.stake\n",
        "        samples <= seat.samples\n",
    ),
    Mutant(
        "samples beyond the promise",
        "Rounds",
        "        samples <= seat.samples\n        and submissions.plans[task].base_stake\n",
        "        submissions.plans[task].base_stake\n",
    ),
    Mutant(
        "a round closes before it is due",
        "Rounds",
        "assert block.timestamp >= submissions._get_due(task, round), ",
        "assert block.timestamp + 1 >= submissions._get_due(task, round), ",
    ),
    Mutant(
        "a quorum is one more",
        "Rounds",
        "    if revealed >= submissions.plans[task].min_clients:\n",
        "    if revealed > submissions.plans[task].min_clients:\n",
    ),
    Mutant(
        "one extension too many",
        "Rounds",
        "extensions < submissions.plans[task].max_extensions",
        "extensions <= submissions.plans[task].max_extensions",
    ),
    Mutant(
        "a late update counts in full",
        "Rounds",
        "            weight = (weight * submissions.plans[task].staleness_discount) >"
        "> fedavg.SHARE_BITS\n",
        "            pass\n",
    ),
    Mutant(
        "weight by samples and stake swapped",
        "Rounds",
        "        weight = samples\n    elif weighting == seam.BY_STAKE:\n        weight = stake\n",
        "        weight = stake\n    elif weighting == seam.BY_STAKE:\n        weight = samples\n",
    ),
    Mutant(
        "the silent of a short round are punished",
        "submissions",
        "    if self._is_short(task, round):\n        return 0\n",
        "",
    ),
    Mutant(
        "who revealed is punished",
        "submissions",
        "self.rounds[task][round].committed & ~self.rounds[task][round].revealed",
        "self.rounds[task][round].committed",
    ),
    Mutant(
        "a failed round is only skipped",
        "Rounds",
        "        outcome = seam.FAILED\n",
        "        pass\n",
    ),
    Mutant(
        "momentum is forgotten",
        "Rounds",
        "    if made.velocity.size > 0:\n        self.velocities[task] = made.velocity\n",
        "",
    ),
    Mutant(
        "the last evaluation is forgotten",
        "Rounds",
        "aggregations % every == 0 or round == submissions.plans[task].rounds",
        "aggregations % every == 0",
    ),
    Mutant(
        "a page too few",
        "Rounds",
        "submissions.rounds[task][round].pages < split.measures + split.combines:",
        "submissions.rounds[task][round].pages + 1 < split.measures + split.combines:",
    ),
    Mutant(
        "commitments a second late",
        "submissions",
        "        block.timestamp < self.rounds[task][round].commit_ends\n"
        '    ), "rounds: commit period is over"',
        "        block.timestamp <= self.rounds[task][round].commit_ends\n"
        '    ), "rounds: commit period is over"',
    ),
    Mutant(
        "a second commitment",
        "submissions",
        '    assert not bitmaps._has(committed, seat), "rounds: already committed"\n',
        "",
    ),
    Mutant(
        "whoever was not drawn commits",
        "submissions",
        '    assert bitmaps._has(self.rounds[task][origin].drawn, seat), "rounds: not drawn"\n',
        "",
    ),
    Mutant(
        "an origin is answered twice",
        "submissions",
        '    assert not bitmaps._has(self.answered[task][origin], seat), "rounds: alr'
        'eady answered"\n',
        "",
    ),
    Mutant(
        "one round too stale",
        "submissions",
        "origin + self.plans[task].max_staleness >= round",
        "origin + self.plans[task].max_staleness + 1 >= round",
    ),
    Mutant(
        "leaving with a commitment",
        "submissions",
        "    assert not bitmaps._has(\n"
        "        self.rounds[task][round].committed, seat\n"
        '    ), "rounds: bound by a commitment"\n',
        "",
    ),
    Mutant(
        "reveals open with too few",
        "submissions",
        "    if missing > 0 or self._is_short(task, round):\n",
        "    if missing > 0:\n",
    ),
    Mutant(
        "reveals of a short round",
        "submissions",
        '    assert not self._is_short(task, round), "rounds: too few commitments"\n',
        "",
    ),
    Mutant(
        "any update fits the commitment",
        "submissions",
        "        == self._compute_commitment(task, round, origin, participant, update"
        ", samples, salt)\n",
        "        != empty(bytes32)\n",
    ),
    Mutant(
        "the commitment binds nobody",
        "submissions",
        "            origin,\n            participant,\n            update.digest,",
        "            origin,\n            self,\n            update.digest,",
    ),
    Mutant(
        "a reveal a second early",
        "submissions",
        "        block.timestamp >= self.rounds[task][round].commit_ends\n",
        "        block.timestamp + 1 >= self.rounds[task][round].commit_ends\n",
    ),
    Mutant(
        "a reveal is repeated",
        "submissions",
        '    assert not bitmaps._has(self.rounds[task][round].revealed, seat), "round'
        's: already revealed"\n',
        "",
    ),
    Mutant(
        "a late update is verified against this round's base",
        "submissions",
        "        self.rounds[task][origin].base,\n",
        "        self.rounds[task][round].base,\n",
    ),
    Mutant(
        "an update may expire before the close",
        "submissions",
        ".reveal_ends + seam.CLOSE_TIMEOUT_SECONDS\n",
        ".reveal_ends\n",
    ),
    Mutant(
        "everybody's reveal ends nothing",
        "submissions",
        "    if revealed == self.rounds[task][round].committed:\n",
        "    if False:\n",
    ),
    Mutant(
        "the seed is the same in each task",
        "drawing",
        "keccak256(abi_encode(blockhash(block.number - 1), task, round))",
        "keccak256(abi_encode(blockhash(block.number - 1), round, round))",
    ),
    Mutant(
        "a shuffle that favours the first seats",
        "drawing",
        "other: uint256 = index + number % (active - index)",
        "other: uint256 = number % active",
    ),
    Mutant(
        "the fraction is rounded down",
        "drawing",
        "(active * fraction_fit + seam.ONE - 1) // seam.ONE",
        "(active * fraction_fit) // seam.ONE",
    ),
    Mutant(
        "a report is repeated",
        "metrics",
        '    assert not self.reported[task][round][participant], "rounds: already reported"\n',
        "",
    ),
    Mutant(
        "a report a second late",
        "metrics",
        "assert block.timestamp < self.evaluation_ends[task][round], ",
        "assert block.timestamp <= self.evaluation_ends[task][round], ",
    ),
    Mutant(
        "a bond above the base stake",
        "terms",
        '    assert parameters.bond <= parameters.base_stake, "tasks: bond above the base stake"\n',
        "",
    ),
    Mutant(
        "a platform takes it all",
        "terms",
        "MAX_PLATFORM_SHARE: constant(uint256) = seam.ONE // 5",
        "MAX_PLATFORM_SHARE: constant(uint256) = seam.ONE",
    ),
    Mutant(
        "too few clients for Multi-Krum",
        "terms",
        "assert parameters.min_clients > 2 * rule.bound + 2, ",
        "assert parameters.min_clients > 2 * rule.bound, ",
    ),
    Mutant(
        "a bounty above the reserve",
        "terms",
        '    assert parameters.close_bounty <= parameters.close_reserve, "tasks: boun'
        'ty above the reserve"\n',
        "",
    ),
    Mutant(
        "the silent count for nothing in a spoilt round",
        "Rounds",
        "        total: uint256 = entries.total\n        for participant: address in silent:\n",
        "        total: uint256 = entries.total\n"
        "        for participant: address in entries.clients:\n",
    ),
    Mutant(
        "a spoilt round pays the platform",
        "Tasks",
        "    if is_made:\n        fee = (",
        "    if True:\n        fee = (",
    ),
    Mutant(
        "a spoilt round raises reputations",
        "Tasks",
        "            if is_made:\n                reputation._raise",
        "            if True:\n                reputation._raise",
    ),
    Mutant(
        "anybody is released from a running task",
        "Tasks",
        '    assert self._is_over(task), "tasks: not over"\n    gone: roster',
        "    gone: roster",
    ),
    Mutant(
        "a release pays the caller",
        "Tasks",
        "escrow._credit(task, participant, gone.stake - gone.sponsored)",
        "escrow._credit(task, msg.sender, gone.stake - gone.sponsored)",
    ),
)
