"""Settings: every key is known, typed and not negative, and what is written can be read."""

from pathlib import Path

import pytest

from steelyard.node.config import (
    CONFIG_FILE,
    HttpConfig,
    InvalidConfig,
    NodeConfig,
    encode_config,
    load_config,
    parse_config,
)


def test_the_defaults_are_written_and_read_back() -> None:
    assert parse_config(encode_config(NodeConfig())) == NodeConfig()


def test_text_with_quotes_and_backslashes_survives() -> None:
    config = NodeConfig(http=HttpConfig(host='a"b\\c'))
    assert parse_config(encode_config(config)) == config


def test_rule_changes_have_names_and_heights() -> None:
    config = parse_config("[upgrades]\nfork = 7\n'other one' = 9")
    assert config.upgrades == {"fork": 7, "other one": 9}


def test_an_empty_file_means_the_defaults() -> None:
    assert parse_config("") == NodeConfig()


def test_a_whole_number_serves_as_seconds() -> None:
    assert parse_config("[keeper]\ninterval_seconds = 2").keeper.interval_seconds == 2.0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[http", "config_syntax"),
        ("[htpp]\nport = 1", "config_key"),
        ("[http]\nprot = 1", "config_key"),
        ("http = 1", "config_value"),
        ("[http]\nport = '1'", "config_value"),
        ("[http]\nport = true", "config_value"),
        ("[http]\nport = -1", "config_value"),
        ("[keeper]\nenabled = 1", "config_value"),
        ("[keeper]\ninterval_seconds = nan", "config_value"),
        ("[keeper]\ninterval_seconds = inf", "config_value"),
        ("upgrades = 1", "config_value"),
        ("[upgrades]\nfork = '7'", "config_value"),
        ("[upgrades]\nfork = -7", "config_value"),
        ("[upgrades]\nfork = 7.5", "config_value"),
    ],
)
def test_what_nothing_reads_is_refused(text: str, code: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text)
    assert caught.value.code == code


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="node init") as caught:
        load_config(tmp_path)
    assert caught.value.code == "config_missing"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig) as caught:
        load_config(tmp_path)
    assert caught.value.code == "config_syntax"


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("[htpp]")
    with pytest.raises(InvalidConfig, match=str(tmp_path)):
        load_config(tmp_path)
