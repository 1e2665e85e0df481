"""Ethereum JSON-RPC over HTTP and WebSocket: an adapter that owns no state but filters.

`dispatcher` turns bytes into calls and results into bytes; `parameters` reads arguments strictly;
`encoding` writes Ethereum's JSON shapes; `methods` is the table of what is served; the method files
(`blocks`, `state`, `transactions`, `fees`, `logs`) each hold one group; `filters` and
`subscriptions` are polling and pushing of new logs and blocks.
"""
