"""A contract wallet that acts for its owner, and calls back or refuses when it is paid."""

SOURCE = """
# pragma version ~=0.4.3

target: address
payload: Bytes[1024]
reentered: public(bool)
refuses: public(bool)

@external
def prepare(target: address, payload: Bytes[1024], refuses: bool):
    self.target = target
    self.payload = payload
    self.refuses = refuses

@external
@payable
def execute(target: address, payload: Bytes[1024]):
    raw_call(target, payload, value=msg.value)

@external
@payable
def __default__():
    assert not self.refuses, "wallet: no"
    if len(self.payload) > 0:
        self.reentered = raw_call(
            self.target, self.payload, max_outsize=0, revert_on_failure=False
        )
"""
