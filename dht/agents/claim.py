"""What an agent claims to be able to do, in its record: the bounds of a claim, and whether its descriptor keeps it.

Pure. A claim is what storers and searchers see of a capability: name, version, attributes, and the digest of its
schemas. The whole descriptor comes from the agent itself, which may say anything: `descriptor_of` checks it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from dht.agents.versions import normalize_version, precedence_of, read_version
from dht.records import MAX_INT
from synapse_p2p.capability import AgentCapability, Attributes, Scalar, normalize_capability
from synapse_p2p.exceptions import ConfigError

DIGEST_SIZE_BYTES = 32
MAX_ATTRIBUTES = 8
MAX_ATTRIBUTE_CHARS = 64
"""Of an attribute's name, and of its value where that is text."""
MAX_ATTRIBUTE_VALUES = 8
"""In an attribute that is a list."""
MAX_DESCRIPTORS = 256
"""Looked at in an agent's answer: an agent has more than a record's 16 where it tells a swarm of some only."""

Value: TypeAlias = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class CapabilityClaim:
    """One thing an agent says it can do. `digest` is SHA-256 of its schemas, or empty where it has none.

    A list among the attributes is kept as a tuple. Raises ConfigError for a name that is not in its normal form, for a
    version that is no semantic one, and for anything over its bound.
    """

    name: str
    version: str = ""
    attributes: Attributes = field(default_factory=dict, hash=False)
    digest: bytes = b""

    def __post_init__(self) -> None:
        normal = normalize_capability(self.name)
        if normal != self.name:
            raise ConfigError(f"capability {self.name!r} is not in its normal form; write {normal!r}")
        try:
            normalize_version(self.version)
        except ConfigError as error:
            raise ConfigError(f"capability {self.name!r}: {error}") from error
        if len(self.digest) not in (0, DIGEST_SIZE_BYTES):
            raise ConfigError(
                f"the digest of {self.name!r} has {len(self.digest)} bytes, not {DIGEST_SIZE_BYTES} or none"
            )
        object.__setattr__(self, "attributes", _checked_attributes(self.name, self.attributes))

    def to_list(self) -> list[Any]:
        """As it travels."""
        attributes = {key: list(value) if type(value) is tuple else value for key, value in self.attributes.items()}
        return [self.name, self.version, attributes, self.digest]


def claims_of(capabilities: Iterable[AgentCapability]) -> tuple[CapabilityClaim, ...]:
    """What a record says of these capabilities: names and versions in their normal form, each name once.

    Raises ConfigError for what does not fit a record, and where two capabilities of one name say different things.
    """
    claims: dict[str, CapabilityClaim] = {}
    for capability in capabilities:
        claim = _claim_of(capability)
        known = claims.setdefault(claim.name, claim)
        if _said(known) != _said(claim):
            raise ConfigError(
                f"two capabilities are called {claim.name!r} once normalised, and their versions, attributes or "
                "schemas differ: give one another name, or leave it out"
            )
    return tuple(claims.values())


def _claim_of(capability: AgentCapability) -> CapabilityClaim:
    name = normalize_capability(capability.name)
    try:
        version = normalize_version(capability.version)
    except ConfigError as error:
        raise ConfigError(f"capability {capability.name!r}: {error}") from error
    return CapabilityClaim(name, version, capability.attributes, capability.schema_digest())


# Whether a descriptor is what was claimed


class Difference(StrEnum):
    """What an agent's descriptor does not keep of its claim."""

    MALFORMED = "malformed"  # the answer is no list of descriptors, or this one breaks a bound
    MISSING = "missing"  # nothing of this name is described
    VERSION = "version"
    ATTRIBUTES = "attributes"
    SCHEMAS = "schemas"


