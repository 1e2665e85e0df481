"""temporary double"""

import hashlib

import numpy as np
from eth_abi import decode, encode
from eth_utils import keccak

from steelyard.chain.errors import InvalidAggregation, InvalidUpdate
from steelyard.chain.model import decode_model, encode_model
from steelyard.chain.shares import compute_shares
from steelyard.chain.types import BlobName
from steelyard.chain.update import Binding, check_binding, decode_update

B = "(bytes32,uint256)"
R = "(uint8,uint256)"
SIGS = {
    "verify": [B, "uint256", "uint256", B, "address", "uint256"],
    "aggregate": [R, B, B + "[]", "uint256[]"],
    "info": [B],
    "check_model": [B],
    "quote": [R, B, "uint256", "uint256"],
}
SEL = {keccak(text=f"{n}({','.join(t)})")[:4]: n for n, t in SIGS.items()}


def read(host, b):
    name = BlobName(*b)
    a = host.get_admission(name)
    if a is None:
        raise InvalidAggregation("blob_unknown", "")
    if a.expires_at < host.timestamp:
        raise InvalidAggregation("blob_expired", "")
    return bytes(host.read_blob(name))


def call(host, data):
    n = SEL[data[:4]]
    args = decode(SIGS[n], data[4:])
    host.consume_gas(3000, "x")
    if n == "info":
        a = host.get_admission(BlobName(*args[0]))
        if a is None:
            raise InvalidAggregation("blob_unknown", "")
        return encode(["uint256"] * 3, [args[0][1], a.height, a.expires_at])
    if n == "check_model":
        m = decode_model(read(host, args[0]))
        return encode(["uint256"] * 2, [m.manifest.parameters, m.manifest.update_values])
    if n == "quote":
        m = decode_model(read(host, args[1]))
        return encode(
            ["uint256"], [3000 + 5000 * args[2] + m.manifest.update_values * args[2] // 32]
        )
    if n == "verify":
        u = decode_update(read(host, args[0]))
        check_binding(
            u.header,
            Binding(
                host.chain_id, args[1], args[2], BlobName(*args[3]), bytes.fromhex(args[4][2:])
            ),
        )
        norm2 = sum((int(q) << 4) ** 2 for q in u.values)
        if norm2 > args[5]:
            raise InvalidUpdate("update_norm", "")
        return encode(["uint256"], [norm2])
    if n == "aggregate":
        rule, base, ups, weights = args
        m = decode_model(read(host, base))
        names = [BlobName(*u) for u in ups]
        shares = compute_shares(names, weights)
        total = np.zeros(m.values.size, np.int64)
        for s, u in zip(shares, ups):
            total += s * (decode_update(read(host, u)).values.astype(np.int64) << 4)
        out = encode_model(m.manifest, (m.values + (total >> 20)).astype(np.int32))
        host.consume_gas(25000 + 5000 * len(ups), "x")
        name = BlobName(hashlib.sha256(out).digest(), len(out))
        host.write_blob(name, out)
        k = len(ups)
        return encode(
            [B, "uint256[]", "int256[]", "uint256[]", "uint256"],
            [(name.digest, name.size), shares, [0] * k, [0] * k, 0],
        )
