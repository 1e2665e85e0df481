"""What kernels share: payloads by address, and how a kernel is compiled.

Payloads stay where they are: a kernel gets a table of their addresses. The caller keeps the buffers
alive, and has checked lengths and exponents before a kernel reads or shifts anything.

Numba keeps a compiled kernel as long as the kernel's own file has the time and size it had, and
looks at no other, nor at the numbers that a kernel takes from elsewhere: whoever changes this file,
or a constant of `params.py`, must touch `kernels.py` and `robust_kernels.py` as well. An installed
release is safe from that, because installing gives every file a new time.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# The types of kernels are their numba signatures, which say more than annotations could.

import ctypes
from typing import Final

import numpy as np
from numba import carray, config, njit, types
from numba.extending import intrinsic

INT8: Final = np.int8(0)
INT16: Final = np.int16(0)
"""Values that stand for their type: a function is compiled for each."""

if config.DISABLE_JIT:

    def view(address, length, kind):
        """Return the `length` values of `kind` at an address."""
        memory = (ctypes.c_char * (int(length) * kind.itemsize)).from_address(int(address))
        return np.frombuffer(memory, kind.dtype)

else:

    @intrinsic
    def _pointer(_context, _address, kind):
        """Make a typed pointer of an address."""

        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.uint64, kind), generate

    @njit(nogil=True)
    def view(address, length, kind):
        """Return the `length` values of `kind` at an address."""
        return carray(_pointer(address, kind), (length,))


def kernel(signature):
    """Compile a kernel now, and keep it beside this file for the next start if that can be.

    A cache on a full or read-only disk, or one that a power cut left half written, must not stop a
    node: without it a start takes some seconds more. A kernel that does not compile raises again.
    """

    def compile_kernel(function):
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except Exception:
            return njit(signature, nogil=True)(function)

    return compile_kernel


I64: Final = types.Array(types.int64, 1, "C", readonly=True)
I32: Final = types.Array(types.int32, 1, "C", readonly=True)
BOOL: Final = types.Array(types.boolean, 1, "C", readonly=True)
U64: Final = types.Array(types.uint64, 1, "C", readonly=True)
I8_TABLE: Final = types.Array(types.int8, 2, "C", readonly=True)
I64_TABLE: Final = types.Array(types.int64, 2, "C", readonly=True)
OUT_I64: Final = types.Array(types.int64, 1, "C")
OUT_I32: Final = types.Array(types.int32, 1, "C")
OUT_I64_TABLE: Final = types.Array(types.int64, 2, "C")
OUT_I64_CUBE: Final = types.Array(types.int64, 3, "C")
# update_start, model_start, length, fraction_bits: see model.Layout.
LAYOUT: Final = types.UniTuple(I64, 4)
# addresses, how many of them hold int8 (these come first; the rest hold int16), exponents.
PAYLOADS: Final = (U64, types.int64, I8_TABLE)
