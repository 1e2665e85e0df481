"""`steelyard registry`: identities, statements about others, models and where they come from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.chain.cid import encode_cid
from steelyard.chain.params import MAX_BLOB_BYTES
from steelyard.chain.types import BlobName

from ..abi import Event
from ..documents import MAX_DOCUMENT_BYTES
from ..errors import ClientError
from ..keys import format_address
from ..records import NO_BLOB
from ..registered import Attestation, Publication, RegistryView, parse_account
from ..said import has_said_attestation, has_said_identity, has_said_publication
from .datasets import app as datasets
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
    MetadataFile,
    Person,
    describe_document,
    format_document,
    read_file,
)

app = new_app("Say who you are, vouch for others, publish models and encrypted datasets.")
identities = new_app("Name the file that describes an account.")
models = new_app("Publish models with their origin, and follow where they come from.")
app.add_typer(identities, name="identity")
app.add_typer(models, name="model")
app.add_typer(datasets, name="dataset")

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="a CID, or a publication's number")]


# -- identities ------------------------------------------------------------------------------------
@identities.command()
def register(
    metadata: Annotated[
        Path | None, typer.Option("--metadata", help="JSON file, public: who this account is")
    ] = None,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Register this account with a file that describes it; without one, take the file away."""
    data = None if metadata is None else read_file(metadata, MAX_DOCUMENT_BYTES)
    with open_registry(node, key, password_file, state) as registry:
        sent = registry.register(data) is not None
        text = "registered" if sent else "registered already, and the file is served"
        tell({"account": registry.address, "sent": sent}, text, json)
    leave(YES)


@identities.command("show")
def show_identity(person: Person, node: Nodes = None, json: Json = False) -> None:
    """Show what an account says it is. 1: it never registered."""
    view = RegistryView(open_nodes(node))
    found = view.get_identity(parse_account(person))
    if not found.registered_at:
        tell({**to_json(found), "signed": False}, f"{person} never registered", json)
        leave(NO)
    document = describe_document(view.fetch_document(found.metadata))
    signed = has_said_identity(view, found)
    rows: list[list[Any]] = [
        ["account", format_address(found.account)],
        ["registered", format_time(found.registered_at)],
        ["updated", format_time(found.updated_at)],
        ["signed", "by the account itself" if signed else "not by the account itself"],
        ["metadata", to_json(found.metadata)],
        ["says", format_document(document) if found.metadata.size else "nothing"],
    ]
    tell({**to_json(found), "document": document, "signed": signed}, format_table(rows), json)
    leave(YES)


