"""Why a node cannot be found, from what it says of itself and what others say of it. Pure.

Each check is one line for people, and where something is wrong, what to type or do next. A healthy node has no warning:
what cannot be judged, as that of a first node that knows nobody, is skipped and not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from synapse_p2p.transport.base import is_loopback, parse_address

PROGRAM = "PROGRAM"
"""Stands for the program's name in what to do next."""
MAX_CLOCK_ERROR_S = 30.0
"""As `HealthConfig.max_clock_error_s`: a tenth of what records bear."""
MAX_SUSPECT_SHARE = 0.5
"""Of the contacts; at a quarter a node looks around by itself, at half of them something is wrong here."""
STALL_REMEMBERED_S = 600.0
"""A stall of longer ago is history."""
REFUSALS_IN_WORDS = {
    "expired": "it had expired when it came: this machine's clock is behind",
    "from_the_future": "it was signed in the future: this machine's clock is ahead",
    "full": "their stores are full",
    "owner_quota": "this owner has as many records there as one may have",
    "group_quota": "the addresses near this one have as many records there as a group may have",
    "unseen_quota": "nobody saw this node at the address that its record names",
    "stale": "they hold a newer record of this key: another process runs with it",
    "wrong_network": "they are in another network",
}


class State(StrEnum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `next` says what to do, where there is something: commands of ours begin with
    `PROGRAM` there.
    """

    name: str
    state: State
    text: str
    next: str = ""

    def as_map(self, program: str) -> dict[str, str]:
        """For programs, and for views. `program` is the name that was called."""
        following = self.next.replace(PROGRAM, program)
        return {"name": self.name, "state": self.state.value, "text": self.text, "next": following}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What others say. `offsets_s` are how far this machine's clock is ahead of each peer's; `own_dial` is why our own
    advertised address does not answer, empty where it does, None where none was dialed; `asked` peers were asked whom
    they know at our id, and `naming` of them named us. `is_found` says whether a search for the first capability of the
    agent comes to it; None where there is none.
    """

    offsets_s: tuple[float, ...] = ()
    own_dial: str | None = None
    asked: int = 0
    naming: int = 0
    is_found: bool | None = None


def diagnose(status: Mapping[str, Any], evidence: Evidence) -> list[Check]:
    """All checks of a node that answers its operator; `status` is what `_swarm.status` answers."""
    return [
        _clock(status, evidence),
        _address(status),
        *_seeds(status),
        _table(status),
        _reachability(status, evidence),
        *_record(status, evidence),
        _loop(status),
    ]


def diagnose_client(pid: int, name: str) -> list[Check]:
    """Those of a node that listens nowhere."""
    who = f"{name or 'the node'} (process {pid})"
    return [
        Check(
            "address",
            State.FAILED,
            f"{who} listens nowhere, so nobody can call it: it was told to listen on loopback, and its seeds are "
            "elsewhere",
            "PROGRAM up --listen 0.0.0.0:0 --seed HOST:PORT",
        )
    ]


def diagnose_silent(pid: int, name: str, address: str, error: str) -> list[Check]:
    """Those of a node that does not answer its operator."""
    who = f"{name or 'the node'} (process {pid})"
    return [
        Check(
            "loop",
            State.FAILED,
            f"{who} runs and does not answer at {address} ({error}): a function blocks its loop, or it is stopped",
            f"py-spy dump --pid {pid}, or kill {pid} and PYTHONASYNCIODEBUG=1 PROGRAM up",
        )
    ]


def diagnose_seeds(seeds: Sequence[Mapping[str, Any]]) -> list[Check]:
    """How seeds took us that were named to the command itself."""
    return [_seed(seed) for seed in seeds]


def is_healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing has failed."""
    return all(check.state is not State.FAILED for check in checks)


def _clock(status: Mapping[str, Any], evidence: Evidence) -> Check:
    ahead_s = status["clock_ahead_s"]
    if ahead_s is None and evidence.offsets_s:
        ahead_s = median(evidence.offsets_s)
    if ahead_s is None:
        return Check("clock", State.SKIPPED, "no peer to compare it with")
    if abs(ahead_s) > MAX_CLOCK_ERROR_S:
        direction = "ahead of" if ahead_s > 0 else "behind"
        return Check(
            "clock",
            State.FAILED,
            f"this machine's clock is {abs(ahead_s):.0f} s {direction} those of its peers: what it signs is refused "
            "or expires early",
            "timedatectl set-ntp true, or set the clock by hand",
        )
    return Check("clock", State.OK, f"within {max(1, round(abs(ahead_s)))} s of its peers")


def _address(status: Mapping[str, Any]) -> Check:
    listening, advertised = status["listening"], status["advertised"]
    if not listening:
        return Check("address", State.FAILED, "it listens nowhere: nobody can call it", "PROGRAM up --listen 0.0.0.0:0")
    if not advertised:
        return Check(
            "address",
            State.SKIPPED if not status["seeds_tried"] else State.WARNING,
            "no peer has told it yet as which address it is seen",
            "PROGRAM up --advertise IP:PORT" if status["seeds_tried"] else "",
        )
    is_local = all(is_loopback(parse_address(address)[0]) for address in listening)
    seeds_elsewhere = [seed["address"] for seed in status["seeds"] if not _is_local(seed["address"])]
    if is_local and seeds_elsewhere:
        return Check(
            "address",
            State.FAILED,
            f"it listens on loopback alone, and its seed {_without_id(seeds_elsewhere[0])} is elsewhere: no other "
            "machine reaches it",
            f"PROGRAM up --listen 0.0.0.0:0 --seed {_without_id(seeds_elsewhere[0])}",
        )
    where = f"{', '.join(advertised)}"
    return Check("address", State.OK, f"{where}{', for this machine alone' if is_local else ''}")


def _seeds(status: Mapping[str, Any]) -> list[Check]:
    if not status["seeds"]:
        return [Check("seeds", State.OK, "none: a first node, through which others join")]
    return [_seed(seed) for seed in status["seeds"]]


def _seed(seed: Mapping[str, Any]) -> Check:
    shown, state = _without_id(seed["address"]), seed["state"]
    text = seed["text"].removeprefix(f"{shown} ")
    if state in ("joined", "ourselves"):
        return Check("seeds", State.OK, f"{shown}: {text or state}")
    if "another network" in text:
        following = "PROGRAM up --network NAME, as `PROGRAM status` shows it there"
    elif state == "refused" and "busy" not in text:
        following = "PROGRAM id network --network-key-file FILE, here and there: the fingerprints have to be the same"
    elif state == "not ours":
        following = f"PROGRAM call {shown} _synapse.info"
    else:
        following = f"PROGRAM up there, or name another seed; PROGRAM call {shown} _synapse.ping says when it is back"
    return Check("seeds", State.FAILED, f"{shown}: {text or state}", following)


def _table(status: Mapping[str, Any]) -> Check:
    contacts, suspects = status["contacts"], status["suspects"]
    if not contacts:
        if not status["seeds_tried"]:
            return Check("table", State.SKIPPED, "nobody has joined it yet")
        if not is_healthy(_seeds(status)):
            return Check("table", State.SKIPPED, "it knows nobody, for no seed let it in")  # the cause is said above
        return Check("table", State.FAILED, "it knows nobody", "PROGRAM status, and what is said of the seeds")
    if not status["is_connected"]:
        return Check(
            "table",
            State.FAILED,
            f"nearly none of its {contacts} contacts answers: is this machine's network down?",
            "PROGRAM peers, and ping the address of one of them",
        )
    if suspects > MAX_SUSPECT_SHARE * contacts:
        return Check("table", State.WARNING, f"{suspects} of {contacts} contacts failed lately", "PROGRAM peers")
    return Check("table", State.OK, f"{contacts} contacts, {suspects} of whom failed lately")


def _reachability(status: Mapping[str, Any], evidence: Evidence) -> Check:
    address = next(iter(status["advertised"]), "")
    port = parse_address(address)[1] if address else 0
    if evidence.own_dial:
        return Check(
            "reachability",
            State.FAILED,
            f"nobody answers at {address}, which is told to others ({evidence.own_dial}): the port is not published "
            "or the address is another machine's",
            f"PROGRAM up --advertise IP:PORT, or publish the port (docker run -p {port}:{port})",
        )
    if not evidence.asked:
        return Check("reachability", State.SKIPPED, "there is no peer to ask")
    if not evidence.naming:
        return Check(
            "reachability",
            State.FAILED,
            f"none of {evidence.asked} peers could dial {address or 'it'}: a firewall keeps them out",
            f"open port {port}/tcp for incoming connections, then PROGRAM doctor",
        )
    return Check("reachability", State.OK, f"{evidence.naming} of {evidence.asked} peers asked can dial {address}")


def _record(status: Mapping[str, Any], evidence: Evidence) -> list[Check]:
    record = status["record"]
    if record is None:
        return [Check("record", State.SKIPPED, "no agent, so there is nothing to find")]
    expires_in_s, kept = record["expires_in_s"], record["capabilities"]
    if not status["agent"]["capabilities"]:
        return [
            Check("record", State.WARNING, "the agent offers nothing", "AgentNode(capabilities=[...]), then PROGRAM up")
        ]
    if record["is_revoked"]:
        return [
            Check(
                "record",
                State.FAILED,
                "its key was revoked for good: other nodes keep nothing that it signs",
                "move its node.key away (PROGRAM id says where), then PROGRAM up, as somebody new",
            )
        ]
    if expires_in_s is None:
        return [
            Check("record", State.FAILED, "not published yet: it has joined nobody", "PROGRAM doctor, in a few seconds")
        ]
    if expires_in_s <= 0:
        return [
            Check(
                "record",
                State.FAILED,
                f"its lease ended {-expires_in_s:.0f} s ago and was not renewed: nobody finds it",
                "PROGRAM up, again; a clock that was set or a loop that was blocked does this",
            )
        ]
    if status["seeds_tried"] and not status["contacts"]:
        return [Check("record", State.SKIPPED, "kept by this node alone, as long as it knows nobody")]
    refused = [each for each in kept if not each["is_kept"]]
    if refused:
        words = dict.fromkeys(word for each in refused for word in each["refusals"])
        reasons = "; ".join(REFUSALS_IN_WORDS.get(word, word) for word in words) or "nobody answered"
        names = ", ".join(each["name"] for each in refused)
        return [
            Check(
                "record",
                State.FAILED,
                f"nobody keeps it under {names}: {reasons}",
                "PROGRAM peers, then PROGRAM doctor",
            )
        ]
    names = f"{len(kept)} name{'' if len(kept) == 1 else 's'}"
    checks = [Check("record", State.OK, f"kept under {names}, {expires_in_s / 60:.0f} min left")]
    first = status["agent"]["capabilities"][0]
    if evidence.is_found is False:
        checks.append(
            Check(
                "search", State.FAILED, f"a search for {first} does not come to it", f"PROGRAM find {first} --explain"
            )
        )
    elif evidence.is_found:
        checks.append(Check("search", State.OK, f"a search for {first} comes to it"))
    return checks


def _loop(status: Mapping[str, Any]) -> Check:
    stall = status["last_stall"]
    if stall is None or stall["ago_s"] > STALL_REMEMBERED_S:
        return Check("loop", State.OK, "not blocked lately")
    who = stall["blocked_by"]
    return Check(
        "loop",
        State.WARNING,
        f"nothing ran in it for {stall['stalled_s']:.1f} s, {stall['ago_s']:.0f} s ago: "
        + (f"{who} blocked its event loop" if who else "something blocked its event loop, or the process was stopped"),
        "let that await what it waits for, or make it a plain function: those run in threads"
        if who
        else "PYTHONASYNCIODEBUG=1 PROGRAM up, and asyncio names what is slow",
    )


def _is_local(address: str) -> bool:
    return is_loopback(parse_address(_without_id(address))[0])


def _without_id(address: str) -> str:
    return address.rpartition("@")[2]
