"""Defences taken away by name: a gate that still passes without the one that it is about proves nothing.

Pure: each is a change of a node's settings that a user could make.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from dht.config import DHTConfig
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.trust import TrustConfig

TRUST_ALL = "trust-all"
NO_LIMIT = 1_000_000
SMALL_BUCKET = 4
"""Contacts of a k-bucket, in the place of 20."""
NEVER_S = 365 * 24 * 3600.0


def _one_path(config: DHTConfig) -> DHTConfig:
    return replace(config, lookup=replace(config.lookup, paths=1, max_paths=1))


def _narrow(config: DHTConfig) -> DHTConfig:
    # What few liars break: a value at two nodes, and one of them asked after the other on a single path.
    return replace(config, lookup=replace(config.lookup, k=2, alpha=1, paths=1, max_paths=1, path_seeds=1))


def _no_density(config: DHTConfig) -> DHTConfig:
    return replace(config, lookup=replace(config.lookup, density_deviations=math.inf))


def _no_diversity(config: DHTConfig) -> DHTConfig:
    return replace(
        config,
        lookup=replace(config.lookup, max_per_group=NO_LIMIT),
        routing=replace(
            config.routing,
            max_per_next_bits=NO_LIMIT,
            max_group_per_bucket=NO_LIMIT,
            max_group=NO_LIMIT,
            max_wide_group=NO_LIMIT,
        ),
    )


def _crowded(config: DHTConfig) -> DHTConfig:
    return _no_density(_no_diversity(config))


def _patient(config: DHTConfig) -> DHTConfig:
    # Whoever does not answer is waited for to the end before another is asked beside him.
    return replace(config, lookup=replace(config.lookup, min_timeout_s=config.lookup.max_timeout_s))


def _no_replication(config: DHTConfig) -> DHTConfig:
    return _no_offers(replace(config, replicate_s=NEVER_S, replicate_look_s=NEVER_S))


def _no_offers(config: DHTConfig) -> DHTConfig:
    return replace(config, offering_storers=0)


def _forgetful(config: DHTConfig) -> DHTConfig:
    # Whoever does not answer once is gone, and everybody is asked within a minute.
    return replace(config, routing=replace(config.routing, max_failures=1, stale_after_s=30.0), liveness_s=15.0)


def _small_buckets(config: DHTConfig) -> DHTConfig:
    # Hardly anybody is known of any part of the key space, so that an answer brings a search less far.
    return replace(config, routing=replace(config.routing, k=SMALL_BUCKET))


def _no_quotas(config: DHTConfig) -> DHTConfig:
    # Whoever comes first may take all the room that a store has.
    records = config.records
    return replace(
        config,
        records=replace(
            records,
            max_records_per_owner=records.max_records,
            max_bytes_per_owner=records.max_bytes,
            max_records_per_group=records.max_records,
            max_bytes_per_group=records.max_bytes,
            unseen_share=1.0,
        ),
    )


def _one_shard(config: DHTConfig) -> DHTConfig:
    # A capability is never spread: its storers take all of it.
    return replace(config, records=replace(config.records, max_records_per_key=NO_LIMIT))


_CHANGES: dict[str, Callable[[DHTConfig], DHTConfig]] = {
    "one-path": _one_path,
    "narrow": _narrow,
    "no-density": _no_density,
    "no-diversity": _no_diversity,
    "crowded": _crowded,
    "patient": _patient,
    "no-replication": _no_replication,
    "no-offers": _no_offers,
    "forgetful": _forgetful,
    "small-buckets": _small_buckets,
    "no-quotas": _no_quotas,
    "one-shard": _one_shard,
    TRUST_ALL: _no_diversity,  # and every address is exempt, see `server_config`
}
SABOTAGES = tuple(_CHANGES)


def dht_config(config: DHTConfig, sabotage: str) -> DHTConfig:
    """The settings of a node that goes without a defence; as they are, where the word is empty."""
    return _CHANGES[sabotage](config) if sabotage else config


def server_config(sabotage: str) -> ServerConfig:
    """Those of what it stands on: with TRUST_ALL every address in the world is exempt from limits of place."""
    if sabotage != TRUST_ALL:
        return ServerConfig()
    return ServerConfig(pool=PoolConfig(trust=TrustConfig(networks=("0.0.0.0/0", "::/0"))))
