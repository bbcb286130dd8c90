"""Who hears the alarms. There may be several: a sensor tells one that is there."""

import asyncio

from sensor import Reading
from synapse_p2p import AgentNode, CallError

MAX_ALARMS = 100


class Warden(AgentNode):
    """Keeps alarms until somebody takes them."""

    def __init__(self) -> None:
        super().__init__(name="Wanda", role="warden", capabilities=["warden"])
        self.alarms: asyncio.Queue[Reading] = asyncio.Queue(MAX_ALARMS)
        self.task_handler(self.hear)

    async def hear(self, task: str, context: Reading) -> str:
        """Take an alarm: the reading that was too high, built of the map that the sensor sends, or refused."""
        try:
            self.alarms.put_nowait(context)
        except asyncio.QueueFull:
            raise CallError("too_many", f"{MAX_ALARMS} alarms are waiting here") from None
        return "heard"
