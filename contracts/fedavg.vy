# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title The aggregation precompile, as contracts see it
@license Apache-2.0
@notice Names and calls of docs/protocol.md, sections 1 and 5. Models and updates never enter the
        EVM: contracts pass their names, and the node reads the bytes.
"""

FEDAVG: constant(address) = 0x0000000000000000000000000000000000000F01

MAX_CLIENTS: constant(uint256) = 128
MAX_PAGES: constant(uint256) = 64
SHARE_BITS: constant(uint256) = 20

AGGREGATE: constant(bytes4) = method_id(
    "aggregate((uint8,uint256,uint256,uint256,uint256),(bytes32,uint256),(bytes32,uint256),(bytes32,uint256)[],uint256[])",
    output_type=bytes4,
)
MEASURE: constant(bytes4) = method_id(
    "measure((uint8,uint256,uint256,uint256,uint256),(bytes32,uint256),(bytes32,uint256)[],uint256,uint256)",
    output_type=bytes4,
)
COMBINE: constant(bytes4) = method_id(
    "combine((uint8,uint256,uint256,uint256,uint256),(bytes32,uint256),(bytes32,uint256),(bytes32,uint256)[],uint256[],(bytes32,uint256)[],uint256,uint256)",
    output_type=bytes4,
)
ASSEMBLE: constant(bytes4) = method_id(
    "assemble((uint8,uint256,uint256,uint256,uint256),(bytes32,uint256),(bytes32,uint256),(bytes32,uint256)[],uint256[],(bytes32,uint256)[],(bytes32,uint256)[])",
    output_type=bytes4,
)
# Eight words of head, and three words of each client and three lengths.
AGGREGATE_BYTES: constant(uint256) = 32 * (8 + 3 * (MAX_CLIENTS + 1))

# The widest update. What a task's close may cost is quoted for it, whatever the task asks for.
WIDEST_BITS: constant(uint256) = 16


struct Blob:
    digest: bytes32
    size: uint256


struct Rule:
    kind: uint8
    bound: uint256
    max_share: uint256
    server_lr: uint256
    momentum: uint256


# What every call about one round is given.
struct Inputs:
    rule: Rule
    base: Blob
    velocity: Blob
    updates: DynArray[Blob, MAX_CLIENTS]
    weights: DynArray[uint256, MAX_CLIENTS]


struct Aggregate:
    model: Blob
    velocity: Blob
    shares: DynArray[uint256, MAX_CLIENTS]
    scores: DynArray[int256, MAX_CLIENTS]
    flags: DynArray[uint256, MAX_CLIENTS]
    saturated: uint256


interface Fedavg:
    def verify(
        update: Blob,
        task: uint256,
        round: uint256,
        base: Blob,
        sender: address,
        max_norm2: uint256,
    ) -> uint256: view
    def info(blob: Blob) -> (uint256, uint256, uint256): view
    def plan(
        rule: Rule, model: Blob, updates: uint256, bits: uint256, page_gas: uint256
    ) -> (uint256, uint256, uint256): view


# Not interface calls below: Vyper would send the arrays' unused places too, and the precompile
# takes the canonical encoding only. Each reverts with the precompile's reason if it refuses.


@internal
def _aggregate(inputs: Inputs) -> Aggregate:
    """
    @notice Have the precompile make the next model in one call.
    """
    return self._make(
        abi_encode(
            inputs.rule,
            inputs.base,
            inputs.velocity,
            inputs.updates,
            inputs.weights,
            method_id=AGGREGATE,
        )
    )


@internal
def _measure(inputs: Inputs, first: uint256, last: uint256) -> Blob:
    """
    @notice One page of the first phase: blocks `first` to `last`, exclusive.
    """
    response: Bytes[64] = raw_call(
        FEDAVG,
        abi_encode(inputs.rule, inputs.base, inputs.updates, first, last, method_id=MEASURE),
        max_outsize=64,
    )
    return abi_decode(response, Blob)


@internal
def _combine(
    inputs: Inputs, measures: DynArray[Blob, MAX_PAGES], first: uint256, last: uint256
) -> Blob:
    """
    @notice One page of the second phase: blocks `first` to `last`, exclusive.
    """
    response: Bytes[64] = raw_call(
        FEDAVG,
        abi_encode(
            inputs.rule,
            inputs.base,
            inputs.velocity,
            inputs.updates,
            inputs.weights,
            measures,
            first,
            last,
            method_id=COMBINE,
        ),
        max_outsize=64,
    )
    return abi_decode(response, Blob)


@internal
def _assemble(
    inputs: Inputs, measures: DynArray[Blob, MAX_PAGES], pages: DynArray[Blob, MAX_PAGES]
) -> Aggregate:
    """
    @notice Have the precompile make the next model of all pages: the same as in one call.
    """
    return self._make(
        abi_encode(
            inputs.rule,
            inputs.base,
            inputs.velocity,
            inputs.updates,
            inputs.weights,
            measures,
            pages,
            method_id=ASSEMBLE,
        )
    )


@internal
def _make(payload: Bytes[32 * 1024]) -> Aggregate:
    response: Bytes[AGGREGATE_BYTES] = raw_call(FEDAVG, payload, max_outsize=AGGREGATE_BYTES)
    return abi_decode(response, Aggregate, unwrap_tuple=False)


@view
@internal
def _get_expiry(blob: Blob) -> uint256:
    """
    @notice Last second at which `blob` may still be read.
    """
    size: uint256 = 0
    height: uint256 = 0
    expires_at: uint256 = 0
    size, height, expires_at = staticcall Fedavg(FEDAVG).info(blob)
    return expires_at
