# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Who may join: invitations, applications and sponsorships
@license Apache-2.0
@notice A sponsorship is a stake that the publisher puts down for somebody who has not joined yet.
        Until it is used it can be taken back.
"""

import fedavg


event Invited:
    task: indexed(uint256)
    participants: DynArray[address, fedavg.MAX_CLIENTS]


event Uninvited:
    task: indexed(uint256)
    participant: indexed(address)


event Applied:
    task: indexed(uint256)
    applicant: indexed(address)
    statement: fedavg.Blob


event Sponsored:
    task: indexed(uint256)
    participant: indexed(address)
    gas_wei: uint256
    stake: uint256


event Unsponsored:
    task: indexed(uint256)
    participant: indexed(address)
    amount: uint256


invited: HashMap[uint256, HashMap[address, bool]]
applied: HashMap[uint256, HashMap[address, bool]]
sponsorships: HashMap[uint256, HashMap[address, uint256]]


@internal
def _invite(task: uint256, participants: DynArray[address, fedavg.MAX_CLIENTS]):
    for participant: address in participants:
        self.invited[task][participant] = True


@internal
def _apply(task: uint256, applicant: address, statement: fedavg.Blob):
    assert not self.applied[task][applicant], "tasks: already applied"

    self.applied[task][applicant] = True
    log Applied(task=task, applicant=applicant, statement=statement)


@internal
def _take_sponsorship(task: uint256, participant: address) -> uint256:
    """
    @return What was there, in wei; 0 if nothing.
    """
    amount: uint256 = self.sponsorships[task][participant]
    if amount > 0:
        self.sponsorships[task][participant] = 0
    return amount
