"""What an ape user writes: `ape run use_ape --network ethereum:steelyard`."""

import ape


def main() -> None:
    owner = ape.accounts.test_accounts[0]
    other = ape.accounts.test_accounts[1]
    assert ape.chain.chain_id == ape.networks.active_provider.chain_id

    counter = owner.deploy(ape.project.Counter, 5)
    assert counter.value() == 5
    assert counter.multiply(6) == 30

    receipt = counter.bump(3, sender=owner)
    assert not receipt.failed
    (event,) = receipt.decode_logs(counter.Bumped)
    assert event.event_arguments == {"who": owner.address, "value": 8}
    assert [log.value for log in counter.Bumped] == [8]

    with ape.reverts("counter: nothing to add"):
        counter.bump(0, sender=owner)

    before = other.balance
    owner.transfer(other, 12_345)
    assert other.balance - before == 12_345
    assert ape.chain.blocks.head.number >= receipt.block_number
    (mined,) = ape.chain.blocks[receipt.block_number].transactions
    assert "0x" + bytes(mined.txn_hash).hex() == receipt.txn_hash
    print("ape: done")
