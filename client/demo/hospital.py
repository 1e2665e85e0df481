"""One hospital: a process that sees its own rows and addresses of nodes, nothing else.

    python -m steelyard.client.demo.hospital --site DIR --node URL … --task N --index I --seed S

The site directory holds `train.csv`, `test.csv`, `key.json` and, while it runs, the journal. Killed
and started again, it goes on where it was. `--flip` makes it an intruder that sends its training
backwards, enlarged.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .. import Client, Result
from ..torch import dump, load
from ..training import Context
from . import training
from .heart import encode_rows, read_rows

POLL_SECONDS = 0.2
"""On one machine blocks come fast; asking more often costs the validators more than it saves."""
Arrays = dict[str, NDArray[np.float32]]


def main() -> None:
    """Take part in each task in turn, then say on the last line what came of it."""
    options = parse_options()
    torch.set_num_threads(1)
    site: Path = options.site
    own, held_out = (encode_rows(read_rows(site / f"{part}.csv")) for part in ("train", "test"))
    net = training.build_net()

    with Client(
        options.node,
        key=site / "key.json",
        state=site / "state",
        poll_seconds=POLL_SECONDS,
    ) as client:

        @client.train
        def train(model: Arrays, context: Context) -> Result:
            load(net, model)
            seed = training.compute_seed(options.seed, context.round, options.index)
            epochs = int(context.config["local_epochs"] or 1)
            loss = training.fit(net, own, epochs=epochs, seed=seed)
            arrays: Arrays = dump(net)
            if options.flip:
                arrays = {
                    name: model[name] - options.flip * (value - model[name])
                    for name, value in arrays.items()
                }
            return Result(arrays, samples=len(own), metrics={"loss": loss})

        @client.evaluate
        def evaluate(model: Arrays, _context: Context) -> Result:
            load(net, model)
            return Result(
                samples=len(held_out), metrics={"accuracy": training.score(net, held_out)}
            )

        for task in options.task:
            summary = client.run(task, samples=len(own))
            stake = client.leave(task)
            print(json.dumps({"task": task, "paid": str(summary.claimed), "stake": str(stake)}))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="hospital", description=__doc__)
    parser.add_argument("--site", type=Path, required=True, help="its own rows, key and journal")
    parser.add_argument(
        "--node", action="append", required=True, help="address of a node; may be repeated"
    )
    parser.add_argument("--task", type=int, action="append", required=True, help="may be repeated")
    parser.add_argument("--index", type=int, required=True, help="its number, for the seed")
    parser.add_argument("--seed", type=int, required=True, help="of the split and the training")
    parser.add_argument("--flip", type=float, default=0.0, help="send -FLIP times the training")
    return parser.parse_args()


if __name__ == "__main__":
    main()
