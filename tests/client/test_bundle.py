"""Bundles: one directory, one CID; hostile archives are refused and nothing is run."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from steelyard.client import bundle
from steelyard.client.bundle import decode_bundle, encode_bundle, read_config, unpack_bundle
from steelyard.client.commands.taskfiles import format_draft
from steelyard.client.errors import ClientError, InvalidTask
from steelyard.client.keys import create_key

from .conftest import make_task


def write_tree(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    (root / "client.py").write_text("print('hello')\n")
    (root / "sub" / "data.txt").write_text("x")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "client.pyc").write_bytes(b"junk")
    return root


def test_the_same_files_give_the_same_bytes_whenever_and_wherever(tmp_path: Path) -> None:
    one, two = write_tree(tmp_path / "one"), write_tree(tmp_path / "two")
    os.utime(two / "client.py", (1, 1))
    os.chmod(two / "client.py", 0o777)
    assert encode_bundle(one, {}) == encode_bundle(two, {})


def test_a_bundle_comes_back_as_it_went_in(tmp_path: Path) -> None:
    files = decode_bundle(encode_bundle(write_tree(tmp_path / "in"), {"local_epochs": 2}))
    assert sorted(files) == ["client.py", "steelyard.json", "sub/data.txt"]
    assert read_config(files) == {"local_epochs": 2}
    unpack_bundle(files, tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "data.txt").read_text() == "x"
    with pytest.raises(ClientError) as caught:
        unpack_bundle(files, tmp_path / "out")
    assert caught.value.code == "bundle_exists"


def test_a_bundle_without_settings_has_none() -> None:
    assert read_config(decode_bundle(encode_bundle(None, {}))) == {}


def make_tar(**fields: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("good")
        for name, value in fields.items():
            setattr(entry, name, value)
        archive.addfile(entry, io.BytesIO(b""))
    return stream.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../escape"},
        {"name": "/etc/passwd"},
        {"name": "a//b"},
        {"name": "./a"},
        {"name": "a\\b"},
        {"name": "C:evil"},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "good"},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
    ],
)
def test_hostile_entries_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ClientError) as caught:
        decode_bundle(make_tar(**fields))
    assert caught.value.code == "bundle_malformed"


@pytest.mark.parametrize("data", [b"not a tar" * 100, b"\x1f\x8b" + bytes(600), b"PK\x03\x04"])
def test_other_archives_are_refused(data: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        decode_bundle(data)
    assert caught.value.code == "bundle_malformed"


@pytest.mark.parametrize(
    "text", [b"[]", b"{", b'{"a": {}}', b'{"a": [1]}', b"\xff", b"[" * 5000, b" " * 70_000]
)
def test_hostile_settings_are_refused(text: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        read_config({"steelyard.json": text})
    assert caught.value.code == "bundle_malformed"


def test_links_size_and_double_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "in")
    (root / "link").symlink_to("client.py")
    with pytest.raises(InvalidTask) as caught:
        encode_bundle(root, {})
    assert caught.value.code == "bundle_link"
    (root / "link").unlink()
    (root / "steelyard.json").write_text("{}")
    with pytest.raises(InvalidTask) as caught:
        encode_bundle(root, {"a": 1})
    assert caught.value.code == "bundle_config"
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", 10)
    with pytest.raises(InvalidTask) as caught:
        encode_bundle(root, {})
    assert caught.value.code == "bundle_too_large"
    with pytest.raises(InvalidTask) as caught:
        encode_bundle(tmp_path / "none", {})
    assert caught.value.code == "bundle_missing"


@pytest.mark.slow
def test_a_key_file_never_gets_into_a_bundle(tmp_path: Path) -> None:
    """Bundles are public for ever; `steelyard keys new` writes where projects are."""
    create_key(tmp_path / "site.json", "password", b"\x01" * 32, scrypt_n=2**12)
    with pytest.raises(InvalidTask, match="bundle_key"):
        encode_bundle(tmp_path, {})
    (tmp_path / "site.json").rename(tmp_path / "site.key")
    with pytest.raises(InvalidTask, match="bundle_key"):
        encode_bundle(tmp_path, {}, ["site.key"])


def write_project(root: Path) -> Path:
    """What lies beside a client, as a new user had it."""
    for name in ("client.py", ".env", "patients.csv", "model.npz", "LICENSE", ".git/config"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


def test_data_beside_a_program_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask) as caught:
        encode_bundle(write_project(tmp_path), {})
    assert caught.value.code == "bundle_data"
    assert "no program text: model.npz (1 bytes), patients.csv (1 bytes). " in caught.value.message
    assert 'bundle_include = ["model.npz"]' in caught.value.message


@pytest.mark.parametrize(
    "name",
    ["a.CSV", "a.pt", "a.safetensors", "a.parquet", "a.db", "a.sqlite", "a.key", "a.pem", "rows"],
)
def test_no_kind_of_data_goes_in_by_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(InvalidTask, match="bundle_data"):
        encode_bundle(tmp_path, {})


def test_what_is_named_goes_in_and_hidden_files_never(tmp_path: Path) -> None:
    root = write_project(tmp_path)
    files = decode_bundle(encode_bundle(root, {}, ["model.npz", "patients.csv"]))
    assert sorted(files) == ["LICENSE", "client.py", "model.npz", "patients.csv"]
    for wrong in ([".env"], ["absent.npz"], "model.npz", [1]):
        with pytest.raises(InvalidTask) as caught:
            encode_bundle(root, {}, wrong)
        assert caught.value.code == "bundle_include"
    with pytest.raises(InvalidTask, match="bundle_include"):
        encode_bundle(None, {}, ["model.npz"])


def test_a_screenful_of_data_is_named_in_part(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}.npy").write_text("x")
    with pytest.raises(InvalidTask, match=r"09.npy \(1 bytes\) and 15 more\."):
        encode_bundle(tmp_path, {})


def test_a_publisher_sees_what_becomes_public_before_it_is_sent(
    ledger, organisation, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "client.py").write_text("x = 1\n")
    told: list[str] = []
    organisation.report = lambda line: told.append(f"{len(ledger.seen)} {line}")
    task = make_task(bundle=tmp_path / "code")
    assert " bytes, public for ever:\n" in format_draft(organisation.check(task))
    assert "                client.py, 6 bytes\n" in format_draft(organisation.check(task))
    organisation.publish(task)
    assert any(
        line.startswith("0 public for ever, in the bundle: client.py (6 bytes), steelyard.json (")
        for line in told
    )


def test_a_name_that_tar_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / ("x" * 150 + ".py")).write_text("")
    with pytest.raises(InvalidTask, match="bundle_name"):
        encode_bundle(tmp_path, {})


@pytest.mark.parametrize("name", [b"a:b.py", b"a\\b.py", b"caf\xe9.py"])
def test_a_name_that_no_participant_could_unpack_is_refused(tmp_path: Path, name: bytes) -> None:
    """Nobody could join the task: its reward would lie still for the whole lobby."""
    (tmp_path / os.fsdecode(name)).write_text("")
    with pytest.raises(InvalidTask, match="bundle_name"):
        encode_bundle(tmp_path, {})


def test_settings_that_no_participant_would_read_are_refused() -> None:
    most = bundle.MAX_CONFIG_BYTES - len('{\n "a": ""\n}\n')
    assert read_config(decode_bundle(encode_bundle(None, {"a": "x" * most})))
    with pytest.raises(InvalidTask, match="bundle_config"):
        encode_bundle(None, {"a": "x" * (most + 1)})


def test_a_file_below_a_file_is_refused() -> None:
    """Unpacking it would end in the middle."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("a", "a/b"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ClientError, match="below another file"):
        decode_bundle(stream.getvalue())
