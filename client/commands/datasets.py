"""`steelyard registry dataset`: publish encrypted data, ask for keys, answer, fetch."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.chain.cid import encode_cid

from ..abi import Event
from ..documents import MAX_DOCUMENT_BYTES
from ..errors import ClientError
from ..ipfs import open_store
from ..keys import format_address
from ..registered import Access, AccessState, Dataset, RegistryView
from ..said import has_said_dataset, has_said_request
from ..sealing import MAX_DATA_BYTES, check_data_size
from .options import (
    KEY,
    NO,
    STATE,
    YES,
    Json,
    Key,
    Nodes,
    PasswordFile,
    State,
    check_directory,
    format_table,
    format_time,
    leave,
    new_app,
    open_nodes,
    open_registry,
    tell,
    to_json,
)
from .registryfiles import (
    MAX_NUMBER,
    Limit,
    Person,
    describe_document,
    format_document,
    read_file,
    write_private,
)

app = new_app("Publish encrypted datasets, ask for their keys, answer, fetch.")
Number = Annotated[int, typer.Argument(metavar="DATASET", min=1, max=MAX_NUMBER)]
Content = Annotated[
    str | None, typer.Option("--content", help="CID that the encrypted content must have")
]

ASK = "`steelyard registry dataset request {}`"
REFUSALS = {
    AccessState.NONE: f"you have not asked for its key; {ASK} does",
    AccessState.REQUESTED: "asked for, and not answered yet; wait for its owner",
    AccessState.DENIED: f"the owner said no; {ASK} asks again",
}


# -- looking ---------------------------------------------------------------------------------------
@app.command("list")
def list_datasets(limit: Limit = 100, node: Nodes = None, json: Json = False) -> None:
    """List datasets, the newest first."""
    found = RegistryView(open_nodes(node)).list_datasets(limit)
    rows: list[list[Any]] = [["dataset", "encrypted bytes", "state", "owner"]]
    rows += [
        [one.number, one.content.size or "-", format_state(one), format_address(one.owner)]
        for one in found
    ]
    tell(found, format_table(rows), json)
    leave(YES)


@app.command()
def show(number: Number, limit: Limit = 100, node: Nodes = None, json: Json = False) -> None:
    """Show a dataset, its description, and who has asked for its key, the last so many."""
    view = RegistryView(open_nodes(node))
    found = view.get_dataset(number)
    events = view.find_events(("DatasetPublished", "AccessRequested"), number)
    published = [event for event in events if event.name == "DatasetPublished"]
    asked = [event for event in events if event.name == "AccessRequested"]
    signed = has_said_dataset(view, found, published)
    document = describe_document(view.fetch_document(found.metadata))
    requests = [
        describe_access(view, access, event)
        for access, event in view.read_accesses(number, asked, limit)
    ]
    rows: list[list[Any]] = [
        ["owner", format_address(found.owner)],
        ["signed", "by the owner itself" if signed else "not by the owner itself"],
        ["state", format_state(found)],
        ["published", format_time(found.published_at)],
        ["content", f"{to_json(found.content) or '-'} ({found.content.size} bytes encrypted)"],
        ["metadata", to_json(found.metadata)],
        ["says", format_document(document)],
    ]
    if found.retired_at:
        rows.append(["retired", format_time(found.retired_at)])
    rows += [
        [
            one["state"],
            f"{one['requester']}{'' if one['signed'] else ' (did not sign the request itself)'}",
        ]
        for one in requests
    ]
    more = {"document": document, "signed": signed, "requests": requests}
    tell({**to_json(found), **more}, format_table(rows), json)
    leave(YES)


def describe_access(view: RegistryView, access: Access, event: Event) -> dict[str, Any]:
    """Return a request, its answer, and whether the requester signed it, by its event."""
    described: dict[str, Any] = to_json(access)
    return {**described, "signed": has_said_request(view, access, [event])}


def format_state(dataset: Dataset) -> str:
    """Return whether a dataset can be asked for."""
    if dataset.retired_at:
        return "retired"
    return "offered" if dataset.content.size else "described only"


# -- the owner -------------------------------------------------------------------------------------
@app.command()
def publish(
    metadata: Annotated[
        Path, typer.Option("--metadata", help="JSON file, public: what the data is")
    ],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="the data; it leaves encrypted")
    ] = None,
    reference: Annotated[
        str, typer.Option("--reference", help="any word: publish the same anew, under a new key")
    ] = "",
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Encrypt a file and publish it; without a file, publish a description alone."""
    document = read_file(metadata, MAX_DOCUMENT_BYTES)
    data = None if file is None else read_data(file)
    with open_registry(node, key, password_file, state) as registry:
        number = registry.publish_dataset(document, data, reference=reference)
        found = registry.view.get_dataset(number)
        content = encode_cid(found.content) if found.content.size else "a description alone"
        tell(found, f"dataset {number}: {content}", json)
    leave(YES)


