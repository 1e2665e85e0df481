# pragma version ~=0.4.3
"""
@title A contract that any chain should run: state, events, reverts.
"""

event Bumped:
    who: indexed(address)
    value: uint256

value: public(uint256)


@deploy
def __init__(start: uint256):
    self.value = start


@external
def bump(by: uint256) -> uint256:
    assert by > 0, "counter: nothing to add"
    self.value += by
    log Bumped(who=msg.sender, value=self.value)
    return self.value


@external
@view
def multiply(by: uint256) -> uint256:
    return self.value * by
