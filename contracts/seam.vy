# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title What Tasks and Rounds say to each other
@license Apache-2.0
@notice Tasks holds the agreement and all ether; Rounds holds the rounds and no ether. Each knows
        the other by the address at which genesis deploys it. Neither calls a function of the other
        that would call back: both are locked while they run.
"""

import fedavg

TASKS: constant(address) = 0x0000000000000000000000000000000000001002
ROUNDS: constant(address) = 0x0000000000000000000000000000000000001004

# Fractions are in units of 2**-20.
ONE: constant(uint256) = 2**20

# How a round ended, as Tasks is told.
AGGREGATED: constant(uint8) = 1
SKIPPED: constant(uint8) = 2
# Too few reveals in a task that then gives its money back.
FAILED: constant(uint8) = 3

# What a failed quorum means.
SKIP: constant(uint8) = 0
EXTEND: constant(uint8) = 1
REFUND: constant(uint8) = 2

# Of one claim or report.
MAX_SAMPLES: constant(uint256) = 2**64 - 1

# Raw weights.
BY_SAMPLES: constant(uint8) = 0
BY_STAKE: constant(uint8) = 1
UNIFORM: constant(uint8) = 2

# After a round is due, how long its updates stay readable, and when anybody may give up on it.
CLOSE_TIMEOUT_SECONDS: constant(uint256) = 86_400


# What a participant brings; all zero for a stranger.
struct Seat:
    seat: uint256
    stake: uint256
    samples: uint256
    active_from: uint256


# The terms of a task that its rounds follow.
struct Plan:
    publisher: address
    rule: fedavg.Rule
    weighting: uint8
    rounds: uint256
    min_clients: uint256
    max_clients: uint256
    fraction_fit: uint256
    spare_clients: uint256
    max_staleness: uint256
    staleness_discount: uint256
    on_failed_quorum: uint8
    max_extensions: uint256
    evaluate_every: uint256
    commit_seconds: uint256
    reveal_seconds: uint256
    base_stake: uint256
    stake_per_sample: uint256
    admission_norm2: uint256


struct Settlement:
    task: uint256
    round: uint256
    outcome: uint8
    # Empty unless the round was aggregated.
    model: fedavg.Blob
    saturated: uint256
    # Whom to pay, and by which shares of the pool.
    clients: DynArray[address, fedavg.MAX_CLIENTS]
    shares: DynArray[uint256, fedavg.MAX_CLIENTS]
    # Bitmap of the seats that committed and did not reveal.
    silent: uint256


interface Tasks:
    def get_seat(task: uint256, participant: address) -> Seat: view
    def get_seated(task: uint256, seats: uint256) -> DynArray[address, fedavg.MAX_CLIENTS]: view
    def settle(settlement: Settlement) -> (bool, uint256, uint256): nonpayable
    def pay_closer(
        task: uint256, round: uint256, closer: address, gas_used: uint256, is_last: bool
    ): nonpayable


interface Rounds:
    def register(
        task: uint256, plan: Plan, model: fedavg.Blob, join_seconds: uint256
    ): nonpayable
    def open(
        task: uint256, round: uint256, base: fedavg.Blob, seats: uint256, pool: uint256
    ): nonpayable
    def drop(task: uint256, seat: uint256): nonpayable
    def stop(task: uint256): nonpayable
    def is_idle(task: uint256) -> bool: view
    def get_due(task: uint256) -> uint256: view
