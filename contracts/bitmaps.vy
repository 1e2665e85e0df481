# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Sets of seats, one bit each
@license Apache-2.0
@notice Bit `i` of a bitmap says whether seat `i` is in the set; there are at most 128 seats.
"""


# Every second bit, every second pair, every second nibble, and the lowest bit of every byte.
BITS: constant(uint256) = (2**128 - 1) // 3
PAIRS: constant(uint256) = (2**128 - 1) // 5
NIBBLES: constant(uint256) = (2**128 - 1) // 17
BYTES: constant(uint256) = (2**128 - 1) // 255


@pure
@internal
def _count(bitmap: uint256) -> uint256:
    """
    @notice How many of the lowest 128 bits are set: the usual sum in parallel, in four steps.
    """
    pairs: uint256 = bitmap - ((bitmap >> 1) & BITS)
    nibbles: uint256 = (pairs & PAIRS) + ((pairs >> 2) & PAIRS)
    octets: uint256 = (nibbles + (nibbles >> 4)) & NIBBLES
    return ((octets * BYTES) >> 120) & 255


@pure
@internal
def _find_gap(bitmap: uint256) -> uint256:
    """
    @notice The lowest bit that is not set.
    """
    return self._count(((bitmap + 1) & ~bitmap) - 1)


@pure
@internal
def _has(bitmap: uint256, seat: uint256) -> bool:
    return (bitmap >> seat) & 1 == 1
