"""A flag, else the environment, else the file, else the default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from synapse_p2p.apps.cli.settings import (
    DEFAULT_TIMEOUT_S,
    MAX_FILE_BYTES,
    Settings,
    config_file,
    read_settings_file,
    settings_of_file,
    settle,
)
from synapse_p2p.exceptions import ConfigError

FILE = """
seed = ["10.0.0.5:9999", "10.0.0.6:9999"]
network = "lab"
network-key-file = "/etc/lab.key"
timeout = 3
"""


def test_what_is_typed_goes_over_the_file_and_the_file_over_the_default():
    in_file = settings_of_file(FILE, path="x")

    settings = settle({"network": "other", "seed": [], "timeout": None}, in_file)

    assert settings == Settings(("10.0.0.5:9999", "10.0.0.6:9999"), "other", "/etc/lab.key", None, 3.0)
    assert settle({}, {}).timeout_s == DEFAULT_TIMEOUT_S
    assert settle({"network": ""}, in_file).network == ""  # said, and not left open


def test_the_next_command_comes_to_the_same_place_and_can_be_typed():
    settings = Settings(("a:1", "b:2"), "my lab", "/etc/lab.key", "/srv/rita", 5)

    assert settings.place_flags == (
        " --seed a:1 --seed b:2 --network 'my lab' --network-key-file /etc/lab.key --data-dir /srv/rita"
    )
    assert Settings().place_flags == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("network = 5", 'x: network is text, as in network = "..."'),
        ('seed = "a:1"', "x: seed is a list of addresses"),
        ("seed = [1]", "x: seed is a list of addresses"),
        ("timeout = 0", "x: timeout is seconds above 0"),
        ("timeout = true", "x: timeout is seconds above 0"),
        ('sed = ["a:1"]', "x: there is no setting 'sed'; there are advertise, data-dir"),
        ("network =", "x is no TOML: "),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_setting(text: str, said: str):
    with pytest.raises(ConfigError, match=re.escape(said)):
        settings_of_file(text, path="x")


def test_the_file_is_where_the_system_keeps_settings():
    assert config_file("linux", {}, "/home/me") == Path("/home/me/.config/synapse-p2p/config.toml")
    assert config_file("linux", {"XDG_CONFIG_HOME": "/c"}, "/home/me") == Path("/c/synapse-p2p/config.toml")
    assert config_file("linux", {"XDG_CONFIG_HOME": "c"}, "/home/me") == config_file("linux", {}, "/home/me")
    assert config_file("darwin", {}, "/Users/me") == Path(
        "/Users/me/Library/Application Support/synapse-p2p/config.toml"
    )
    assert config_file("linux", {}, "~") is None
    assert config_file("win32", {}, "") is None


def test_no_file_is_no_settings_and_one_that_was_named_has_to_be_there(tmp_path: Path):
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert read_settings_file(environment, "linux", "/home/me") == {}
    (tmp_path / "synapse-p2p").mkdir()
    (tmp_path / "synapse-p2p" / "config.toml").write_text(FILE, encoding="utf-8")
    assert read_settings_file(environment, "linux", "/home/me")["network"] == "lab"
    with pytest.raises(FileNotFoundError):
        read_settings_file({"SYNAPSE_CONFIG": str(tmp_path / "missing")}, "linux", "/home/me")


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="that is no file of settings"):
        read_settings_file({"SYNAPSE_CONFIG": str(path)}, "linux", "/home/me")
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        read_settings_file({"SYNAPSE_CONFIG": str(path)}, "linux", "/home/me")
