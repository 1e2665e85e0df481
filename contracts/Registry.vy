# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Identities, models with their lineage, and encrypted datasets
@license Apache-2.0
@notice What accounts say, in their own name and for ever: nothing here is owned by anybody else,
        decided by an operator or paid for. Files are named, never stored; a name of `(0, 0)` is no
        file. One thing is proved: that a published model is what a round of a task made. All else
        is the word of the account that sent it. docs/registry.md

        It holds no ether, and calls nobody but the view of Rounds.
"""

import datasets
import identities
import lineage

initializes: datasets
initializes: identities
initializes: lineage

exports: (
    identities.register,
    identities.attest,
    identities.revoke_attestation,
    identities.get_identity,
    identities.get_attestation,
    identities.is_attested,
)

exports: (
    lineage.publish_model,
    lineage.model_count,
    lineage.get_model,
    lineage.get_publication,
    lineage.find_publication,
)

exports: (
    datasets.publish_dataset,
    datasets.retire_dataset,
    datasets.request_access,
    datasets.grant_access,
    datasets.deny_access,
    datasets.dataset_count,
    datasets.get_dataset,
    datasets.get_access,
)
