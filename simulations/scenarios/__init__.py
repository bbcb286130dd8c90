"""The scenarios by name."""

from simulations.scenarios.base import Outcome, Scenario, Settings
from simulations.scenarios.churn import CHURN
from simulations.scenarios.faults import FAULTS
from simulations.scenarios.lookups import LOOKUPS
from simulations.scenarios.planted import PLANTED

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (LOOKUPS, CHURN, FAULTS, *PLANTED)}

__all__ = ["SCENARIOS", "Outcome", "Scenario", "Settings"]
