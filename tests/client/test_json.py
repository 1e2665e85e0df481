"""`--json`: whatever a command has to tell is one line that every JSON reader takes."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.chain.rules import Flag
from steelyard.chain.types import BlobName
from steelyard.client.closing import ClosedRound
from steelyard.client.commands.options import tell, to_json
from steelyard.client.consents import Inspection
from steelyard.client.doctor import Finding
from steelyard.client.explain import Explanation, Part
from steelyard.client.listing import Standing
from steelyard.client.organisation import Applicant, Released
from steelyard.client.participant import Summary, Trial
from steelyard.client.records import ParticipantInfo, RoundInfo, TaskInfo
from steelyard.client.registered import Access, Attestation, Dataset, Identity, Publication
from steelyard.client.weighing import Weighing

TOLD = (
    *(Access, Applicant, Attestation, ClosedRound, Dataset, Explanation, Finding, Identity),
    *(Inspection, Part, ParticipantInfo, Publication, Released, RoundInfo, Standing, Summary),
    *(TaskInfo, Trial, Weighing),
)
"""What commands tell, beside plain mappings of the same values."""

NAMES = st.builds(BlobName, st.binary(min_size=32, max_size=32), st.integers(0, 2**40))
st.register_type_strategy(BlobName, NAMES)


def refuse(name: str) -> object:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.slow
@given(st.one_of([st.from_type(kind) for kind in TOLD]))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_command_tells_is_json(value: object) -> None:
    text = json.dumps(to_json(value))
    assert isinstance(json.loads(text, parse_constant=refuse), dict)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (Flag(0), []),
        (Flag.CAPPED, ["capped"]),
        (Flag.EXCLUDED | Flag.ZERO_SHARE, ["zero_share", "excluded"]),
        (Flag(2**9 | Flag.CAPPED), ["capped"]),
    ],
)
def test_flags_are_told_as_a_list_of_their_names(flags: Flag, told: list[str]) -> None:
    weighing = Weighing(1, 2, 3, 4, 5, flags, 6)
    assert to_json(weighing)["flags"] == told


def test_what_is_no_number_is_told_as_null(capsys: pytest.CaptureFixture[str]) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 0.5]
    tell({"predictions": values}, "", as_json=True)
    assert capsys.readouterr().out == '{"predictions": [null, null, null, 0.5]}\n'
