"""Whether a task, and the answer to it, fit what an agent says it can do: the schemas of its capabilities.

A task does not name the capability it is for. So it has to fit the input schema of at least one, and the answer the
output schema of at least one of those; with a single capability that is simply its two schemas. An input schema speaks
of the context, which is a map; one whose `type` is no object speaks of the task itself. An empty schema allows
everything, and so does a missing library: checks need the extra `schema`. Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synapse_p2p.capability import AgentCapability
from synapse_p2p.exceptions import InvalidMessageError, SynapseError
from synapse_p2p.schema import Check, can_check, check_of, dump
from synapse_p2p.shapes import Json, Misfit


class TaskChecks:
    """The checks of an agent's tasks, made once for the schemas that its capabilities have at the time."""

    def __init__(self, capabilities: Sequence[AgentCapability]) -> None:
        """Raises ConfigError for a schema that is none, where the library is installed."""
        # A copy: users change a capability in place, and a check is too dear to be made for each task.
        self._schemas = copy.deepcopy(_schemas_of(capabilities))
        has_schemas = any(map(any, self._schemas))
        self._checks = [_checks_of(capability) for capability in capabilities] if has_schemas and can_check() else []

    def are_of(self, capabilities: Sequence[AgentCapability]) -> bool:
        """Whether these capabilities still have the schemas that are checked. Cost: a comparison of the schemas."""
        return self._schemas == _schemas_of(capabilities)

    def check_task(self, task: Any, context: dict[str, Any]) -> list[Check]:
        """The checks of which the answer has to pass one; none where it may be anything.

        Raises InvalidMessageError for a task that fits no capability.
        """
        subjects = {"task": task, "context": context}
        complaints: list[str] = []
        fitting: list[Check | None] = []
        for checks in self._checks:
            try:
                if checks.input is not None:
                    checks.input(subjects[checks.subject])
            except Misfit as misfit:
                complaints.append(f"parameter '{checks.subject}{misfit.path}' {misfit.problem}")
            else:
                fitting.append(checks.output)
        if complaints and not fitting:
            several = "the task fits the input schema of no capability here"
            raise InvalidMessageError(complaints[0] if len(complaints) == 1 else several)
        wanted = [check for check in fitting if check is not None]
        return wanted if len(wanted) == len(fitting) else []


def check_answer(answer: Any, checks: Sequence[Check]) -> Any:
    """The answer as it travels. Raises SynapseError, which the asker is not shown, where it passes no check."""
    answer = dump(answer)
    misfits = []
    for check in checks:
        try:
            check(answer)
        except Misfit as misfit:
            misfits.append(misfit)
        else:
            return answer
    raise SynapseError(f"answer{misfits[0].path} {misfits[0].problem}") from misfits[0]


@dataclass(frozen=True, slots=True)
class _CapabilityChecks:
    """Those of one capability; `subject` is what its input schema speaks of, `task` or `context`."""

    subject: str
    input: Check | None
    output: Check | None


def _checks_of(capability: AgentCapability) -> _CapabilityChecks:
    def check(schema: Json, side: str) -> Check | None:
        return check_of(schema, name=f"capability {capability.name!r} ({side})") if schema else None

    return _CapabilityChecks(
        subject=_subject_of(capability.input_schema),
        input=check(capability.input_schema, "input"),
        output=check(capability.output_schema, "output"),
    )


def _subject_of(input_schema: Json) -> str:
    types = input_schema.get("type", "object") if isinstance(input_schema, dict) else "object"
    return "context" if "object" in ([types] if isinstance(types, str) else types) else "task"


def _schemas_of(capabilities: Sequence[AgentCapability]) -> list[tuple[Json, Json]]:
    return [(capability.input_schema, capability.output_schema) for capability in capabilities]
