"""A stranger's code is looked at without running it, and runs only with consent, unchanged."""

import importlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.client.bundle import encode_bundle
from steelyard.client.consents import (
    Bundle,
    approve_bundle,
    check_consent,
    fetch_bundle,
    inspect_bundle,
    is_approved,
    parse_source,
    withdraw_approval,
)
from steelyard.client.errors import ClientError

from .conftest import open_rpc
from .ledger import Ledger
from .server import serve_ledger

SOURCE = """
import os
import numpy as np
from urllib.request import urlopen
from net import build

open("RUN", "w").close()

def train(model, ctx): ...
def evaluate(model, ctx):
    import torch
    return eval("1")
"""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    (source / "net").mkdir(parents=True)
    (source / "client.py").write_text(SOURCE)
    (source / "net" / "__init__.py").write_text("def build(): ...\n")
    (source / "net" / "fast.so").write_bytes(b"\x7fELF")
    (source / "weights.bin").write_bytes(b"\xff\x00")
    named = ["net/fast.so", "weights.bin"]
    return make_bundle(encode_bundle(source, {"local_epochs": 2}, named))


def make_bundle(data: bytes) -> Bundle:
    ledger = Ledger()
    name = ledger.add_blob(data)
    return fetch_bundle(open_rpc(ledger), encode_cid(name))


def make_tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


# -- looking ---------------------------------------------------------------------------------------
def test_a_bundle_is_shown_without_running_it(bundle: Bundle, tmp_path: Path) -> None:
    found = inspect_bundle(bundle, tmp_path / "state")
    assert {part.name: part.kind for part in found.files} == {
        "client.py": "python",
        "net/__init__.py": "python",
        "net/fast.so": "compiled",
        "steelyard.json": "text",
        "weights.bin": "binary",
    }
    assert found.entries == ["client.py"]
    assert found.imports == ["numpy", "torch"]
    assert found.system == ["os", "urllib"]
    assert found.calls == ["eval", "open"]
    assert found.config == {"local_epochs": 2}
    assert found.size == bundle.name.size
    assert not found.is_approved
    assert not (tmp_path / "RUN").exists()


CALLER = b"import socket, subprocess, torch\nimport helper\ndef train(model, ctx): ...\n"


@pytest.mark.parametrize(
    ("files", "imports"),
    [
        ({"socket/README.txt": b"", "subprocess/x.csv": b""}, ["helper", "torch"]),
        ({"socket.py": b"", "subprocess/__init__.py": b"", "helper.py": b""}, ["torch"]),
        ({"torch/x.py": b"", "torch/README.txt": b"", "helper/__init__.py": b""}, ["torch"]),
    ],
)
def test_no_file_of_a_bundle_hides_what_its_code_imports(
    tmp_path: Path, files: dict[str, bytes], imports: list[str]
) -> None:
    found = inspect_bundle(make_bundle(make_tar({"client.py": CALLER, **files})), tmp_path)
    assert found.system == ["socket", "subprocess"]
    assert found.imports == imports


def test_a_module_beside_another_start_hides_nothing(tmp_path: Path) -> None:
    files = {"sub/client.py": CALLER, "torch.py": b"", "sub/helper.py": b""}
    assert inspect_bundle(make_bundle(make_tar(files)), tmp_path).imports == ["torch"]


@pytest.mark.parametrize("setting", [b"NaN", b"1e400"])
def test_settings_that_no_json_has_are_refused(tmp_path: Path, setting: bytes) -> None:
    data = make_tar({"steelyard.json": b'{"rate": ' + setting + b"}"})
    with pytest.raises(ClientError) as caught:
        inspect_bundle(make_bundle(data), tmp_path)
    assert caught.value.code == "bundle_malformed"
    with pytest.raises(ClientError) as caught:
        encode_bundle(None, {"rate": float(setting)})
    assert caught.value.code == "bundle_config"


def test_other_bytes_than_the_cid_says_are_refused(tmp_path: Path) -> None:
    ledger = Ledger()
    name = ledger.add_blob(make_tar({"client.py": b""}))
    ledger.blobs[name] = make_tar({"client.py": b"evil"})
    with pytest.raises(ClientError) as caught:
        fetch_bundle(open_rpc(ledger), encode_cid(name))
    assert caught.value.code == "blob_mismatch"


@pytest.mark.parametrize(
    "source", [b"def (", b"\0", b"(" * 100_000, b"-" * 100_000 + b"1", b"x" * (2**20 + 1), b"\xff"]
)
def test_a_file_that_is_not_python_is_passed_over(source: bytes) -> None:
    assert parse_source(source) is None


# -- consent ---------------------------------------------------------------------------------------
def test_code_runs_after_consent(bundle: Bundle, tmp_path: Path) -> None:
    state = tmp_path / "state"
    directory = approve_bundle(bundle, state)
    assert approve_bundle(bundle, state) == directory
    assert is_approved(state, bundle.cid)
    assert (directory / "client.py").read_text() == SOURCE
    (directory / "__pycache__").mkdir()
    (directory / "__pycache__" / "client.cpython-311.pyc").write_bytes(b"made by running it")
    check_consent(directory / "client.py")


