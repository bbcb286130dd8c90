from dht.exceptions import IdentityRevoked, JoinFailed, NoAgentFound, RecordRefused, StoreDamaged
from dht.records import Refusal
from synapse_p2p.exceptions import ConfigError, SynapseError


def test_errors_carry_their_facts():
    join = JoinFailed({"10.0.0.1:1": "no answer"})
    nobody = NoAgentFound("python", complete=False, reason="the network is cut")
    refused = RecordRefused(Refusal.WRONG_KEY, "depth 3")

    assert join.report == {"10.0.0.1:1": "no answer"}
    assert (nobody.capability, nobody.complete, nobody.reason) == ("python", False, "the network is cut")
    assert refused.reason == "wrong_key"
    assert str(refused) == "wrong_key: depth 3"
    assert str(RecordRefused(Refusal.FULL)) == "full"
    assert all(isinstance(error, SynapseError) for error in (join, nobody, refused, StoreDamaged("why")))


def test_a_revoked_identity_says_what_happened_and_what_to_do():
    kept = IdentityRevoked(bytes(32), key_folder="/home/ann/reviewer")
    given = IdentityRevoked(bytes(32))

    assert isinstance(kept, ConfigError)
    assert kept.node_id == bytes(32)
    assert str(kept).endswith("as somebody new, move /home/ann/reviewer/node.key away")
    assert str(given).endswith("as somebody new, give it another identity=")
