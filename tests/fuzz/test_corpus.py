"""Everything the fuzzer ever found worth keeping, again."""

from pathlib import Path

import pytest

from .seeds import list_seeds
from .targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
MAX_CORPUS_BYTES = 300_000


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_breaks_its_decoder(target: str) -> None:
    inputs = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    assert len(inputs) > 1
    for data in (*inputs, *list_seeds(target)):
        TARGETS[target](data)


def test_the_corpus_has_no_other_targets_and_stays_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) < MAX_CORPUS_BYTES