def test_own_code_needs_no_consent(tmp_path: Path) -> None:
    check_consent(tmp_path / "client.py")
    check_consent(tmp_path / "bundles" / "client.py")
    check_consent(tmp_path / "bundles" / "mine" / "client.py")
    check_consent(Path("pkg.client_app:app"))


def test_without_consent_nothing_of_a_bundle_runs(bundle: Bundle, tmp_path: Path, hospital) -> None:
    directory = approve_bundle(bundle, hospital.state)
    (hospital.state / "bundles" / f"{bundle.cid}.json").unlink()
    with pytest.raises(ClientError) as caught:
        hospital.use(directory / "client.py")
    assert caught.value.code == "bundle_unapproved"
    assert not (tmp_path / "RUN").exists()


@pytest.mark.parametrize("change", ["content", "more", "less", "link"])
def test_altered_code_does_not_run(bundle: Bundle, tmp_path: Path, hospital, change: str) -> None:
    directory = approve_bundle(bundle, hospital.state)
    if change == "content":
        (directory / "net" / "__init__.py").write_text("evil")
    elif change == "more":
        (directory / "numpy.py").write_text("evil")
    else:
        (directory / "net" / "__init__.py").unlink()
    if change == "link":
        (directory / "net" / "__init__.py").symlink_to(directory / "client.py")
    with pytest.raises(ClientError) as caught:
        hospital.use(directory / "client.py")
    assert caught.value.code == "bundle_altered"
    assert not (tmp_path / "RUN").exists()
    with pytest.raises(ClientError) as caught:
        approve_bundle(bundle, hospital.state)
    assert caught.value.code == "bundle_altered", "approving again changes nothing silently"


@pytest.mark.parametrize("record", [b"", b"{}", b"[1]", b'{"files": 3}', b" " * (2**20 + 1)])
def test_a_damaged_consent_is_none(bundle: Bundle, tmp_path: Path, record: bytes) -> None:
    state = tmp_path / "state"
    directory = approve_bundle(bundle, state)
    (state / "bundles" / f"{bundle.cid}.json").write_bytes(record)
    with pytest.raises(ClientError) as caught:
        check_consent(directory / "client.py")
    assert caught.value.code == "bundle_altered"


def test_consent_can_be_withdrawn(bundle: Bundle, tmp_path: Path) -> None:
    state = tmp_path / "state"
    directory = approve_bundle(bundle, state)
    assert withdraw_approval(state, bundle.cid)
    assert not withdraw_approval(state, bundle.cid)
    assert not directory.exists()
    with pytest.raises(ClientError) as caught:
        check_consent(directory / "client.py")
    assert caught.value.code == "bundle_unapproved"


@pytest.mark.parametrize("directory", ["__pycache__", "__PyCache__", "net/__PYCACHE__"])
def test_compiled_code_that_would_run_in_place_of_its_source_is_refused(
    tmp_path: Path, directory: str
) -> None:
    cached = f"{directory}/client.cpython-311.pyc"
    bundle = make_bundle(make_tar({"client.py": b"def train(): ...\n", cached: b"evil"}))
    with pytest.raises(ClientError) as caught:
        approve_bundle(bundle, tmp_path / "state")
    assert caught.value.code == "bundle_hidden"
    assert not (tmp_path / "state").exists()


# -- commands --------------------------------------------------------------------------------------
def run(*words: object) -> tuple[int, str]:
    app = importlib.import_module("steelyard.client.commands").client
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, SteelyardError):
        raise done.exception
    return done.exit_code, done.stdout


@pytest.mark.slow
def test_the_commands_show_approve_and_withdraw(tmp_path: Path) -> None:
    ledger, state = Ledger(), tmp_path / "state"
    cid = encode_cid(
        ledger.add_blob(
            make_tar({"client.py": b"app = 1\n", "a\x1bb.pyc": b"", "\x1b.py": b"app = 1"})
        )
    )
    with serve_ledger(ledger) as url:
        options = ("--node", url, "--state", state)
        code, shown = run("inspect", cid, *options)
        assert code == 1
        assert "WARNING" in shown
        assert "\x1b" not in shown, "strangers' names are escaped"
        assert "\x1b" not in run("approve", cid, *options)[1]
        code, said = run("approve", cid, *options, "--json")
        assert (code, json.loads(said)["cid"]) == (0, cid)
        entry = Path(json.loads(said)["entries"][1])
        assert entry.read_bytes() == b"app = 1\n"
        assert run("inspect", cid, *options, "--json")[0] == 0
    assert run("withdraw", cid, "--state", state)[0] == 0
    assert run("withdraw", cid, "--state", state)[0] == 1


@pytest.mark.slow
def test_a_bundle_that_no_node_keeps_is_unknown(tmp_path: Path) -> None:
    cid = encode_cid(compute_blob_name(b"nowhere"))
    with serve_ledger(Ledger()) as url, pytest.raises(ClientError):
        run("inspect", cid, "--node", url, "--state", tmp_path)
