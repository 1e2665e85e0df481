"""The compiled contracts that genesis deploys, checked against their own hashes when loaded.

`contracts/build.py` writes `artifacts/<name>.json`; a test compiles again and compares. The hash
of an artifact is the keccak-256 of its init code: that is what genesis names and runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import cast

from eth_utils.crypto import keccak

from .errors import InvalidGenesis
from .types import Hash

ARTIFACT_NAMES = ("Registry", "Rounds", "Staking", "Tasks")

_KEYS = {
    "abi",
    "compiler",
    "init_code",
    "init_keccak",
    "name",
    "runtime_code",
    "runtime_keccak",
    "source_sha256",
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """One compiled contract.

    `hash` and `runtime_hash` are keccak-256; `source_hash` is the SHA-256 of the Vyper files;
    `abi` is the Solidity JSON ABI as compilers write it: do not change it.
    """

    name: str
    compiler: str
    source_hash: bytes
    hash: Hash
    init_code: bytes
    runtime_hash: Hash
    runtime_code: bytes
    abi: tuple[Mapping[str, object], ...]


def decode_artifact(data: bytes) -> Artifact:
    """Read one artifact document.

    Raises: InvalidGenesis("artifact_malformed") if it is not one, ("artifact_hash") if its code is
    not what its hashes say.
    """
    try:
        artifact = _read_document(json.loads(data))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidGenesis(
            "artifact_malformed", f"not an artifact ({error}); run `make artifacts`"
        ) from error
    if keccak(artifact.init_code) != artifact.hash:
        raise InvalidGenesis(
            "artifact_hash", f"{artifact.name}: init code changed; run `make artifacts`"
        )
    if keccak(artifact.runtime_code) != artifact.runtime_hash:
        raise InvalidGenesis(
            "artifact_hash", f"{artifact.name}: runtime code changed; run `make artifacts`"
        )
    return artifact


@cache
def get_artifact(name: str) -> Artifact:
    """Return the artifact of the contract `name`, as shipped with this package.

    Raises: InvalidGenesis("artifact_unknown") if there is none of that name.
    """
    if name not in ARTIFACT_NAMES:
        raise InvalidGenesis(
            "artifact_unknown", f"no contract {name!r}; there are {', '.join(ARTIFACT_NAMES)}"
        )
    artifact = decode_artifact(
        files(__package__).joinpath("artifacts", f"{name}.json").read_bytes()
    )
    assert artifact.name == name
    return artifact


def _read_document(document: object) -> Artifact:
    if not isinstance(document, dict) or set(document) != _KEYS:
        raise ValueError("wrong keys")
    texts = {key: value for key, value in document.items() if key != "abi"}
    if not all(isinstance(value, str) for value in texts.values()):
        raise ValueError("a value is not text")
    if not isinstance(document["abi"], list):
        raise ValueError("abi is not a list")
    return Artifact(
        name=texts["name"],
        compiler=texts["compiler"],
        source_hash=_decode_hex(texts["source_sha256"]),
        hash=Hash(_decode_hex(texts["init_keccak"])),
        init_code=_decode_hex(texts["init_code"]),
        runtime_hash=Hash(_decode_hex(texts["runtime_keccak"])),
        runtime_code=_decode_hex(texts["runtime_code"]),
        abi=tuple(cast(list[Mapping[str, object]], document["abi"])),
    )


def _decode_hex(text: str) -> bytes:
    if not text.startswith("0x"):
        raise ValueError("hex must start with 0x")
    return bytes.fromhex(text[2:])