def descriptor_of(answer: Any, claim: CapabilityClaim) -> AgentCapability | Difference:
    """The descriptor that keeps this claim, in what an agent answered to `_agent.capabilities`; else what differs.

    `answer` may be anything. Descriptors of other names are not looked into. Cost: that of hashing the schemas.
    """
    if type(answer) is not list or len(answer) > MAX_DESCRIPTORS:
        return Difference.MALFORMED
    verdict: AgentCapability | Difference = Difference.MISSING
    for item in answer:
        if type(item) is not dict or not _is_called(item.get("name"), claim.name):
            continue
        verdict = _compared(item, claim)
        if isinstance(verdict, AgentCapability):
            return verdict
    return verdict


def _is_called(name: Any, wanted: str) -> bool:
    try:
        return normalize_capability(name) == wanted
    except ConfigError:
        return False  # an agent may call what it tells no swarm of anything


def _compared(item: dict[Any, Any], claim: CapabilityClaim) -> AgentCapability | Difference:
    description, name = item.get("description", ""), item["name"]
    schemas = item.get("input_schema", {}), item.get("output_schema", {})
    version, attributes = item.get("version", ""), item.get("attributes", {})
    if not type(description) is type(version) is str or not all(type(each) is dict for each in (*schemas, attributes)):
        return Difference.MALFORMED
    described = AgentCapability(name, description, *schemas, version, attributes)
    try:
        said = CapabilityClaim(claim.name, read_version(version), attributes, described.schema_digest())
    except ConfigError:
        return Difference.MALFORMED
    if precedence_of(said.version) != precedence_of(claim.version) or _build(said) != _build(claim):
        return Difference.VERSION
    if _kinds(said.attributes) != _kinds(claim.attributes):
        return Difference.ATTRIBUTES
    return described if said.digest == claim.digest else Difference.SCHEMAS


def _build(claim: CapabilityClaim) -> str:
    return claim.version.partition("+")[2]


def _said(claim: CapabilityClaim) -> tuple[Any, ...]:
    return claim.version, _kinds(claim.attributes), claim.digest


def _kinds(attributes: Attributes) -> dict[str, Any]:
    """Attributes such that equal ones are the same to everybody: 1 is 1.0, and True is neither."""

    def kind(value: Any) -> Any:
        return [kind(each) for each in value] if isinstance(value, tuple) else (type(value) is bool, value)

    return {key: kind(value) for key, value in attributes.items()}


# Bounds of attributes


def _checked_attributes(capability: str, attributes: Mapping[str, Any]) -> dict[str, Value]:
    if not isinstance(attributes, Mapping):
        raise ConfigError(f"the attributes of {capability!r} are a map, not {type(attributes).__name__}")
    if len(attributes) > MAX_ATTRIBUTES:
        raise ConfigError(f"{capability!r} has {len(attributes)} attributes; at most {MAX_ATTRIBUTES} fit a record")
    return {key: _checked_attribute(capability, key, value) for key, value in attributes.items()}


def _checked_attribute(capability: str, key: Any, value: Any) -> Value:
    if type(key) is not str or len(key) > MAX_ATTRIBUTE_CHARS:
        raise ConfigError(f"an attribute's name is text of at most {MAX_ATTRIBUTE_CHARS} characters ({capability!r})")
    what = f"attribute {key!r} of {capability!r}"
    if type(value) not in (list, tuple):
        return checked_scalar(what, value)
    if len(value) > MAX_ATTRIBUTE_VALUES:
        raise ConfigError(f"{what} has {len(value)} values; at most {MAX_ATTRIBUTE_VALUES} fit a record")
    return tuple(checked_scalar(f"a value of {what}", each) for each in value)


def checked_scalar(what: str, value: Any) -> Scalar:
    """The value, where it is one that attributes may have. Raises ConfigError that begins with `what`."""
    if type(value) not in (str, int, float, bool):
        raise ConfigError(f"{what} is {type(value).__name__}, not text, a number or a bool")
    if type(value) is str and len(value) > MAX_ATTRIBUTE_CHARS:
        raise ConfigError(f"{what} has more than {MAX_ATTRIBUTE_CHARS} characters")
    if type(value) is int and not -MAX_INT <= value <= MAX_INT:
        raise ConfigError(f"{what} is a number of more than 63 bits")
    if type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{what} is {value}, and nothing compares with that")
    return value
