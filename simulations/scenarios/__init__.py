"""The scenarios by name."""

from simulations.scenarios.base import Outcome, Scenario, Settings
from simulations.scenarios.lookups import LOOKUPS

SCENARIOS: dict[str, Scenario] = {LOOKUPS.name: LOOKUPS}

__all__ = ["SCENARIOS", "Outcome", "Scenario", "Settings"]
