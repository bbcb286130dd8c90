"""What the errors of this package say."""

import pytest

from synapse_p2p.exceptions import RemoteError


def test_an_unknown_endpoint_is_answered_with_the_nearest_name():
    error = RemoteError("not_found", "no endpoint is named 'ad'", details={"nearest": "add"})

    assert str(error) == "no endpoint is named 'ad'; did you mean 'add'?"
    assert error.message == "no endpoint is named 'ad'"


@pytest.mark.parametrize("code", ["failed", "not_found"])
@pytest.mark.parametrize("nearest", [None, 7, ["add"]])
def test_a_peer_s_details_are_offered_as_a_name_only_where_they_are_one(code: str, nearest: object):
    assert str(RemoteError(code, "no", details={"nearest": nearest})) == "no"
    assert str(RemoteError("failed", "no", details={"nearest": "a station"})) == "no"


def test_the_name_that_a_peer_offers_is_cut_and_cannot_reach_a_terminal():
    error = RemoteError("not_found", "no", details={"nearest": "\x1b[31m" + 1000 * "x"})

    assert "\x1b" not in str(error)
    assert len(str(error)) < 120
