"""Mistakes that somebody could make in Registry, which has no games: its ape tests hunt them."""

from .mutants import Mutant

TESTS = "test_registry.py"

REGISTRY_MUTANTS = (
    Mutant(
        "anybody answers for a dataset",
        "datasets",
        'assert msg.sender == self.datasets[dataset].owner, "registry: not the owner"',
        'assert self.datasets[dataset].owner != empty(address), "registry: not the owner"',
        TESTS,
    ),
    Mutant(
        "a retired dataset is offered",
        "datasets",
        'assert self.datasets[dataset].retired_at == 0, "registry: retired"',
        "pass",
        TESTS,
    ),
    Mutant(
        "a key without a request",
        "datasets",
        'assert self.accesses[dataset][requester].state == REQUESTED, "registry: not requested"',
        'assert self.accesses[dataset][requester].state != GRANTED, "registry: not requested"',
        TESTS,
    ),
    Mutant(
        "an owner asks itself",
        "datasets",
        '    assert owner != msg.sender, "registry: already its owner"\n',
        "",
        TESTS,
    ),
    Mutant(
        "an open request changes its key",
        "datasets",
        "    assert (\n        self.accesses[dataset][msg.sender].state != REQUESTED\n"
        '    ), "registry: already requested"\n',
        "",
        TESTS,
    ),
    Mutant(
        "an old answer stays with a new request",
        "datasets",
        'state=REQUESTED, public_key=public_key, wrapped=b""',
        "state=REQUESTED, public_key=public_key, "
        "wrapped=self.accesses[dataset][msg.sender].wrapped",
        TESTS,
    ),
    Mutant(
        "a description can be asked for",
        "datasets",
        "    assert not files._is_none(self.datasets[dataset].content), "
        '"registry: nothing to read"\n',
        "",
        TESTS,
    ),
    Mutant(
        "a statement about oneself",
        "identities",
        '    assert subject != msg.sender, "registry: about oneself"\n',
        "",
        TESTS,
    ),
    Mutant(
        "a revoked statement stands",
        "identities",
        "return attestation.issued_at > 0 and attestation.revoked_at == 0",
        "return attestation.issued_at > 0",
        TESTS,
    ),
    Mutant(
        "a registration is dated anew",
        "identities",
        "    if self.identities[msg.sender].registered_at == 0:\n",
        "    if True:\n",
        TESTS,
    ),
    Mutant(
        "a round proves any model",
        "lineage",
        "        made.digest == model.digest and made.size == model.size\n",
        "        made.digest != empty(bytes32)\n",
        TESTS,
    ),
    Mutant(
        "a round proves a model of another size",
        "lineage",
        "        made.digest == model.digest and made.size == model.size\n",
        "        made.digest == model.digest\n",
        TESTS,
    ),
    Mutant(
        "a model is published twice",
        "lineage",
        '    assert self.numbers[key][msg.sender] == 0, "registry: already published"\n',
        "",
        TESTS,
    ),
    Mutant(
        "a proved origin does not lead",
        "lineage",
        "if leading == 0 or (task != 0 and self.publications[leading].task == 0):",
        "if leading == 0:",
        TESTS,
    ),
    Mutant(
        "a later proof takes the lead",
        "lineage",
        "if leading == 0 or (task != 0 and self.publications[leading].task == 0):",
        "if leading == 0 or task != 0:",
        TESTS,
    ),
    Mutant(
        "a model is its own parent",
        "lineage",
        '    assert key != child_key, "registry: its own parent"\n',
        "",
        TESTS,
    ),
    Mutant(
        "half an origin",
        "lineage",
        '    assert (task == 0) == (round == 0), "registry: round without a task"\n',
        "",
        TESTS,
    ),
    Mutant(
        "a file one byte too large",
        "files",
        "assert file.size <= max_bytes, ",
        "assert file.size <= max_bytes + 1, ",
        TESTS,
    ),
    Mutant(
        "half a name",
        "files",
        "    assert (file.size == 0) == (file.digest == empty(bytes32)), "
        '"registry: malformed name"\n',
        "",
        TESTS,
    ),
)
