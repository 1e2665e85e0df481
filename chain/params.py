"""Protocol constants: numbers that every node must share and that no genesis document can change.

Chain parameters (gas limit, blob retention, validators) are in the genesis document; settings of
one node are in its TOML file. Units are in the names; relations are asserted at the end.
"""

from typing import Final

# -- blobs (docs/protocol.md, "Blobs") -------------------------------------------------------------
CHUNK_BYTES: Final = 262_144
"""IPFS leaf size; a blob of at most this many bytes is one raw block."""
DAG_WIDTH: Final = 174
"""Links in one inner node of the balanced dag-pb tree."""
MAX_BLOB_BYTES: Final = 48 * 2**20
"""Any blob, declared or made: a 10-million-parameter model (40 MB) fits."""
MAX_BLOBS_PER_TRANSACTION: Final = 8
MAX_BLOB_BYTES_PER_BLOCK: Final = 64 * 2**20
BLOB_GAS_EACH: Final = 25_000
BLOB_BYTES_PER_GAS: Final = 16
"""Intrinsic gas of a declared blob: BLOB_GAS_EACH + ceil(size / BLOB_BYTES_PER_GAS)."""

# -- addresses -------------------------------------------------------------------------------------
BLOB_DECLARATION_ADDRESS: Final = (0x0F00).to_bytes(20, "big")
"""Appears in access lists only: pairs of storage keys, digest and size."""
FEDAVG_ADDRESS: Final = (0x0F01).to_bytes(20, "big")
"""The aggregation precompile; its storage holds the admission records."""
EVIDENCE_ADDRESS: Final = (0x0F02).to_bytes(20, "big")
"""The precompile that checks proofs of possession and evidence."""
STAKING_ADDRESS: Final = (0x1001).to_bytes(20, "big")
TASKS_ADDRESS: Final = (0x1002).to_bytes(20, "big")
REGISTRY_ADDRESS: Final = (0x1003).to_bytes(20, "big")
ROUNDS_ADDRESS: Final = (0x1004).to_bytes(20, "big")
"""The rounds of tasks: drawing, commitments, reveals, closing. Holds no ether."""

# -- models and updates ----------------------------------------------------------------------------
FRACTION_BITS: Final = 24
"""Largest and default number of fraction bits: model values are int32 in 2**-24."""
BLOCK_VALUES: Final = 4096
"""Values that share one exponent; blocks never cross tensors."""
MAX_MODEL_PARAMETERS: Final = 12_000_000
MAX_MODEL_TENSORS: Final = 4096
MAX_MODEL_HEADER_BYTES: Final = 2**20
MAX_TENSOR_NAME_BYTES: Final = 256
MAX_TENSOR_DIMENSIONS: Final = 8
UPDATE_VERSION: Final = 1
UPDATE_HEADER_BYTES: Final = 192
MAX_EXPONENT: Final = 30
VALUE_LIMIT: Final = 2**31
"""A block is valid only if max|q| << (exponent + fraction_bits) stays below this."""

# -- aggregation -----------------------------------------------------------------------------------
WEIGHT_BITS: Final = 20
WEIGHT_TOTAL: Final = 2**WEIGHT_BITS
"""Normalised weights (shares) of one aggregation sum to exactly this; scores use it as 1.0."""
MAX_UPDATES: Final = 1024
"""Updates in one aggregation."""
MAX_PAGES: Final = 64
"""Pages of one phase of an aggregation."""
STEP_BITS: Final = 12
STEP_UNIT: Final = 2**STEP_BITS
"""A server learning rate or a momentum of 1.0."""
MAX_SERVER_RATE: Final = 2**15
"""Of the server step: eight times the mean."""
MAX_MOMENTUM: Final = STEP_UNIT - 16
"""Keeps the sum of all past deltas below 256 times the largest one."""
VELOCITY_LIMIT: Final = 2**47
"""A velocity's values are below this, in units of 2**-(fraction_bits + 8)."""
MAX_RAW_WEIGHT: Final = 2**128 - 1
MAX_NORM2: Final = 2**256 - 1
MAX_COMPARED_UPDATES: Final = 256
"""Updates in one aggregation by Multi-Krum, which compares each with each."""
VELOCITY_BITS: Final = 8
"""A velocity has so many fraction bits more than the model's values."""

