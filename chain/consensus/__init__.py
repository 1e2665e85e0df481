"""Who may vote, what a vote says, what a certificate proves, and when a block is final.

Read in this order: `validators`, `votes`, `certificates`, then `messages` (what goes into the
machine and comes out of it), `views` (what one view remembers, and the rules) and `simplex`
(the machine). Nothing here knows a socket, a disk or a clock.
"""
