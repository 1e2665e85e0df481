# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title What closing a round costs
@license Apache-2.0
@notice contracts/tests/test_gas.py measures these numbers.
"""

import fedavg
import seam

# Closing one round, or one page of it, may need at most three quarters of a block's gas.
CLOSE_BLOCK_NUMERATOR: constant(uint256) = 3
CLOSE_BLOCK_DENOMINATOR: constant(uint256) = 4
# What it costs besides the precompile.
CLOSE_GAS: constant(uint256) = 800_000
CLOSE_GAS_PER_CLIENT: constant(uint256) = 60_000
# What a closing transaction costs outside the part that `Rounds.close` can meter.
CLOSE_GAS_UNMETERED: constant(uint256) = 80_000


# How the aggregation of a full round is divided: `measures` pages, then `combines` pages, each an
# equal part of `blocks`. One call does it all if there are no measures and one combine.
struct Split:
    measures: uint256
    combines: uint256
    blocks: uint256


@view
@internal
def _plan(plan: seam.Plan, model: fedavg.Blob, join_seconds: uint256) -> Split:
    """
    @notice Refuse a task whose rounds could never be closed, or whose model could be forgotten
            before its first round is closed.
    """
    block_gas: uint256 = block.gaslimit * CLOSE_BLOCK_NUMERATOR // CLOSE_BLOCK_DENOMINATOR
    own_gas: uint256 = CLOSE_GAS + plan.max_clients * CLOSE_GAS_PER_CLIENT
    assert block_gas > own_gas, "rounds: a round would not fit in a block"
    split: Split = empty(Split)
    split.measures, split.combines, split.blocks = staticcall fedavg.Fedavg(fedavg.FEDAVG).plan(
        plan.rule, model, plan.max_clients, fedavg.WIDEST_BITS, block_gas - own_gas
    )
    periods: uint256 = (plan.max_extensions + 1) * (plan.commit_seconds + plan.reveal_seconds)
    assert (
        fedavg._get_expiry(model)
        >= block.timestamp + join_seconds + periods + seam.CLOSE_TIMEOUT_SECONDS
    ), "rounds: model expires too soon"
    return split


@pure
@internal
def _is_paged(split: Split) -> bool:
    return split.measures > 0 or split.combines > 1
