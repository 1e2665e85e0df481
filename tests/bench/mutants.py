"""Mistakes that somebody could make in Tasks: checks removed or turned, off by one, accounts
swapped, books forgotten."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file; `old` must be there exactly once.

    `test` is what kills it in contracts/tests where games seldom do: it is asked first.
    """

    name: str
    module: str
    old: str
    new: str
    test: str = ""


TASKS_MUTANTS = (
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
        "test_lobby.py::test_joining_twice_is_refused",
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
        "test_joining.py::test_a_sponsor_pays_gas_at_once_and_the_stake_when_it_is_used",
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
        "test_joining.py::test_a_sponsored_stake_returns_to_the_sponsor",
    ),
    Mutant(
        "the leaver is credited the sponsor's part",
        "Tasks",
        "escrow._credit(task, self.tasks[task].publisher, gone.sponsored)",
        "escrow._credit(task, msg.sender, gone.sponsored)",
        "test_joining.py::test_a_sponsored_stake_returns_to_the_sponsor",
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
        test="test_drawing.py",
    ),
    Mutant(
        "the sponsor's part is slashed first",
        "roster",
        "    sponsored: uint256 = lost - min(lost, own)\n",
        "    sponsored: uint256 = min(lost, silent.sponsored)\n",
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
