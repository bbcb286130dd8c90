from __future__ import annotations

from synapse_p2p.messages import RemoteProcedureCall, RPCRequest, RPCResponse


def test_the_old_name_of_a_request_still_makes_one():
    call = RemoteProcedureCall(endpoint="ping")

    assert isinstance(call, RPCRequest)
    assert (call.endpoint, call.id, call.args, call.kwargs, call.type) == ("ping", "", [], {}, "request")


def test_requests_do_not_share_their_arguments():
    first, second = RPCRequest(endpoint="a"), RPCRequest(endpoint="b")

    first.args.append(1)
    first.kwargs["x"] = 1

    assert second.args == []
    assert second.kwargs == {}


def test_a_response_has_neither_result_nor_error_unless_told():
    response = RPCResponse(id="abc", ok=True)

    assert (response.result, response.error, response.type) == (None, None, "response")
