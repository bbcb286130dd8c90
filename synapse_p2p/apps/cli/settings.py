"""What holds for a command: a flag, else the environment, else the settings file, else the default.

The flags and the environment are read by typer, for its help names both; the file is read here. It is TOML with the
names of the flags: `seed = ["10.0.0.5:9999"]`, `network = "lab"`, `network-key-file`, `data-dir`, `timeout`, `listen`,
`advertise`. `SYNAPSE_CONFIG` names another file. Source of the places: XDG Base Directory Specification 0.8.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synapse_p2p.exceptions import ConfigError

MAX_FILE_BYTES = 65_536
DEFAULT_TIMEOUT_S = 30.0
_TEXTS = ("network", "network-key-file", "data-dir", "listen", "advertise")


@dataclass(frozen=True, slots=True)
class Settings:
    """`network` is None where nobody said which: then it is that of the node that runs here. `data_dir` likewise."""

    seeds: tuple[str, ...] = ()
    network: str | None = None
    network_key_file: str | None = None
    data_dir: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    listen: str | None = None
    advertise: str | None = None

    @property
    def place_flags(self) -> str:
        """What a command that is named to the user needs to come to the same place; with a blank before each flag."""
        values = [("--seed", seed) for seed in self.seeds]
        values += [("--network", self.network), ("--network-key-file", self.network_key_file)]
        values += [("--data-dir", self.data_dir)]
        return "".join(f" {flag} {shlex.quote(value)}" for flag, value in values if value is not None)


def settle(given: Mapping[str, Any], in_file: Mapping[str, Any]) -> Settings:
    """`given` has what flags and environment say, None or empty for what they do not; keys are names of flags."""

    def value(name: str) -> Any:
        said = given.get(name)
        return in_file.get(name) if said is None or said == [] else said

    timeout_s = value("timeout")
    return Settings(
        seeds=tuple(value("seed") or ()),
        network=value("network"),
        network_key_file=value("network-key-file"),
        data_dir=value("data-dir"),
        timeout_s=DEFAULT_TIMEOUT_S if timeout_s is None else float(timeout_s),
        listen=value("listen"),
        advertise=value("advertise"),
    )


def settled(given: Mapping[str, Any]) -> Settings:
    """As `settle`, with the user's file. Raises as `read_settings_file`."""
    return settle(given, read_settings_file(os.environ, sys.platform, os.path.expanduser("~")))


def settings_of_file(text: str, *, path: str) -> dict[str, Any]:
    """What a settings file says. Raises ConfigError, naming the file and the setting."""
    import tomllib  # here: most users have no file

    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    for name, value in read.items():
        if name in _TEXTS:
            if not isinstance(value, str):
                raise ConfigError(f'{path}: {name} is text, as in {name} = "..."')
        elif name == "seed":
            if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
                raise ConfigError(f'{path}: seed is a list of addresses, as in seed = ["10.0.0.5:9999"]')
        elif name == "timeout":
            if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"{path}: timeout is seconds above 0, as in timeout = 10")
        else:
            known = ", ".join(sorted([*_TEXTS, "seed", "timeout"]))
            raise ConfigError(f"{path}: there is no setting {name!r}; there are {known}")
    return read


def read_settings_file(environment: Mapping[str, str], platform: str, home: str) -> dict[str, Any]:
    """What the user's file says; empty where there is none. Raises ConfigError, and OSError for one that was named and
    cannot be read.
    """
    named = environment.get("SYNAPSE_CONFIG")
    path = Path(named) if named else config_file(platform, environment, home)
    if path is None or (not named and not path.is_file()):
        return {}
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes: that is no file of settings")
    try:
        return settings_of_file(content.decode(), path=str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8") from error


def config_file(platform: str, environment: Mapping[str, str], home: str) -> Path | None:
    """Where the user's settings are; None where there is no place. `platform` is as in `sys.platform`."""
    own_choice = environment.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(own_choice):
        folder = own_choice
    elif platform == "win32":
        folder = environment.get("APPDATA", "")
    elif platform == "darwin":
        folder = os.path.join(home, "Library", "Application Support")
    else:
        folder = os.path.join(home, ".config")
    return Path(folder, "synapse-p2p", "config.toml") if os.path.isabs(folder) else None
