# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title The money of each task, in wei
@license Apache-2.0
@notice One task's wei never pays for another's. For each task, at any time,

            deposited == left + paid + fees + platform + refunded

        `paid`, `fees` and `platform` are credited first and claimed by their owners later.
        `reward_left` is the part of `left` that later rounds may pay out. Stakes and unused
        sponsorships are not escrow; they have books of their own here. The contract holds the sum
        over tasks of `left`, unclaimed credits, `stakes` and `sponsorships`. Ether leaves through
        `_send` only, and every caller of it has written its own books before.
"""

struct Account:
    deposited: uint256
    left: uint256
    reward_left: uint256
    paid: uint256
    fees: uint256
    platform: uint256
    refunded: uint256
    stakes: uint256
    sponsorships: uint256
    burned: uint256


event Funded:
    task: indexed(uint256)
    funder: indexed(address)
    amount: uint256


event Claimed:
    task: indexed(uint256)
    owner: indexed(address)
    amount: uint256


event Refunded:
    task: indexed(uint256)
    publisher: indexed(address)
    amount: uint256


accounts: HashMap[uint256, Account]
claimable: HashMap[uint256, HashMap[address, uint256]]


@internal
def _deposit(task: uint256, amount: uint256, reward: uint256):
    self.accounts[task].deposited = amount
    self.accounts[task].left = amount
    self.accounts[task].reward_left = reward


@internal
def _fund(task: uint256, funder: address, amount: uint256):
    self.accounts[task].deposited += amount
    self.accounts[task].left += amount
    self.accounts[task].reward_left += amount
    log Funded(task=task, funder=funder, amount=amount)


@internal
def _credit(task: uint256, owner: address, amount: uint256):
    """
    @notice Promise `amount` to `owner`. The caller takes it from the book that it was in.
    """
    if amount > 0:
        self.claimable[task][owner] += amount


@internal
def _spend_pool(task: uint256, paid: uint256, platform: uint256):
    """
    @notice Take from the reward what a round has credited. Reverts if it does not hold that much.
    """
    self.accounts[task].reward_left -= paid + platform
    self.accounts[task].left -= paid + platform
    self.accounts[task].paid += paid
    if platform > 0:
        self.accounts[task].platform += platform


@internal
def _credit_fee(task: uint256, owner: address, amount: uint256):
    """
    @notice Promise part of the reserve to whoever closed a round.
    """
    self.accounts[task].left -= amount
    self.accounts[task].fees += amount
    self._credit(task, owner, amount)


@internal
def _burn(task: uint256, amount: uint256):
    self.accounts[task].stakes -= amount
    self.accounts[task].burned += amount


@internal
def _claim(task: uint256, owner: address):
    amount: uint256 = self.claimable[task][owner]
    assert amount > 0, "tasks: nothing to claim"

    self.claimable[task][owner] = 0
    log Claimed(task=task, owner=owner, amount=amount)
    self._send(owner, amount)


@internal
def _refund(task: uint256, publisher: address):
    """
    @notice Give back what nobody earned. The caller has checked that the task is over.
    """
    amount: uint256 = self.accounts[task].left
    assert amount > 0, "tasks: nothing to refund"

    self.accounts[task].left = 0
    self.accounts[task].reward_left = 0
    self.accounts[task].refunded += amount
    log Refunded(task=task, publisher=publisher, amount=amount)
    self._send(publisher, amount)


@internal
def _send(owner: address, amount: uint256):
    # All gas goes along, so that contract wallets can be paid; the caller holds the lock.
    if amount > 0:
        raw_call(owner, b"", value=amount)
