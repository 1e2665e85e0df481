"""Following the chain over HTTP, from nodes that nobody trusts.

`fetcher` is the one seam to other machines, `sources` remembers which of them are good for
something, `sync` and `together` fetch and verify what was finalized, `checkpoint` and `download`
begin in the middle of the chain, `forwarding` passes on what this node's own clients send.
"""
