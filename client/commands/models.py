"""`steelyard model`: fetch, save, evaluate and export models."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.errors import InvalidModel
from steelyard.chain.model import decode_model
from steelyard.chain.params import MAX_BLOB_BYTES
from steelyard.chain.types import Address

from ..errors import ClientError
from ..ipfs import open_store
from ..loading import call_own, format_arrays, load_app, read_rows
from ..metrics import format_metrics, read_metrics
from ..published import PublishedModel
from ..rpc import Rpc
from ..training import Context, Result
from .options import (
    STATE,
    YES,
    Json,
    Nodes,
    State,
    check_directory,
    leave,
    new_app,
    open_nodes,
    tell,
)

app = new_app("Fetch, save, evaluate and export models.")
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="a CID, or a chain model file")]
AppFile = Annotated[Path, typer.Option("--app", help="your Python file with evaluate and predict")]


@app.command()
def get(
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write")],
    exact: Annotated[bool, typer.Option("--exact", help="the chain's own integers")] = False,
    node: Nodes = None,
    json: Json = False,
) -> None:
    """Fetch a model by its CID, check it and save it as safetensors."""
    check_directory(output)
    found = find_model(model, open_nodes(node))
    path = found.save_exact(output) if exact else found.save(output)
    tell({"path": path, "cid": found.cid}, f"{found.cid}  {path}", json)
    leave(YES)


@app.command()
def show(model: ModelName, node: Nodes = None, json: Json = False) -> None:
    """Show a model's tensors."""
    found = find_model(model, open_nodes(node))
    document = {"cid": found.cid, "tensors": list(found.decoded.manifest.tensors)}
    tell(document, f"{found.cid}\n{format_arrays(found.arrays)}", json)
    leave(YES)


@app.command("eval")
def evaluate(
    model: ModelName, app_file: AppFile = Path("client.py"), node: Nodes = None, json: Json = False
) -> None:
    """Evaluate a model with your own function on your own data."""
    found = find_model(model, open_nodes(node))
    function = load_app(app_file).evaluate
    if function is None:
        raise ClientError("app_empty", f"{app_file} has no function `evaluate`")
    context = Context(0, 0, 0, {}, Address(bytes(20)))
    result = call_own(app_file, function, found.arrays, context)
    if not isinstance(result, Result):
        kind = type(result).__name__
        told = f"`evaluate` in {app_file} returned {kind}; return Result(samples=…, metrics=…)"
        raise ClientError("app_failed", told)
    metrics = read_metrics(result.metrics)
    samples = call_own(app_file, int, result.samples)  # numpy's are no JSON
    document = {"cid": found.cid, "samples": samples, "metrics": metrics}
    text = f"{samples} samples{format_metrics(metrics)}"
    tell(document, text, json)
    leave(YES)


@app.command()
def predict(
    model: ModelName,
    rows: Annotated[Path, typer.Option("--rows", help="your rows: .npy or numeric .csv")],
    app_file: AppFile = Path("client.py"),
    node: Nodes = None,
    json: Json = False,
) -> None:
    """Predict your own rows with your own function `predict(model, rows)`; nothing is sent."""
    found = find_model(model, open_nodes(node))
    function = load_app(app_file).predict
    if function is None:
        raise ClientError("app_empty", f"{app_file} has no function `predict`")
    predicted = call_own(app_file, function, found.arrays, read_rows(rows))
    values = call_own(app_file, np.asarray, predicted).tolist()
    lines = [str(value) for value in values] if isinstance(values, list) else [str(values)]
    tell({"cid": found.cid, "predictions": values}, "\n".join(lines), json)
    leave(YES)


@app.command()
def export(
    model: ModelName,
    node: Nodes = None,
    state: State = STATE,
    daemon: Annotated[
        str | None, typer.Option("--ipfs", help="multiaddr of a daemon; else the embedded store")
    ] = None,
    json: Json = False,
) -> None:
    """Add a model to IPFS under the CID that it has on chain."""
    found = find_model(model, open_nodes(node))
    cid = found.export(open_store(state / "ipfs", daemon))
    tell({"cid": cid}, f"/ipfs/{cid}", json)
    leave(YES)


def find_model(text: str, rpc: Rpc) -> PublishedModel:
    """Return a model by CID from a node, or from a file."""
    if Path(text).is_file():
        data = Path(text).read_bytes()
        try:
            decode_model(data)
        except InvalidModel as error:
            hint = "`model get` without --exact writes floats for other tools; give the CID"
            raise InvalidModel(error.code, f"{text}: {error.message} ({hint})") from None
        return PublishedModel(compute_blob_name(data), data)
    return PublishedModel(*rpc.get_file(text, MAX_BLOB_BYTES))
