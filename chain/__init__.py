"""The pure part of Steelyard: what every validator, auditor and client must agree on, bit for bit.

No clock, socket, thread, random source, environment variable or `async`, and no float: arithmetic
on values. `node` and `client` both stand on this package; neither knows the other.
"""
