# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title What each publisher's rounds say about a participant
@license Apache-2.0
@notice Units of 2**-20. Local to the publisher, so that nobody can earn it among friends: it
        begins at FLOOR, comes a sixteenth closer to 1 with each update that entered an
        aggregation, and is halved, not below FLOOR, by each commitment that was not revealed. A
        new address therefore never has more than an old one.
"""

import seam

FLOOR: constant(uint256) = 2**17
RISE: constant(uint256) = 16


reputations: HashMap[address, HashMap[address, uint256]]


@view
@internal
def _get(publisher: address, participant: address) -> uint256:
    return max(FLOOR, self.reputations[publisher][participant])


@internal
def _raise(publisher: address, participant: address):
    reputation: uint256 = self._get(publisher, participant)
    self.reputations[publisher][participant] = reputation + (seam.ONE - reputation) // RISE


@internal
def _halve(publisher: address, participant: address):
    self.reputations[publisher][participant] = self._get(publisher, participant) // 2
