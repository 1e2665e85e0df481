"""Mistakes that somebody could make in Rounds and in the terms that it follows."""

from .mutants import Mutant

ROUNDS_MUTANTS = (
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
        test="test_rounds.py",
    ),
    Mutant(
        "samples beyond the promise",
        "Rounds",
        "        samples <= seat.samples\n        and submissions.plans[task].base_stake\n",
        "        submissions.plans[task].base_stake\n",
        test="test_rounds.py",
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
        "assert fedavg._get_expiry(update) >= self._get_last_close(",
        "assert fedavg._get_expiry(update) + 1 >= self._get_last_close(",
        "test_rounds.py::test_an_update_that_could_expire_before_the_close_is_refused",
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
        "test_drawing.py::test_the_seed_comes_from_the_block_before",
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
        "bound to a base that expires",
        "submissions",
        "    self._check_readable(task, round, origin)\n",
        "",
        "test_rounds.py::test_a_base_model_that_could_expire_must_be_declared_again",
    ),
    Mutant(
        "bound to a velocity that expires",
        "submissions",
        "velocity.size == 0 or fedavg._get_expiry(velocity) >= readable_until",
        "velocity.size == 0 or readable_until > 0",
        "test_paging.py::test_a_velocity_that_could_expire_must_be_declared_again",
    ),
    Mutant(
        "bound to an old base that expires",
        "submissions",
        "for each: uint256 in [origin, round]:",
        "for each: uint256 in [round, round]:",
        "test_late.py::test_the_base_of_a_late_update_must_stay_readable_too",
    ),
    Mutant(
        "a base may expire in an extension",
        "submissions",
        "task, round, self.plans[task].commit_seconds + self.plans[task].reveal_seconds\n",
        "task, round, self.plans[task].reveal_seconds\n",
        "test_quorum.py::test_no_extension_lets_the_base_of_who_is_bound_expire",
    ),
    Mutant(
        "stake after the commitment weighs",
        "Rounds",
        "self._weigh(weighting, submission.samples, submission.stake)",
        "self._weigh(weighting, submission.samples, self._get_seat(task, client).stake)",
        "test_rounds.py::test_stake_that_comes_after_the_commitment_weighs_nothing",
    ),
    Mutant(
        "stake of the silent after their commitment dilutes",
        "Rounds",
        "                submissions._get_submission(task, round, participant).stake,\n",
        "                seat.stake,\n",
        "test_quorum.py::test_stake_that_comes_after_the_commitment_of_a_silent_one_dilutes_nobody",
    ),
    Mutant(
        "compensated above the cap",
        "Rounds",
        "shares.append(min((weight << fedavg.SHARE_BITS) // total, cap))",
        "shares.append((weight << fedavg.SHARE_BITS) // total)",
        "test_quorum.py::test_nobody_is_compensated_above_the_cap",
    ),
    Mutant(
        "a trimmed mean counts what it does not pay",
        "terms",
        "parameters.max_staleness == 0 or parameters.staleness_discount > 0",
        "parameters.max_staleness < 9",
        "test_publish.py",
    ),
    Mutant(
        "a reputation that nobody reaches",
        "terms",
        "MAX_REPUTATION: constant(uint256) = seam.ONE - 15",
        "MAX_REPUTATION: constant(uint256) = seam.ONE",
        "test_publish.py",
    ),
)
