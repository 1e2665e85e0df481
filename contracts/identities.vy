# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Identities, and what others state about them
@license Apache-2.0
@notice An identity is an account and the file that it says describes it. An attestation is a
        statement that an issuer makes about a subject by sending it: the transaction's signature
        is the statement's. Who the issuer is in the world, its readers must know.
"""

import files


struct Identity:
    metadata: files.Blob
    # Seconds; 0 is an account that never registered.
    registered_at: uint256
    updated_at: uint256


struct Attestation:
    # Seconds; 0 is never.
    issued_at: uint256
    revoked_at: uint256


event Registered:
    account: indexed(address)
    metadata: files.Blob


event Attested:
    issuer: indexed(address)
    subject: indexed(address)
    statement: files.Blob


event AttestationRevoked:
    issuer: indexed(address)
    subject: indexed(address)
    statement: files.Blob


identities: HashMap[address, Identity]
# By issuer, subject, and the key of the statement's name.
attestations: HashMap[address, HashMap[address, HashMap[bytes32, Attestation]]]


@external
def register(metadata: files.Blob):
    """
    @notice Register the caller, or replace the file that describes it; `(0, 0)` takes it away.
    """
    files._check_name(metadata, files.MAX_DOCUMENT_BYTES)

    if self.identities[msg.sender].registered_at == 0:
        self.identities[msg.sender].registered_at = block.timestamp
    self.identities[msg.sender].updated_at = block.timestamp
    self.identities[msg.sender].metadata = metadata
    log Registered(account=msg.sender, metadata=metadata)


@external
def attest(subject: address, statement: files.Blob):
    """
    @notice State what the file `statement` says about `subject`. A revoked statement may be made
            again.
    """
    assert subject != empty(address), "registry: no subject"
    assert subject != msg.sender, "registry: about oneself"
    assert not files._is_none(statement), "registry: no statement"
    files._check_name(statement, files.MAX_DOCUMENT_BYTES)
    key: bytes32 = files._compute_key(statement)
    assert not self._stands(msg.sender, subject, key), "registry: already attested"

    self.attestations[msg.sender][subject][key] = Attestation(
        issued_at=block.timestamp, revoked_at=0
    )
    log Attested(issuer=msg.sender, subject=subject, statement=statement)


@external
def revoke_attestation(subject: address, statement: files.Blob):
    """
    @notice Take back what the caller stated.
    """
    key: bytes32 = files._compute_key(statement)
    assert self._stands(msg.sender, subject, key), "registry: not attested"

    self.attestations[msg.sender][subject][key].revoked_at = block.timestamp
    log AttestationRevoked(issuer=msg.sender, subject=subject, statement=statement)


@view
@external
def get_identity(account: address) -> Identity:
    return self.identities[account]


@view
@external
def get_attestation(issuer: address, subject: address, statement: files.Blob) -> Attestation:
    return self.attestations[issuer][subject][files._compute_key(statement)]


@view
@external
def is_attested(issuer: address, subject: address, statement: files.Blob) -> bool:
    """
    @notice Whether the statement was made and not revoked.
    """
    return self._stands(issuer, subject, files._compute_key(statement))


@view
@internal
def _stands(issuer: address, subject: address, key: bytes32) -> bool:
    attestation: Attestation = self.attestations[issuer][subject][key]
    return attestation.issued_at > 0 and attestation.revoked_at == 0
