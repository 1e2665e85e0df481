"""A small stage for tests of Staking: accounts with real BLS keys, epochs, votes and evidence."""

from functools import cache

from injection import DOMAIN

from steelyard.chain import bls
from steelyard.chain.consensus.votes import NO_HASH, Kind, Statement, compute_signing_root
from steelyard.chain.evidence import encode_statement

COIN = 10**18
MIN_STAKE = 5 * COIN
UNBONDING_SECONDS = 1_000
EPOCH_BLOCKS = 10
JAIL_EPOCHS = 8
ACTIVE, WAITING, JAILED, LEAVING = 1, 2, 3, 4
NOTHING, CHECK_IN, UNJAIL = 0, 1, 2
NOBODY = "0x" + "00" * 20
A, B = b"\xaa" * 32, b"\xbb" * 32


@cache
def get_secret(number):
    return bls.derive_secret_key(bytes([number + 1]) * 32)


@cache
def get_key(number):
    return bytes(bls.compute_public_key(get_secret(number)))


@cache
def get_proof(number):
    return bytes(bls.prove_possession(get_secret(number)))


def say(kind, block=A, epoch=1, view=5):
    return Statement(epoch, view, kind, NO_HASH if kind == Kind.NULLIFY else block)


PAIR = (say(Kind.NOTARIZE, A), say(Kind.NOTARIZE, B))
OTHER_PAIR = (say(Kind.FINALIZE, A, view=6), say(Kind.NULLIFY, view=6))


class Stage:
    """Sends transactions of numbered accounts; asserts nothing by itself."""

    def __init__(self, staking_type, accounts, chain):
        self.staking_type, self.accounts, self.chain = staking_type, accounts, chain
        self.stranger = accounts[19]
        self.staking = None

    def make_validator(self, number, **changes):
        """A row of the constructor; a later account is the fee recipient."""
        validator = {
            "account": self.accounts[number].address,
            "bls_key": get_key(number),
            "network_key": bytes([number]) * 32,
            "endpoint": f"127.0.0.1:{9000 + number}",
            "fee_recipient": self.accounts[number + 1].address,
            "stake": 10 * COIN * (number + 1),
        } | changes
        return tuple(validator.values())

    def deploy(
        self, validators, value=None, min_stake=MIN_STAKE, epoch_blocks=EPOCH_BLOCKS, **options
    ):
        """Deploy as genesis would, paid by account 18."""
        value = sum(validator[5] for validator in validators) if value is None else value
        self.staking = self.accounts[18].deploy(
            self.staking_type,
            validators,
            min_stake,
            UNBONDING_SECONDS,
            epoch_blocks,
            value=value,
            **options,
        )
        return self.staking

    def begin(self, *stakes):
        """Deploy with one validator for each of these stakes, in coins."""
        return self.deploy(
            [self.make_validator(number, stake=stake * COIN) for number, stake in enumerate(stakes)]
        )

    def deposit(self, number, value=10 * COIN, **changes):
        arguments = {
            "bls_key": get_key(number),
            "proof": get_proof(number),
            "network_key": bytes([number]) * 32,
            "endpoint": f"127.0.0.1:{9000 + number}",
            "fee_recipient": self.accounts[number],
        } | changes
        return self.staking.deposit(*arguments.values(), sender=self.accounts[number], value=value)

    def state_of(self, number):
        return self.staking.get_standing(self.accounts[number]).state

    def stake_of(self, number):
        return self.staking.get_validator(self.accounts[number]).stake

    def list_active(self):
        """The numbers of the active accounts, in the set's order."""
        numbers = {account.address: number for number, account in enumerate(self.accounts[:20])}
        return [numbers[validator.account] for validator in self.staking.get_validators()]

    # -- time

    def advance_seconds(self, seconds):
        self.chain.pending_timestamp = self.chain.blocks.head.timestamp + seconds
        self.chain.mine()

    def advance_epochs(self, count):
        """Mine the first block of a later epoch; views are asked there."""
        height = self.chain.blocks.height
        self.chain.mine(((height - 1) // EPOCH_BLOCKS + count) * EPOCH_BLOCKS + 1 - height)

    # -- evidence

    def sign(self, statement, numbers, domain=DOMAIN):
        root = compute_signing_root(statement, domain)
        return bls.aggregate_signatures([bls.sign(get_secret(number), root) for number in numbers])

    def make_evidence(self, first, second, pair=PAIR):
        """The arguments of a report of `pair`, signed by the accounts `first` and `second`."""
        arguments = []
        for statement, numbers in zip(pair, (first, second), strict=True):
            signers = [self.accounts[number] for number in numbers]
            arguments += [encode_statement(statement), signers, self.sign(statement, numbers)]
        return arguments

    def report(self, first, second, pair=PAIR, sender=None, **options):
        """Report what `make_evidence` makes."""
        arguments = self.make_evidence(first, second, pair)
        return self.staking.report(*arguments, sender=sender or self.stranger, **options)
