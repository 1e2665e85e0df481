"""The committed contracts are what the sources compile to, and are checked when loaded."""

import json
import runpy
from importlib.resources import files
from pathlib import Path

import pytest

from steelyard.chain.artifacts import ARTIFACT_NAMES, decode_artifact, get_artifact
from steelyard.chain.errors import InvalidGenesis

REPOSITORY = Path(__file__).resolve().parents[2]


def read_document(name: str) -> bytes:
    return (files("steelyard.chain") / "artifacts" / f"{name}.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ARTIFACT_NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_sources_compile_to_the_committed_artifact(name: str) -> None:
    build = runpy.run_path(str(REPOSITORY / "contracts" / "build.py"))
    assert build["build_artifact"](name).encode() == read_document(name)


@pytest.mark.parametrize("name", ARTIFACT_NAMES)
def test_an_artifact_names_its_contract_and_fits_eip_170(name: str) -> None:
    artifact = get_artifact(name)
    assert artifact.name == name
    assert artifact.compiler.startswith("vyper 0.4.3")
    assert len(artifact.runtime_code) <= 24_576 - 512
    assert artifact.runtime_code in artifact.init_code
    assert {"function", "event"} <= {entry["type"] for entry in artifact.abi}


@pytest.mark.parametrize("field", ["init_code", "runtime_code"])
def test_changed_code_is_refused(field: str) -> None:
    document = json.loads(read_document("Tasks"))
    last = document[field][-1]
    document[field] = document[field][:-1] + ("0" if last != "0" else "1")
    with pytest.raises(InvalidGenesis) as failure:
        decode_artifact(json.dumps(document).encode())
    assert failure.value.code == "artifact_hash"


@pytest.mark.parametrize(
    "change",
    [
        {"extra": "0x"},
        {"abi": {}},
        {"name": 7},
        {"init_code": "6000"},
        {"runtime_keccak": "0xzz"},
    ],
)
def test_a_document_of_another_shape_is_refused(change: dict[str, object]) -> None:
    document = json.loads(read_document("Tasks")) | change
    with pytest.raises(InvalidGenesis) as failure:
        decode_artifact(json.dumps(document).encode())
    assert failure.value.code == "artifact_malformed"


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{}", b"[" * 100_000])
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidGenesis) as failure:
        decode_artifact(data)
    assert failure.value.code == "artifact_malformed"


def test_an_unknown_contract_is_refused() -> None:
    with pytest.raises(InvalidGenesis) as failure:
        get_artifact("../secrets")
    assert failure.value.code == "artifact_unknown"
