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
SHARE_BITS: constant(uint256) = 20

AGGREGATE: constant(bytes4) = method_id(
    "aggregate((uint8,uint256),(bytes32,uint256),(bytes32,uint256)[],uint256[])",
    output_type=bytes4,
)
# Six words of head, and three words of each client and three lengths.
AGGREGATE_BYTES: constant(uint256) = 32 * (6 + 3 * (MAX_CLIENTS + 1))

# The widest update. What a task's close may cost is quoted for it, whatever the task asks for.
WIDEST_BITS: constant(uint256) = 16


struct Blob:
    digest: bytes32
    size: uint256


struct Rule:
    kind: uint8
    bound: uint256


struct Aggregate:
    model: Blob
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
    def check_model(model: Blob) -> (uint256, uint256): view
    def quote(rule: Rule, model: Blob, updates: uint256, bits: uint256) -> uint256: view


@internal
def _aggregate(
    rule: Rule,
    base: Blob,
    updates: DynArray[Blob, MAX_CLIENTS],
    weights: DynArray[uint256, MAX_CLIENTS],
) -> Aggregate:
    """
    @notice Have the precompile make the next model. Reverts with its reason if it refuses.
    """
    # Not an interface call: Vyper would send the arrays' unused places too, and the precompile
    # takes the canonical encoding only.
    response: Bytes[AGGREGATE_BYTES] = raw_call(
        FEDAVG,
        abi_encode(rule, base, updates, weights, method_id=AGGREGATE),
        max_outsize=AGGREGATE_BYTES,
    )
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
