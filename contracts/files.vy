# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Names of files that the chain does not hold
@license Apache-2.0
@notice A name is the digest of the file's CID and its size in bytes; `(0, 0)` is no file.
"""

# Metadata and statements: small documents, read whole.
MAX_DOCUMENT_BYTES: constant(uint256) = 2**20


struct Blob:
    digest: bytes32
    size: uint256


@pure
@internal
def _is_none(file: Blob) -> bool:
    return file.size == 0 and file.digest == empty(bytes32)


@pure
@internal
def _check_name(file: Blob, max_bytes: uint256):
    """
    @notice Refuse half a name, and a file that nobody would fetch.
    """
    assert (file.size == 0) == (file.digest == empty(bytes32)), "registry: malformed name"
    assert file.size <= max_bytes, "registry: file too large"


@pure
@internal
def _compute_key(file: Blob) -> bytes32:
    return keccak256(abi_encode(file.digest, file.size))
