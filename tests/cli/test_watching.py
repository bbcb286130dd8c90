"""What has happened between two looks at a node."""

from __future__ import annotations

from typing import Any

from synapse_p2p.apps.cli.blocks import Tone, plain_text
from synapse_p2p.apps.cli.watching import MAX_AGENTS_SHOWN, MAX_HAPPENINGS, Watched, happening_line, view_of_watched


def status(calls: int = 0) -> dict[str, Any]:
    return {
        "id": "aa" * 32,
        "uptime_s": 61.0,
        "contacts": 2,
        "suspects": 1,
        "sessions": 2,
        "calls_served": calls,
        "size_estimate": 3.4,
        "agent": {"name": "Rita", "running": 1, "max_tasks": 8, "waiting": 0},
    }


def agent(number: int, *capabilities: str, is_known: bool = True) -> dict[str, Any]:
    return {
        "id": f"{number:064x}",
        "name": f"agent{number}",
        "role": "coder",
        "capabilities": list(capabilities),
        "addresses": ["127.0.0.1:1"],
        "age_s": 5.0,
        "is_known": is_known,
    }


def words(happened: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["event"], each["name"]) for each in happened]


def test_the_first_look_finds_who_is_there_and_counts_no_calls():
    watched = Watched()

    happened = watched.on_look(status(calls=7), [agent(1, "python")], [])

    assert words(happened) == [("watching", "Rita"), ("agent", "agent1")]


def test_later_looks_tell_of_what_is_new():
    watched = Watched()
    watched.on_look(status(calls=7), [agent(1, "python"), agent(2, "docs")], [])
    events = [{"event": "left", "id": agent(2)["id"]}, {"event": "stored", "id": agent(3)["id"]}]

    happened = watched.on_look(status(calls=9), [agent(1, "python", "coding"), agent(3, "art")], events)

    assert words(happened) == [
        ("left", "agent2"),
        ("agent", "agent1"),
        ("agent", "agent3"),
        ("gone", "agent2"),
        ("calls", ""),
    ]
    assert happened[-1]["count"] == 2
    assert watched.on_look(status(calls=9), [agent(1, "python", "coding"), agent(3, "art")], []) == []


def test_the_screen_shows_agents_and_what_happened_last():
    watched = Watched()
    watched.on_look(status(), [agent(1, "python")], [])
    watched.on_look(status(), [agent(1, "python"), agent(2, "docs", is_known=False)], [])

    shown = plain_text(view_of_watched(watched)).splitlines()

    assert shown[0] == "Rita aaaaaaaaaaaaaaaa, up 1 min, in a network of about 3 nodes"
    assert shown[1] == "2 contacts, 1 of whom failed lately; 2 sessions; 0 calls served"
    assert shown[2] == "tasks: 1 of 8 running, 0 waiting"
    assert [line.split()[0] for line in shown[3:6]] == ["NAME", "agent1", "agent2"]
    assert shown[5].endswith("silent")
    assert shown[-2:] == ["Rita aaaaaaaaaaaaaaaa is watched", "agent2 0000000000000000 offers docs"]


def test_a_crowd_does_not_fill_the_screen():
    watched = Watched()
    crowd = [agent(number, "python") for number in range(MAX_AGENTS_SHOWN + 5)]
    watched.on_look(status(), [], [])
    watched.on_look(status(), crowd, [])

    shown = plain_text(view_of_watched(watched)).splitlines()

    assert "and 5 more" in shown
    assert len(shown) == 3 + 1 + MAX_AGENTS_SHOWN + 1 + 1 + MAX_HAPPENINGS


def test_each_event_has_its_words_and_one_of_a_later_release_is_shown_as_it_is():
    assert happening_line({"event": "left", "id": "ab" * 32, "name": "Olga"}).tone is Tone.BAD
    assert happening_line({"event": "calls", "id": "", "name": "", "count": 3}).text == "3 calls served"
    assert happening_line({"event": "disconnected", "id": "", "name": ""}).text.startswith("nearly nobody answers")
    assert happening_line({"event": "merged", "id": "", "name": ""}).text == "merged"