def read_data(path: Path) -> bytes:
    """Return the data of a dataset. Raises InvalidSeal `dataset_size`, ClientError."""
    try:
        check_data_size(path.stat().st_size)
    except OSError as error:
        raise ClientError("document_file", f"cannot read {path}: {error}") from None
    return read_file(path, MAX_DATA_BYTES)


@app.command()
def grant(
    number: Number,
    person: Person,
    content: Content = None,
    public_key: Annotated[
        str | None,
        typer.Option("--public-key", help="0x…, as its owner told you; for requests by contracts"),
    ] = None,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Give an account the key it asked for. It cannot be taken back."""
    expected = None if public_key is None else parse_public_key(public_key)
    with open_registry(node, key, password_file, state) as registry:
        sent = registry.grant_access(number, person, public_key=expected, content=content)
    text = f"granted dataset {number} to {person}" if sent else f"{person} has it already"
    tell({"dataset": number, "requester": person, "granted": True, "sent": sent}, text, json)
    leave(YES)


def parse_public_key(text: str) -> bytes:
    """Return a public key in hexadecimal. Raises ClientError `request_key`."""
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise ClientError("request_key", f"{text!r:.80} is not hexadecimal") from None


@app.command()
def deny(
    number: Number,
    person: Person,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Answer a request with no; the account may ask again. 1: it was denied already."""
    with open_registry(node, key, password_file, state) as registry:
        sent = registry.deny_access(number, person)
    text = f"denied dataset {number} to {person}" if sent else f"{person} was denied already"
    tell({"dataset": number, "requester": person, "denied": True, "sent": sent}, text, json)
    leave(YES if sent else NO)


@app.command()
def retire(
    number: Number,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Take no more requests and give no more keys. 1: it was retired already."""
    with open_registry(node, key, password_file, state) as registry:
        sent = registry.retire_dataset(number)
    text = f"retired dataset {number}" if sent else f"dataset {number} was retired already"
    tell({"dataset": number, "retired": True, "sent": sent}, text, json)
    leave(YES if sent else NO)


@app.command()
def renew(
    number: Number,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Put a dataset's files on the chain's nodes again, before or after they dropped them."""
    with open_registry(node, key, password_file, state) as registry:
        names = registry.renew_dataset(number)
    tell({"dataset": number, "files": names}, "\n".join(map(encode_cid, names)), json)
    leave(YES)


# -- the requester ---------------------------------------------------------------------------------
@app.command()
def request(
    number: Number,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Ask the owner for a dataset's key. The private half follows from your account's key."""
    with open_registry(node, key, password_file, state) as registry:
        sent = registry.request_access(number)
        access = registry.view.get_access(number, registry.address)
    text = f"asked for dataset {number}" if sent else f"dataset {number}: {access.state.name}"
    tell({**to_json(access), "sent": sent}, text.lower(), json)
    leave(YES)


@app.command()
def fetch(
    number: Number,
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write, decrypted")],
    force: Annotated[bool, typer.Option("--force", help="write over a file")] = False,
    owner: Annotated[str | None, typer.Option("--owner", help="account it must be of")] = None,
    content: Content = None,
    daemon: Annotated[
        str | None, typer.Option("--ipfs", help="multiaddr of a daemon that may have the content")
    ] = None,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Fetch a dataset, decrypt it and write it. 1: not granted (yet)."""
    if check_directory(output).exists() and not force:
        raise ClientError("file_exists", f"{output} is there already; --force writes over it")
    with open_registry(node, key, password_file, state) as registry:
        found = registry.view.get_dataset(number)
        access = registry.view.get_access(number, registry.address)
        if found.owner != registry.address and access.state is not AccessState.GRANTED:
            tell(
                {"dataset": number, "state": access.state},
                f"dataset {number}: {REFUSALS[access.state].format(number)}",
                json,
            )
            leave(NO)
        store = None if daemon is None else open_store(state / "ipfs", daemon)
        data = registry.fetch_dataset(number, owner=owner, content=content, store=store)
    path = write_private(output, data)
    document = {"dataset": number, "owner": found.owner, "path": path, "bytes": len(data)}
    tell(document, f"{len(data)} bytes of {format_address(found.owner)}: {path}", json)
    leave(YES)
