"""The overlay's own errors. Pure; the root and the rest of the tree are in `synapse_p2p.exceptions`.

SynapseError
|-- JoinFailed       no seed let us into the swarm; the report says why, seed by seed
|-- IdentityRevoked  the key of our agent was revoked for good (also a ConfigError)
|-- NoAgentFound     nobody to ask with that capability, and whether the search was complete
|-- DelegationExhausted  a task may not be passed on any further (also a CallError)
|-- DescriptorDiffers  an agent does not describe what its signed record claims
|-- RecordRefused    a signed record is not kept, or not believed, and the reason
`-- StoreDamaged     saved records are not what was saved; nothing of them is used
"""

from __future__ import annotations

from typing import Any

from synapse_p2p.exceptions import CallError, ConfigError, SynapseError
from synapse_p2p.identity import NodeID


class JoinFailed(SynapseError):
    """The swarm was not joined in time. `report` tells for each seed what happened; its text is ours."""

    def __init__(self, report: Any) -> None:
        super().__init__(str(report))
        self.report = report


class IdentityRevoked(ConfigError):
    """Whoever had the key of this agent has revoked it for good. `node_id` is the id that nobody finds any more."""

    def __init__(self, node_id: NodeID, *, key_folder: str = "") -> None:
        remedy = f"move {key_folder}/node.key away" if key_folder else "give it another identity="
        super().__init__(
            f"the key of this agent (id {node_id.hex()}) was revoked for good, with revoke(): other nodes keep nothing "
            f"that it signs, so nobody would find the agent. To start it again as somebody new, {remedy}"
        )
        self.node_id = node_id


class NoAgentFound(SynapseError):
    """No agent with this capability answered.

    `complete` is True where the search ran to its end, so that there was none to find; `reason` says in words
    what happened. `found` is how many there were of whom none took the task.
    """

    def __init__(self, capability: str, *, complete: bool, reason: str, found: int = 0) -> None:
        nobody = (
            f"nobody took the task for {capability!r}, of {found} found"
            if found
            else f"no agent found for {capability!r}"
        )
        super().__init__(f"{nobody}: {reason}")
        self.capability = capability
        self.complete = complete
        self.reason = reason
        self.found = found


class DelegationExhausted(CallError):
    """A task that arrived here may not be passed on. `reason` is `no_hops` or `no_budget`; nobody was asked.

    A handler that lets it pass refuses its task in these words.
    """


class DescriptorDiffers(SynapseError):
    """What an agent says of a capability is not what its signed record claims: `difference` says in a word what is
    other (an `agents.claim.Difference`).
    """

    def __init__(self, capability: str, difference: str) -> None:
        super().__init__(f"its description of {capability!r} is not what its record claims: {difference}")
        self.capability = capability
        self.difference = difference


class RecordRefused(SynapseError):
    """A record is refused. `reason` is the word that travels (a `records.Refusal`); the text never does."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(f"{reason}: {text}" if text else str(reason))
        self.reason = reason


class StoreDamaged(SynapseError):
    """Saved records cannot be used: they are damaged, or of a later release. The text says which."""
