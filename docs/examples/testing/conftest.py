"""Gives the tests beside it the fixture `swarm`, and pytest the options --seed and --seeds."""

pytest_plugins = ["synapse_p2p.testing"]
