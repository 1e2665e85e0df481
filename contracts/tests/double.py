"""A stand-in for the precompile: open updates of one exponent, the plain mean, no scores."""

import hashlib

import numpy as np
from eth_abi import decode, encode
from eth_utils import keccak

from steelyard.chain.errors import InvalidAggregation, InvalidUpdate
from steelyard.chain.model import decode_model, encode_model
from steelyard.chain.shares import compute_shares
from steelyard.chain.types import BlobName
from steelyard.chain.update import Binding, check_binding, decode_update

BLOB, RULE = "(bytes32,uint256)", "(uint8,uint256)"
CALLS = {
    "verify": [BLOB, "uint256", "uint256", BLOB, "address", "uint256"],
    "aggregate": [RULE, BLOB, BLOB + "[]", "uint256[]"],
    "info": [BLOB],
    "check_model": [BLOB],
    "quote": [RULE, BLOB, "uint256", "uint256"],
}


def call(host, data):
    for name, types in CALLS.items():
        if data[:4] == keccak(text=f"{name}({','.join(types)})")[:4]:
            host.consume_gas(3_000, name)
            return globals()[name](host, *decode(types, data[4:]))
    raise InvalidAggregation("call_unknown", "no such call")


def get_admission(host, name):
    admission = host.get_admission(name)
    if admission is None:
        raise InvalidAggregation("blob_unknown", "nobody declared it")
    return admission


def read(host, blob):
    name = BlobName(*blob)
    if get_admission(host, name).expires_at < host.timestamp:
        raise InvalidAggregation("blob_expired", "declare it again")
    return bytes(host.read_blob(name))


def info(host, blob):
    admission = get_admission(host, BlobName(*blob))
    return encode(["uint256"] * 3, [blob[1], admission.height, admission.expires_at])


def check_model(host, blob):
    manifest = decode_model(read(host, blob)).manifest
    return encode(["uint256"] * 2, [manifest.parameters, manifest.update_values])


def quote(host, rule, blob, updates, bits):
    decode_model(read(host, blob))
    return encode(["uint256"], [28_000 + 5_000 * updates])


def verify(host, blob, task, round, base, sender, max_norm2):
    update = decode_update(read(host, blob))
    maker = bytes.fromhex(sender[2:])
    check_binding(update.header, Binding(host.chain_id, task, round, BlobName(*base), maker))
    norm2 = sum((int(value) << 4) ** 2 for value in update.values)
    if norm2 > max_norm2:
        raise InvalidUpdate("update_norm", "too large")
    return encode(["uint256"], [norm2])


def aggregate(host, rule, base, updates, weights):
    model = decode_model(read(host, base))
    shares = compute_shares([BlobName(*update) for update in updates], weights)
    total = np.zeros(model.values.size, np.int64)
    for share, update in zip(shares, updates, strict=True):
        total += share * (decode_update(read(host, update)).values.astype(np.int64) << 4)
    made = encode_model(model.manifest, (model.values + (total >> 20)).astype(np.int32))
    host.consume_gas(25_000 + 5_000 * len(updates), "aggregate")
    name = BlobName(hashlib.sha256(made).digest(), len(made))
    host.write_blob(name, made)
    none = [0] * len(updates)
    return encode(
        [BLOB, "uint256[]", "int256[]", "uint256[]", "uint256"],
        [(name.digest, name.size), shares, none, none, 0],
    )
