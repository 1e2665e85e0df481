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

# The widest update. What a task's close may cost is quoted for it, whatever the task asks for.
WIDEST_BITS: constant(uint256) = 16


struct Blob:
    digest: bytes32
    size: uint256


struct Rule:
    kind: uint8
    bound: uint256


interface Fedavg:
    def verify(
        update: Blob,
        task: uint256,
        round: uint256,
        base: Blob,
        sender: address,
        max_norm2: uint256,
    ) -> uint256: view
    def aggregate(
        rule: Rule,
        base: Blob,
        updates: DynArray[Blob, MAX_CLIENTS],
        weights: DynArray[uint256, MAX_CLIENTS],
    ) -> (
        Blob,
        DynArray[uint256, MAX_CLIENTS],
        DynArray[int256, MAX_CLIENTS],
        DynArray[uint256, MAX_CLIENTS],
        uint256,
    ): nonpayable
    def info(blob: Blob) -> (uint256, uint256, uint256): view
    def check_model(model: Blob) -> (uint256, uint256): view
    def quote(rule: Rule, model: Blob, updates: uint256, bits: uint256) -> uint256: view


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
