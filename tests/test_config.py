from __future__ import annotations

from dataclasses import fields, replace

import pytest

from synapse_p2p.config import PoolConfig, ServerConfig, SessionConfig
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.trust import TrustConfig

CONFIGS = [SessionConfig(), PoolConfig(), ServerConfig()]
KNOBS = [
    (config, knob.name)
    for config in CONFIGS
    for knob in fields(config)
    if isinstance(getattr(config, knob.name), (int, float))
]


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize(("config", "name"), KNOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bound_that_bounds_nothing_is_refused_by_name(config: SessionConfig, name: str, value: float):
    with pytest.raises(ConfigError, match=name):
        replace(config, **{name: value})


def test_a_server_trusts_whom_its_sessions_trust():
    trust = TrustConfig(private=False)

    assert ServerConfig(pool=PoolConfig(trust=trust)).trust is trust
    assert ServerConfig().trust == TrustConfig()
