from dataclasses import FrozenInstanceError, fields, replace

import pytest

from dht.config import DHTConfig, LookupConfig, RecordConfig, RoutingConfig
from synapse_p2p.exceptions import ConfigError

KNOBS = [
    (config, knob.name)
    for config in (LookupConfig(), RoutingConfig(), RecordConfig(), DHTConfig())
    for knob in fields(config)
    if isinstance(getattr(config, knob.name), (int, float))
]


@pytest.mark.parametrize(("config", "name"), KNOBS, ids=[f"{type(c).__name__}.{n}" for c, n in KNOBS])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_every_number_has_to_be_above_zero_but_for_storers_who_offer_nothing(config, name: str, value: float):
    if (name, value) == ("offering_storers", 0):
        assert replace(config, offering_storers=0).offering_storers == 0
        return
    with pytest.raises(ConfigError, match=f"{type(config).__name__}.{name} is"):
        replace(config, **{name: value})


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (LookupConfig(), {"alpha": 241}),
        (RecordConfig(), {"lease_s": 3601}),
        (RecordConfig(), {"max_answer_bytes": 1499}),
        (DHTConfig(), {"join_retry_min_s": 61}),
        (DHTConfig(), {"offer_pause_s": 7201}),
        (DHTConfig(), {"renew_fraction": 1}),
    ],
)
def test_values_that_contradict_each_other_are_refused(config, wrong: dict):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(config, **wrong)


def test_a_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        LookupConfig().k = 1  # type: ignore[misc]
