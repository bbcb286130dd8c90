"""`python -m synapse_p2p`: the commands."""

from synapse_p2p.apps.cli.entry import main

main()
