"""The scenarios by name."""

from simulations.scenarios.agents_churn import CHURN as AGENTS_CHURN
from simulations.scenarios.agents_crowd import CROWD as AGENTS_CROWD
from simulations.scenarios.agents_hostile import HOSTILE as AGENTS_HOSTILE
from simulations.scenarios.agents_samples import SAMPLES as AGENTS_SAMPLES
from simulations.scenarios.base import Outcome, Scenario, Settings
from simulations.scenarios.churn import CHURN
from simulations.scenarios.faults import FAULTS
from simulations.scenarios.lookups import LOOKUPS
from simulations.scenarios.overlay_churn import CHURN as OVERLAY_CHURN
from simulations.scenarios.overlay_churn import FLASH_CROWD, MASSACRE, PARTITION, ROLLING
from simulations.scenarios.overlay_faults import OVERLAY_FAULTS
from simulations.scenarios.overlay_hostile import HOSTILE, RESTART, SYBILS
from simulations.scenarios.planted import PLANTED
from simulations.scenarios.steps import STEPS

_OVERLAY = (OVERLAY_CHURN, MASSACRE, PARTITION, FLASH_CROWD, ROLLING, HOSTILE, SYBILS, RESTART, OVERLAY_FAULTS)
_AGENTS = (AGENTS_CROWD, AGENTS_CHURN, AGENTS_HOSTILE, AGENTS_SAMPLES)
SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (LOOKUPS, STEPS, CHURN, FAULTS, *_OVERLAY, *_AGENTS, *PLANTED)
}

__all__ = ["SCENARIOS", "Outcome", "Scenario", "Settings"]
