# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title The terms of a task
@license Apache-2.0
@notice Checked once, when a task is published; then they never change. docs/tasks.md lists them.
"""

import fedavg
import seam

WEIGHTED_MEAN: constant(uint8) = 0
NORM_CLIPPED_MEAN: constant(uint8) = 1
TRIMMED_MEAN: constant(uint8) = 2
MULTI_KRUM: constant(uint8) = 3

# The square root of the largest norm.
MAX_BOUND: constant(uint256) = 2**128 - 1
# Units of 2**-12.
MAX_SERVER_LR: constant(uint256) = 2**15
MAX_MOMENTUM: constant(uint256) = 4096 - 16

# Who may join.
EVERYBODY: constant(uint8) = 0
INVITED: constant(uint8) = 1
APPLICANTS: constant(uint8) = 2

MAX_ROUNDS: constant(uint256) = 10_000
MAX_STALENESS: constant(uint256) = 8
MAX_EXTENSIONS: constant(uint256) = 16
MAX_PERIOD_SECONDS: constant(uint256) = 30 * 86_400
# Keeps every sum of money far from 2**256, and every raw weight below 2**128.
MAX_WEI: constant(uint256) = 2**100
# Where a reputation stops: it grows by a sixteenth, rounded down, of what it lacks to seam.ONE.
MAX_REPUTATION: constant(uint256) = seam.ONE - 15
MAX_PLATFORM_SHARE: constant(uint256) = seam.ONE // 5


struct Parameters:
    rule: fedavg.Rule
    weighting: uint8
    bits: uint8
    rounds: uint256
    min_clients: uint256
    max_clients: uint256
    fraction_fit: uint256
    spare_clients: uint256
    max_staleness: uint256
    staleness_discount: uint256
    on_failed_quorum: uint8
    max_extensions: uint256
    max_saturated: uint256
    evaluate_every: uint256
    join_seconds: uint256
    commit_seconds: uint256
    reveal_seconds: uint256
    base_stake: uint256
    stake_per_sample: uint256
    bond: uint256
    admission: uint8
    min_reputation: uint256
    admission_norm2: uint256
    reward: uint256
    close_reserve: uint256
    close_bounty: uint256
    platform: address
    platform_share: uint256


@pure
@internal
def _check_parameters(parameters: Parameters):
    self._check_course(parameters)
    self._check_rule(parameters)
    self._check_money(parameters)


@pure
@internal
def _check_course(parameters: Parameters):
    """
    @notice Rounds, places, periods, and who is let in.
    """
    assert parameters.rounds > 0 and parameters.rounds <= MAX_ROUNDS, "tasks: rounds out of range"
    assert (
        parameters.min_clients > 0
        and parameters.min_clients <= parameters.max_clients
        and parameters.max_clients <= fedavg.MAX_CLIENTS
    ), "tasks: clients out of range"
    assert (
        parameters.fraction_fit > 0
        and parameters.fraction_fit <= seam.ONE
        and parameters.spare_clients <= fedavg.MAX_CLIENTS
    ), "tasks: drawing out of range"
    assert (
        parameters.max_staleness <= MAX_STALENESS and parameters.staleness_discount <= seam.ONE
    ), "tasks: staleness out of range"
    assert parameters.on_failed_quorum <= seam.REFUND, "tasks: unknown quorum policy"
    assert (parameters.on_failed_quorum == seam.EXTEND) == (
        parameters.max_extensions > 0
    ) and parameters.max_extensions <= MAX_EXTENSIONS, "tasks: extensions do not fit the policy"
    assert parameters.evaluate_every <= MAX_ROUNDS, "tasks: evaluations out of range"
    assert (
        self._is_period(parameters.join_seconds)
        and self._is_period(parameters.commit_seconds)
        and self._is_period(parameters.reveal_seconds)
    ), "tasks: period out of range"
    assert parameters.admission <= APPLICANTS, "tasks: unknown admission"
    assert parameters.min_reputation <= MAX_REPUTATION, "tasks: reputation out of range"
    assert parameters.admission_norm2 > 0, "tasks: no admission norm"


@pure
@internal
def _check_rule(parameters: Parameters):
    """
    @notice The rule fits its bound, the weighting and the fewest clients that it may meet.
    """
    rule: fedavg.Rule = parameters.rule
    assert parameters.weighting <= seam.UNIFORM, "tasks: unknown weighting"
    assert (
        parameters.weighting != seam.BY_STAKE or parameters.base_stake > 0
    ), "tasks: weighting by stake needs a base stake"
    assert parameters.bits == 8 or parameters.bits == 16, "tasks: bits must be 8 or 16"
    assert rule.kind <= MULTI_KRUM, "tasks: unknown rule"
    assert (rule.kind == WEIGHTED_MEAN) == (
        rule.bound == 0
    ) and rule.bound <= MAX_BOUND, "tasks: bound does not fit the rule"
    if rule.kind == TRIMMED_MEAN:
        assert (
            parameters.weighting == seam.UNIFORM
        ), "tasks: the trimmed mean needs uniform weighting"
        assert parameters.min_clients > 2 * rule.bound, "tasks: too few clients for the rule"
        # It counts every update alike, one of weight 0 as well.
        assert (
            parameters.max_staleness == 0 or parameters.staleness_discount > 0
        ), "tasks: late updates would count unpaid"
    if rule.kind == MULTI_KRUM:
        assert parameters.min_clients > 2 * rule.bound + 2, "tasks: too few clients for the rule"
    assert rule.max_share > 0 and rule.max_share <= seam.ONE, "tasks: share cap out of range"
    assert (
        rule.server_lr > 0 and rule.server_lr <= MAX_SERVER_LR and rule.momentum <= MAX_MOMENTUM
    ), "tasks: server step out of range"


@pure
@internal
def _check_money(parameters: Parameters):
    assert (
        parameters.base_stake <= MAX_WEI
        and parameters.stake_per_sample <= MAX_WEI
        and parameters.reward <= MAX_WEI
        and parameters.close_reserve <= MAX_WEI
    ), "tasks: amount out of range"
    assert parameters.bond <= parameters.base_stake, "tasks: bond above the base stake"
    assert parameters.close_bounty <= parameters.close_reserve, "tasks: bounty above the reserve"
    assert (parameters.platform == empty(address)) == (
        parameters.platform_share == 0
    ) and parameters.platform_share <= MAX_PLATFORM_SHARE, "tasks: platform share out of range"


@pure
@internal
def _is_period(seconds: uint256) -> bool:
    return seconds > 0 and seconds <= MAX_PERIOD_SECONDS


@pure
@internal
def _compute_escrow(parameters: Parameters) -> uint256:
    return parameters.reward + parameters.rounds * parameters.close_reserve


@pure
@internal
def _get_plan(publisher: address, parameters: Parameters) -> seam.Plan:
    return seam.Plan(
        publisher=publisher,
        rule=parameters.rule,
        weighting=parameters.weighting,
        rounds=parameters.rounds,
        min_clients=parameters.min_clients,
        max_clients=parameters.max_clients,
        fraction_fit=parameters.fraction_fit,
        spare_clients=parameters.spare_clients,
        max_staleness=parameters.max_staleness,
        staleness_discount=parameters.staleness_discount,
        on_failed_quorum=parameters.on_failed_quorum,
        max_extensions=parameters.max_extensions,
        evaluate_every=parameters.evaluate_every,
        commit_seconds=parameters.commit_seconds,
        reveal_seconds=parameters.reveal_seconds,
        base_stake=parameters.base_stake,
        stake_per_sample=parameters.stake_per_sample,
        admission_norm2=parameters.admission_norm2,
    )
