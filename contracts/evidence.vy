# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title The evidence precompile, as contracts see it
@license Apache-2.0
@notice docs/protocol.md, section 10. Both calls revert with "evidence: <code>" if they refuse.
"""

EVIDENCE: constant(address) = 0x0000000000000000000000000000000000000f02

MAX_SIGNERS: constant(uint256) = 64
MAX_STATEMENT_BYTES: constant(uint256) = 64

CHECK_POSSESSION: constant(bytes4) = method_id("check_possession(bytes,bytes)", output_type=bytes4)
CHECK_EVIDENCE: constant(bytes4) = method_id(
    "check_evidence(bytes,(bytes32,bytes16)[],bytes,bytes,(bytes32,bytes16)[],bytes)",
    output_type=bytes4,
)


# A BLS12-381 public key in G1, compressed: 48 bytes.
struct Key:
    head: bytes32
    tail: bytes16


@pure
@internal
def _split(key: Bytes[48]) -> Key:
    assert len(key) == 48, "staking: BLS key must have 48 bytes"
    return Key(head=convert(slice(key, 0, 32), bytes32), tail=convert(slice(key, 32, 16), bytes16))


@pure
@internal
def _join(key: Key) -> Bytes[48]:
    return concat(key.head, key.tail)


@view
@internal
def _check_possession(key: Bytes[48], proof: Bytes[96]):
    """
    @notice Revert unless the owner of `key` proved that it knows the secret: a key without that
            could cancel others' keys out of an aggregate.
    """
    response: Bytes[32] = raw_call(
        EVIDENCE,
        abi_encode(key, proof, method_id=CHECK_POSSESSION),
        max_outsize=32,
        is_static_call=True,
    )
    # Where there is no precompile, a call succeeds and answers nothing.
    assert len(response) == 32, "staking: no answer from the precompile"


@view
@internal
def _check_conflict(
    first_statement: Bytes[MAX_STATEMENT_BYTES],
    first_keys: DynArray[Key, MAX_SIGNERS],
    first_signature: Bytes[96],
    second_statement: Bytes[MAX_STATEMENT_BYTES],
    second_keys: DynArray[Key, MAX_SIGNERS],
    second_signature: Bytes[96],
) -> (uint256, uint256, uint256):
    """
    @notice Revert unless all these keys signed these statements, and nobody may sign both.
    @return Offence, epoch and view.
    """
    # Not an interface call: the precompile takes the canonical encoding only.
    response: Bytes[96] = raw_call(
        EVIDENCE,
        abi_encode(
            first_statement,
            first_keys,
            first_signature,
            second_statement,
            second_keys,
            second_signature,
            method_id=CHECK_EVIDENCE,
        ),
        max_outsize=96,
        is_static_call=True,
    )
    assert len(response) == 96, "staking: no answer from the precompile"
    return abi_decode(response, (uint256, uint256, uint256))
