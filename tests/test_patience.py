"""Commands that wait take no patience that never ends."""

from pathlib import Path

import pytest

from steelyard.__main__ import main
from steelyard.client.demo import command as demo
from steelyard.node.localnet import Localnet


@pytest.mark.parametrize("command", [["demo", "--dir"], ["localnet", "up"]])
@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "-inf"])
def test_a_patience_without_an_end_is_refused_before_anything_is_made(
    command: list[str],
    seconds: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "Processes", None)
    monkeypatch.setattr(Localnet, "create", None)
    with pytest.raises(SystemExit) as caught:
        main([*command, str(tmp_path / "new"), "--patience", seconds])
    assert caught.value.code == 2
    assert f"{float(seconds)} is no number of seconds" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
