"""A sensor: it measures on a schedule, says in its record how it is, and calls for help when it has to."""

import logging
from dataclasses import asdict, dataclass

from dht import NoAgentFound, Swarm
from synapse_p2p import AgentCapability, AgentNode, SynapseError

logger = logging.getLogger(__name__)

PERIOD_S = 0.05  # of a real one: a minute
LIMIT = 90.0
FLOORS = {"cellar": -1, "oven": 0, "roof": 3}


@dataclass
class Reading:
    """One look at the thermometer."""

    room: str
    celsius: float
    limit: float = LIMIT

    @property
    def state(self) -> str:
        return "hot" if self.celsius > self.limit else "fine"


class Sensor(AgentNode):
    """Measures one room. `rise` is what each reading adds: there is no thermometer in an example."""

    def __init__(self, room: str, *, start: float, rise: float = 0.0) -> None:
        super().__init__(name=room, role="sensor", capabilities=[_capability(room, "fine")])
        self.reading = Reading(room, start)
        self.rise = rise
        self.is_heard = False  # the alarm, since it is hot
        self.background(PERIOD_S, jitter=PERIOD_S / 5)(self.measure)
        self.endpoint("latest")(self.latest)

    async def latest(self) -> Reading:
        """The latest reading."""
        return self.reading

    async def measure(self) -> None:
        """A new reading. Only a change of state is told to others: a record is for what they search by."""
        before, self.reading = self.reading, Reading(self.name, self.reading.celsius + self.rise)
        if self.reading.state != before.state:
            self.is_heard = False
            await self.set_capabilities([_capability(self.name, self.reading.state)])
        if self.reading.state == "hot" and not self.is_heard:
            self.is_heard = await self.raise_alarm()

    async def raise_alarm(self) -> bool:
        """Whether somebody who watches has heard it; if not, the next reading tries again."""
        swarm: Swarm = self.swarm
        try:
            await swarm.ask("warden", "too hot", context=asdict(self.reading), timeout=10)
        except NoAgentFound:
            logger.warning("%s is too hot, and nobody watches", self.name)
        except SynapseError as error:
            logger.warning("%s is too hot, and was not heard: %s", self.name, error)
        else:
            return True
        return False


def _capability(room: str, state: str) -> AgentCapability:
    return AgentCapability("sensor/temperature", attributes={"state": state, "floor": FLOORS[room]})