# -- statements about others -----------------------------------------------------------------------
@app.command()
def attest(
    subject: Person,
    statement: Annotated[Path, typer.Argument(metavar="FILE", help="text or JSON, public")],
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """State publicly what a file says about another account. Prints the CID, which revokes it."""
    data = read_file(statement, MAX_DOCUMENT_BYTES)
    with open_registry(node, key, password_file, state) as registry:
        cid = encode_cid(registry.attest(subject, data))
        tell({"subject": subject, "statement": cid}, cid, json)
    leave(YES)


@app.command()
def revoke(
    subject: Person,
    cid: Annotated[str, typer.Argument(metavar="CID", help="of the statement")],
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Take a statement back; that it was made stays readable. 1: it does not stand."""
    with open_registry(node, key, password_file, state) as registry:
        done = registry.revoke(subject, cid)
    text = f"revoked {cid}" if done else f"{cid} does not stand"
    tell({"subject": subject, "statement": cid, "revoked": done}, text, json)
    leave(YES if done else NO)


@app.command()
def attestations(
    subject: Person,
    issuer: Annotated[str | None, typer.Option("--issuer", help="whose word counts")] = None,
    limit: Limit = 100,
    node: Nodes = None,
    json: Json = False,
) -> None:
    """List what others have stated about an account; anybody can. 1: nothing stands."""
    view = RegistryView(open_nodes(node))
    who = None if issuer is None else parse_account(issuer)
    found = view.find_attestations(parse_account(subject), who, limit)
    documents = [describe_attestation(view, one, event) for one, event in found]
    rows: list[list[Any]] = [["issuer", "stands", "signed", "statement", "says"]]
    rows += [
        [
            one["issuer"],
            one["stands"],
            one["signed"],
            one["statement"],
            format_document(one["document"]),
        ]
        for one in documents
    ]
    tell(documents, format_table(rows), json)
    leave(YES if any(one.stands for one, _ in found) else NO)


def describe_attestation(view: RegistryView, found: Attestation, event: Event) -> dict[str, Any]:
    """Return a statement with what it says and whether its issuer signed it, by its event."""
    return {
        **to_json(found),
        "stands": found.stands,
        "signed": has_said_attestation(view, found, [event]),
        "document": describe_document(view.fetch_document(found.statement)),
    }


# -- models ----------------------------------------------------------------------------------------
@models.command("publish")
def publish_model(
    file: Annotated[Path | None, typer.Option("--file", help="else what the round made")] = None,
    task: Annotated[int, typer.Option("--task", min=0, max=MAX_NUMBER, help="that made it")] = 0,
    number: Annotated[int, typer.Option("--round", min=0, max=MAX_NUMBER, help="that made it")] = 0,
    parent: Annotated[
        str | None, typer.Option("--parent", help="published model it comes from: CID or number")
    ] = None,
    metadata: MetadataFile = None,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Publish a model, once: a file, or what a round of a task has made. The origin is checked."""
    if bool(task) != bool(number):
        raise ClientError("model_origin", "give both --task and --round, or neither")
    if file is None and not task:
        raise ClientError("model_origin", "give --file FILE, or --task TASK and --round ROUND")
    data = None if file is None else read_file(file, MAX_BLOB_BYTES)
    described = None if metadata is None else read_file(metadata, MAX_DOCUMENT_BYTES)
    with open_registry(node, key, password_file, state) as registry:
        ancestor = NO_BLOB if parent is None else registry.view.find_model(parent).model
        found = registry.view.get_publication(
            registry.publish_model(
                data, task=task, round_number=number, parent=ancestor, metadata=described
            )
        )
        text = f"publication {found.number}: {encode_cid(found.model)}"
        tell(found, text, json)
    leave(YES)


@models.command("show")
def show_model(model: ModelName, node: Nodes = None, json: Json = False) -> None:
    """Show a published model, who published it, and its line of parents."""
    view = RegistryView(open_nodes(node))
    found = view.find_model(model)
    line, signed = view.get_lineage(found), has_said_publication(view, found)
    document = describe_document(view.fetch_document(found.metadata))
    rows: list[list[Any]] = [
        ["publication", found.number],
        ["model", to_json(found.model)],
        ["publisher", format_address(found.publisher)],
        ["signed", "by the publisher itself" if signed else "not by the publisher itself"],
        ["published", format_time(found.published_at)],
        ["made by", format_origin(found)],
        ["metadata", to_json(found.metadata)],
        ["says", format_document(document) if found.metadata.size else "nothing"],
    ]
    rows += [["parent", f"{one.number}: {encode_cid(one.model)}"] for one in line]
    more = {"document": document, "signed": signed, "lineage": to_json(line)}
    tell({**to_json(found), **more}, format_table(rows), json)
    leave(YES)


@models.command("list")
def list_models(limit: Limit = 100, node: Nodes = None, json: Json = False) -> None:
    """List published models, the newest first."""
    found = RegistryView(open_nodes(node)).list_publications(limit)
    rows: list[list[Any]] = [["number", "model", "made by", "parent", "publisher"]]
    rows += [
        [
            one.number,
            format_name(one.model),
            format_origin(one),
            one.parent or None,
            format_address(one.publisher),
        ]
        for one in found
    ]
    tell(found, format_table(rows), json)
    leave(YES)


def format_origin(found: Publication) -> str:
    """Return which round made a model."""
    return f"task {found.task}, round {found.round}" if found.task else "not said"


def format_name(name: BlobName) -> str:
    """Return a file's CID, or a dash."""
    return encode_cid(name) if name.size else "-"
