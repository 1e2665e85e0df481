"""The registry on a real node: a dataset from its owner to who asked, over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.client.errors import ClientError
from steelyard.client.registered import AccessState
from steelyard.client.registry import Registry
from steelyard.client.said import (
    has_said_attestation,
    has_said_dataset,
    has_said_identity,
    has_said_publication,
    has_said_request,
)
from steelyard.node.http import HttpServer

from .test_real_chain import FIRST, PUBLISHER, SECOND, found

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = bytes(range(256)) * 2000
"""Half a megabyte: more than one block of IPFS."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    node = found(tmp_path_factory.mktemp("validator"))
    server = HttpServer(node, "127.0.0.1", 0)
    server.start()
    node.start()
    try:
        yield server.url
    finally:
        server.stop()
        node.stop()


def open_registry(url: str, key, state: Path) -> Registry:
    return Registry(url, key, state=state, report=str, poll_seconds=0.1)


def test_a_dataset_goes_from_its_owner_to_who_asked(url: str, tmp_path: Path) -> None:
    with open_registry(url, PUBLISHER, tmp_path / "owner") as owner:
        number = owner.publish_dataset({"title": "heart"}, ROWS)
        content = owner.view.get_dataset(number).content
        with open_registry(url, FIRST, tmp_path / "reader") as reader:
            assert reader.request_access(number)
            with pytest.raises(ClientError) as caught:
                reader.fetch_dataset(number)
            assert caught.value.code == "access_waiting"
            assert has_said_request(owner.view, owner.view.get_access(number, reader.address))
            assert owner.grant_access(number, reader.address, content=encode_cid(content))
            assert reader.fetch_dataset(number, owner=owner.address) == ROWS
            assert has_said_dataset(reader.view, reader.view.get_dataset(number))
        with open_registry(url, SECOND, tmp_path / "other") as other:
            assert other.request_access(number)
            assert owner.deny_access(number, other.address)
            with pytest.raises(ClientError) as caught:
                other.fetch_dataset(number)
            assert caught.value.code == "access_denied"
        states = [access.state for access in owner.view.list_accesses(number)]
        assert states == [AccessState.GRANTED, AccessState.DENIED]
        assert content in owner.renew_dataset(number)
        assert owner.retire_dataset(number)
        assert owner.view.list_datasets(5)[0].retired_at
    with open_registry(url, FIRST, tmp_path / "a new state directory") as reader:
        assert reader.fetch_dataset(number) == ROWS


def test_words_of_the_real_contract_are_signed_by_who_said_them(url: str, tmp_path: Path) -> None:
    with open_registry(url, PUBLISHER, tmp_path / "owner") as owner:
        owner.register({"name": "Clinic"})
        assert has_said_identity(owner.view, owner.view.get_identity(owner.address))
        with open_registry(url, FIRST, tmp_path / "other") as other:
            statement = other.attest(owner.address, b"an accredited hospital")
            (made,) = owner.view.list_attestations(owner.address)
            assert made.stands
            assert has_said_attestation(owner.view, made)
            assert other.revoke(owner.address, encode_cid(statement))
            assert not owner.view.list_attestations(owner.address)[0].stands
        owner.publish_model(b"a model")
        number = owner.publish_model(b"its child", parent=compute_blob_name(b"a model"))
        child = owner.view.find_model(encode_cid(compute_blob_name(b"its child")))
        assert (child.number, child.parent) == (number, number - 1)
        assert has_said_publication(owner.view, child)
        assert [one.number for one in owner.view.get_lineage(child)] == [number - 1]
