"""What the parts of the network want sent: they never send by themselves."""

from typing import TypeAlias

from steelyard.chain.types import Address

from .wire import Message

Outgoing: TypeAlias = tuple[Address | None, Message]
"""A message with the validator it is for; None: every other validator."""
