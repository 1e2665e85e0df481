"""Thousands of blocks with updates in them: does a validator grow?

Four real validators run a training task without a pause. Resident memory and open files of each
are taken once everything has been used, and again at the end. What grows by design is the disk.
"""

import os
import time
from pathlib import Path
from statistics import median

from steelyard.node.localnet import Localnet

from .cluster import get_height, is_in_one, run_cluster, say
from .timing import Measurement
from .training import CLIENTS, train_on

BLOCKS = int(os.environ.get("STEELYARD_SOAK_BLOCKS", "3000"))
WARM_BLOCKS = BLOCKS // 5
LOOK_SECONDS = 1.0
TELL_BLOCKS = 100
MEBIBYTE = 2**20
MAX_GROWTH_MB = 64
MAX_MORE_FILES = 16
"""The bounds: a cache that fills slowly passes, what grows with every block does not."""


def run() -> list[Measurement]:
    """Return one row: growth after the first fifth, and whether it is within the bounds."""
    started = time.monotonic()
    with run_cluster(accounts=CLIENTS + 1) as net, train_on(net) as training:
        first = wait_for(net, WARM_BLOCKS)
        memory = [read_memory(net, number) for number in net.numbers]
        files = [count_files(net, number) for number in net.numbers]
        last = wait_for(net, BLOCKS)
        grown = [
            read_memory(net, number) - before
            for number, before in zip(net.numbers, memory, strict=True)
        ]
        more_files = [
            count_files(net, number) - before
            for number, before in zip(net.numbers, files, strict=True)
        ]
        rounds = training.get_round()
        agree = is_in_one(net, net.numbers)
    seconds = time.monotonic() - started
    is_bounded = max(grown) <= MAX_GROWTH_MB * MEBIBYTE and max(more_files) <= MAX_MORE_FILES
    return [
        Measurement(
            f"4 validators, {last} blocks",
            "a block, training on",
            seconds / last,
            1.0,
            {
                "rounds": rounds,
                "MB at first": median(memory) / MEBIBYTE,
                "MB more, worst": max(grown) / MEBIBYTE,
                "files more, worst": max(more_files),
                "agree": float(agree),
                "within bounds": float(is_bounded),
            },
            {
                "soak_blocks": last - first,
                "soak_rss_growth_mb": round(max(grown) / MEBIBYTE, 1),
                "soak_files_growth": max(more_files),
                "soak_is_bounded": is_bounded,
            },
        )
    ]


def wait_for(net: Localnet, height: int) -> int:
    """Return the height once all validators have at least this one."""
    told = 0
    while (reached := min(get_height(net, number) for number in net.numbers)) < height:
        if reached // TELL_BLOCKS > told:
            told = reached // TELL_BLOCKS
            sizes = [read_memory(net, number) / MEBIBYTE for number in net.numbers]
            files = [count_files(net, number) for number in net.numbers]
            say(f"block {reached}: MB {' '.join(f'{one:.0f}' for one in sizes)}, files {files}")
        time.sleep(LOOK_SECONDS)
    return reached


def read_memory(net: Localnet, number: int) -> int:
    """Return the private resident bytes of a validator: LMDB's file pages are the system's."""
    text = (get_process(net, number) / "status").read_text("ascii", "replace")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


def count_files(net: Localnet, number: int) -> int:
    return len(list((get_process(net, number) / "fd").iterdir()))


def get_process(net: Localnet, number: int) -> Path:
    return Path("/proc") / str(net.find_process(number))