# -- gas of the aggregation precompile: about 0.5 microseconds a unit ------------------------------
GAS_CALL: Final = 3_000
GAS_PER_UPDATE: Final = 5_000
BYTES_READ_PER_GAS: Final = 256
"""Reading a blob from storage into memory."""
HEADER_BYTES_PER_GAS: Final = 8
"""Decoding the header of a model: 4096 tensors take 40 ms."""
BYTES_MADE_PER_GAS: Final = 32
"""Encoding, hashing and storing a blob that the precompile makes."""
VALUES_PER_GAS: Final = 256
"""parameters x updates, for the sums, the norms and the scores together."""
TRIMMED_VISITS: Final = 4
"""The network that trims, for each value of an update: that of so many updates more."""
PAIR_VALUES_PER_GAS: Final = 2_048
"""parameters x pairs of updates, for the Gram matrix of Multi-Krum."""
PAIR_VALUES_PER_BLOCK: Final = 64
"""A block of fewer values costs so many of them: most of it is the way there."""
GAS_PER_DISTANCE: Final = 2
"""Updates squared: Multi-Krum weighs the dot products of each page, and compares distances."""
STEP_VISITS: Final = 4
"""The server step, for each parameter: that of so many updates more."""
PAGE_BYTES_PER_GAS: Final = 16
"""Decoding the squares and dot products of pages: two gas a number."""
GAS_PER_PLAN: Final = 5_000
"""Trying all numbers of pages."""

# -- gas of the evidence precompile (chain/evidence.py says why so much) ---------------------------
GAS_PER_VERIFICATION: Final = 50_000
GAS_PER_KEY: Final = 1_000
MAX_EVIDENCE_SIGNERS: Final = 64
"""Signers of one statement; the contract Staking has no more."""
MAX_EVIDENCE_BYTES: Final = 2**14
"""Of a call: two statements with their keys and signatures take 8,900."""

# -- transactions and blocks -----------------------------------------------------------------------
MAX_TRANSACTION_BYTES: Final = 131_072
MAX_BLOCK_TRANSACTIONS: Final = 5_000
MAX_BLOCK_BYTES: Final = 4 * 2**20
MAX_EXTRA_DATA_BYTES: Final = 32
MAX_INITCODE_BYTES: Final = 49_152
"""EIP-3860."""
MAX_CLOCK_LEAD_SECONDS: Final = 1
"""A block's timestamp may be this far ahead of the voter's clock; checked when voting only."""
EXTENSION_VERSION: Final = 1

# -- consensus (docs/protocol.md, "Consensus") -----------------------------------------------------
MAX_VALIDATORS: Final = 128
"""Every validator talks to every other one, and a certificate has a bit for each."""
MAX_POWER: Final = 2**128 - 1
"""Voting power of one validator; a stake in wei fits."""
MAX_LOOKAHEAD_VIEWS: Final = 16
"""Votes and proposals for views further ahead are dropped; certificates are not."""
MAX_LOOKBEHIND_VIEWS: Final = 64
"""Votes for views further behind are dropped, even if nothing was finalized since."""
MAX_TIMEOUT_DOUBLINGS: Final = 5
"""The timeout of a view doubles with each nullified view before it, up to this often."""

# -- epochs (docs/protocol.md, "Epochs") -----------------------------------------------------------
NEXT_SET_GAS: Final = 10_000_000
"""Gas of the call that reads the next validators from Staking. Nobody pays it."""
MAX_ENDPOINT_BYTES: Final = 64
"""host:port, as Staking stores it."""
MAX_EPOCH_SET_BYTES: Final = 2**16
"""An encoded validator set."""
CHECKPOINT_AGE_DIVISOR: Final = 2
"""A checkpoint is too old after this part of the unbonding time. The rest is for the epochs that an
exiting validator still votes in, for evidence to be found and included, and for wrong clocks."""

# -- the engine ------------------------------------------------------------------------------------
EVM_RECURSION_LIMIT: Final = 16_000
"""Python's recursion limit while executing. 1024 nested CREATE2 need 7,663: it decides nothing.

Not higher: at 100,000 (which importing py_ecc sets) nested JSON overflows the stack of a thread."""
EVM_STACK_BYTES: Final = 16 * 2**20
"""Stack of a thread that executes: `threading.stack_size(EVM_STACK_BYTES)` before starting it."""

assert MAX_BLOB_BYTES <= MAX_BLOB_BYTES_PER_BLOCK
assert 4 * MAX_MODEL_PARAMETERS + MAX_MODEL_HEADER_BYTES <= MAX_BLOB_BYTES
assert WEIGHT_TOTAL * VALUE_LIMIT <= 2**51
"""The weighted sum of in-range values stays inside int64 with twelve bits to spare."""
assert (WEIGHT_TOTAL * VALUE_LIMIT >> STEP_BITS) * STEP_UNIT <= (
    VELOCITY_LIMIT * (STEP_UNIT - MAX_MOMENTUM)
)
"""A velocity is at most the largest delta / (1 - momentum)."""
assert VELOCITY_LIMIT * MAX_SERVER_RATE < 2**63
"""And its product with the server's rate stays inside int64."""
assert MAX_UPDATES * VALUE_LIMIT * WEIGHT_TOTAL <= 2**61
"""What a trimmed mean divides."""
assert MAX_COMPARED_UPDATES <= MAX_UPDATES <= WEIGHT_TOTAL
assert VELOCITY_BITS == WEIGHT_BITS - STEP_BITS, "a velocity is a sum over STEP_UNIT"
assert MAX_VALIDATORS * (MAX_ENDPOINT_BYTES + 192) + 64 <= MAX_EPOCH_SET_BYTES
