"""Re-executing a chain that a node serves over HTTP; needs the EVM (`steelyard[audit]`)."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping

from steelyard.chain.block import Block, Header, decode_block
from steelyard.chain.epochs import is_boundary
from steelyard.chain.errors import SteelyardError, UnavailableBlob
from steelyard.chain.following import Checkpoint, check_checkpoint
from steelyard.chain.genesis import Genesis, build_genesis, parse_genesis, schedule_forks
from steelyard.chain.params import EVM_STACK_BYTES
from steelyard.chain.replay import replay
from steelyard.chain.segments import InvalidSegment
from steelyard.chain.types import BlobName

from .errors import ClientError, NodeUnreachable
from .finality import MAX_BLOCK_ANSWER_BYTES, Follower
from .finalized import MAX_GENESIS_BYTES, OTHER_CHAIN, describe_genesis
from .rpc import Rpc, as_int
from .verdicts import Report, Verdict


class RemoteBlobs:
    """Blobs that blocks read, fetched from the node when they are needed."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    def read(self, name: BlobName, /) -> bytes:
        """Return the bytes. Raises UnavailableBlob."""
        try:
            return self._rpc.get_blob(name)
        except (NodeUnreachable, ClientError) as error:
            raise UnavailableBlob("blob_unavailable", error.message) from None


class Blocks:
    """Blocks 1 to `last` as the node serves them; `block` is the one handed out last."""

    def __init__(self, rpc: Rpc, last: int) -> None:
        self._rpc, self._last = rpc, last
        self.block: Block | None = None

    def __iter__(self) -> Iterator[Block]:
        for height in range(1, self._last + 1):
            self.block = decode_block(
                self._rpc.get_bytes(f"/chain/blocks/{height}", MAX_BLOCK_ANSWER_BYTES)
            )
            yield self.block


def replay_chain(
    rpc: Rpc,
    trusted: bytes | None,
    last_height: int | None,
    progress: Callable[[int], object],
    checkpoint: Checkpoint | None = None,
    upgrades: Mapping[str, int] | None = None,
) -> Report:
    """Re-execute blocks 1 to `last_height` (the node's head) in a thread with a large stack.

    Raises: InvalidGenesis genesis_fork for rule changes that this release does not know.
    """
    report = Report("replay")
    try:
        served = parse_genesis(rpc.get_bytes("/chain/genesis", MAX_GENESIS_BYTES))
        genesis = served if trusted is None else parse_genesis(trusted)
        if trusted is None and checkpoint is None:
            report.condition = OTHER_CHAIN
        if genesis.hash != served.hash:
            report.add("genesis", Verdict.REFUTED, "the node serves another genesis document")
            return report
        head = as_int(rpc.call("eth_blockNumber"))
        last = head if last_height is None else last_height
        if head < max(last, 1):
            report.add(
                "node", Verdict.UNKNOWN, f"its head is {head}; ask for less, or another node"
            )
            return report
    except SteelyardError as error:
        report.add("node", Verdict.UNKNOWN, f"{error.code}: {error.message}")
        return report
    schedule_forks(genesis.rules, upgrades or {})
    report.add("genesis", Verdict.YES, describe_genesis(genesis))
    if checkpoint is not None and last_height is not None and checkpoint.height > last_height:
        report.add(
            "checkpoint",
            Verdict.UNKNOWN,
            f"it is block {checkpoint.height}, and the replay was to end at {last_height}: leave "
            f"--until out, or name {checkpoint.height} or more",
        )
        return report
    run_with_stack(
        lambda: replay_blocks(rpc, genesis, last, progress, report, checkpoint, upgrades)
    )
    return report


def replay_blocks(
    rpc: Rpc,
    genesis: Genesis,
    last: int,
    progress: Callable[[int], object],
    report: Report,
    checkpoint: Checkpoint | None = None,
    upgrades: Mapping[str, int] | None = None,
) -> None:
    """Re-execute, and add what came of it to the report.

    Each epoch's last block needs a certificate by the validators that execution found: without,
    whoever could not convince them could still invent a chain in which they lose their places.
    """
    done, blocks, follower = 0, Blocks(rpc, last), Follower(rpc, genesis)
    verdict, detail = Verdict.UNKNOWN, "nothing was replayed"
    try:
        meet_checkpoint(checkpoint, build_genesis(genesis).block.header, report)
        for replayed in replay(genesis, blocks, RemoteBlobs(rpc), upgrades):
            if replayed.difference is not None:
                report.add(
                    "execution",
                    Verdict.REFUTED,
                    f"height {replayed.height} differs: {replayed.difference}: {replayed.message}",
                )
                return
            done, block = replayed.height, blocks.block
            assert block is not None, "a replayed block was handed out"
            progress(done)
            meet_checkpoint(checkpoint, block.header, report)
            if done == last or is_boundary(done, genesis.epoch_blocks):
                verdict, detail = follower.verify_by(block, replayed.epoch_set)
                if verdict is not Verdict.YES:
                    detail = f"block {done}: {detail}"
                    break
    except (NodeUnreachable, UnavailableBlob, ClientError) as error:
        report.add("execution", Verdict.UNKNOWN, f"after height {done}: {error.message}")
        return
    except InvalidSegment as error:
        report.add("checkpoint", Verdict.REFUTED, error.message)
        return
    except SteelyardError as error:
        report.add(
            "execution", Verdict.REFUTED, f"height {done + 1}: {error.code}: {error.message}"
        )
        return
    report.add("execution", Verdict.YES, f"{done} blocks re-executed, every root agrees")
    if checkpoint is not None and checkpoint.height > done:
        # A node may hide behind a low head that its chain is another one.
        report.add(
            "checkpoint",
            Verdict.UNKNOWN,
            f"the replay ended below it, at block {done}, where this node is; ask one that has "
            f"block {checkpoint.height}",
        )
    report.add("finality", verdict, detail)


def meet_checkpoint(checkpoint: Checkpoint | None, header: Header, report: Report) -> None:
    """At its height, add that `header` is the checkpoint's. Raises InvalidSegment if it is not."""
    if checkpoint is None or checkpoint.height != header.height:
        return
    check_checkpoint(checkpoint, header)
    report.add("checkpoint", Verdict.YES, f"block {header.height} is the one that you trust")


def run_with_stack(function: Callable[[], None]) -> None:
    """Run `function` in a thread whose stack is large enough for the EVM; raise what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    before = threading.stack_size(EVM_STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="replay")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if raised:
        raise raised[0].with_traceback(sys.exc_info()[2])
