# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title The terms of a task, and which terms can be kept
@license Apache-2.0
@notice Checked once, when a task is published; then they never change. docs/tasks.md lists them.
"""

import fedavg

WEIGHTED_MEAN: constant(uint8) = 0
NORM_CLIPPED_MEAN: constant(uint8) = 1

# The square root of the largest norm.
MAX_BOUND: constant(uint256) = 2**128 - 1

# Raw weights.
BY_SAMPLES: constant(uint8) = 0
BY_STAKE: constant(uint8) = 1
UNIFORM: constant(uint8) = 2

MAX_ROUNDS: constant(uint256) = 10_000
MAX_PERIOD_SECONDS: constant(uint256) = 30 * 86_400
MAX_SAMPLES: constant(uint256) = 2**64 - 1
# Keeps every sum of money and every raw weight far from 2**256.
MAX_WEI: constant(uint256) = 2**120

# After a round is due, how long its updates stay readable, and when anybody may give up on it.
CLOSE_TIMEOUT_SECONDS: constant(uint256) = 86_400

# Closing one round may need at most three quarters of a block's gas.
CLOSE_BLOCK_NUMERATOR: constant(uint256) = 3
CLOSE_BLOCK_DENOMINATOR: constant(uint256) = 4
# What closing costs besides the precompile; contracts/tests/test_gas.py measures it.
CLOSE_GAS: constant(uint256) = 500_000
CLOSE_GAS_PER_CLIENT: constant(uint256) = 50_000
# What a closing transaction costs outside the part that `close` can meter.
CLOSE_GAS_UNMETERED: constant(uint256) = 80_000


struct Parameters:
    rule: fedavg.Rule
    weighting: uint8
    bits: uint8
    rounds: uint256
    min_clients: uint256
    max_clients: uint256
    join_seconds: uint256
    commit_seconds: uint256
    reveal_seconds: uint256
    base_stake: uint256
    stake_per_sample: uint256
    admission_norm2: uint256
    reward: uint256
    close_reserve: uint256
    close_bounty: uint256


@pure
@internal
def _check_parameters(parameters: Parameters):
    assert parameters.rounds > 0 and parameters.rounds <= MAX_ROUNDS, "tasks: rounds out of range"
    assert (
        parameters.min_clients > 0
        and parameters.min_clients <= parameters.max_clients
        and parameters.max_clients <= fedavg.MAX_CLIENTS
    ), "tasks: clients out of range"
    assert (
        self._is_period(parameters.join_seconds)
        and self._is_period(parameters.commit_seconds)
        and self._is_period(parameters.reveal_seconds)
    ), "tasks: period out of range"
    assert parameters.weighting <= UNIFORM, "tasks: unknown weighting"
    assert parameters.bits == 8 or parameters.bits == 16, "tasks: bits must be 8 or 16"
    assert parameters.rule.kind <= NORM_CLIPPED_MEAN, "tasks: unknown rule"
    assert (parameters.rule.kind == WEIGHTED_MEAN) == (
        parameters.rule.bound == 0
    ) and parameters.rule.bound <= MAX_BOUND, "tasks: bound does not fit the rule"
    assert parameters.admission_norm2 > 0, "tasks: no admission norm"
    assert (
        parameters.base_stake <= MAX_WEI
        and parameters.stake_per_sample <= MAX_WEI
        and parameters.reward <= MAX_WEI
        and parameters.close_reserve <= MAX_WEI
    ), "tasks: amount out of range"
    assert parameters.close_bounty <= parameters.close_reserve, "tasks: bounty above the reserve"
    assert (
        parameters.weighting != BY_STAKE or parameters.base_stake > 0
    ), "tasks: weighting by stake needs a base stake"


@pure
@internal
def _is_period(seconds: uint256) -> bool:
    return seconds > 0 and seconds <= MAX_PERIOD_SECONDS


@view
@internal
def _check_capacity(parameters: Parameters, model: fedavg.Blob):
    """
    @notice Refuse a task whose rounds could not be closed within a block, or whose model could be
            forgotten before its first round is closed.
    """
    values: uint256 = 0
    update_values: uint256 = 0
    values, update_values = staticcall fedavg.Fedavg(fedavg.FEDAVG).check_model(model)
    aggregate_gas: uint256 = staticcall fedavg.Fedavg(fedavg.FEDAVG).quote(
        parameters.rule, model, parameters.max_clients, fedavg.WIDEST_BITS
    )
    assert (
        aggregate_gas + CLOSE_GAS + parameters.max_clients * CLOSE_GAS_PER_CLIENT
        <= block.gaslimit * CLOSE_BLOCK_NUMERATOR // CLOSE_BLOCK_DENOMINATOR
    ), "tasks: a round would not fit in a block"
    assert (
        fedavg._get_expiry(model)
        >= block.timestamp
        + parameters.join_seconds
        + parameters.commit_seconds
        + parameters.reveal_seconds
        + CLOSE_TIMEOUT_SECONDS
    ), "tasks: model expires too soon"


@pure
@internal
def _compute_escrow(parameters: Parameters) -> uint256:
    return parameters.reward + parameters.rounds * parameters.close_reserve


@pure
@internal
def _compute_weight(weighting: uint8, samples: uint256, stake: uint256) -> uint256:
    if weighting == BY_SAMPLES:
        return samples
    if weighting == BY_STAKE:
        return stake
    return 1
