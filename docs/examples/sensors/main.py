"""Three sensors that measure by themselves, and a warden that hears of what is too hot; ends after the first alarm."""

import asyncio
from contextlib import AsyncExitStack

from dht import Swarm
from sensor import Sensor
from warden import Warden

SECONDS = 30.0
"""Patience: the oven is too hot after some readings, in well under a second."""


async def main() -> None:
    warden = Warden()
    cellar, roof, oven = Sensor("cellar", start=11.0), Sensor("roof", start=24.0, rise=0.01), Sensor("oven", start=60.0)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Swarm(warden, listen="127.0.0.1:0"))
        for sensor in (cellar, roof, oven):
            await stack.enter_async_context(Swarm(sensor, bootstrap=first.status().listening))

        oven.rise = 9.0  # somebody switches it on
        async with asyncio.timeout(SECONDS):
            alarm = await warden.alarms.get()
        print(f"alarm: {alarm.room} is at {alarm.celsius:.0f} degrees, and {alarm.limit:.0f} is the limit")

        you = await stack.enter_async_context(Swarm(bootstrap=first.status().listening))
        print("sensors:", *sorted(found.name for found in await you.find("sensor/temperature")))
        print("hot:", *(found.name for found in await you.find("sensor/temperature", where={"state": "hot"})))
        cool = await you.find("sensor/temperature", where={"state": "fine", "floor": {"<": 0}})
        print("below ground, and fine:", *(found.name for found in cool))
        for found in cool:
            print(f"{found.name} measured {(await found.call('latest'))['celsius']:.0f} degrees last")


asyncio.run(main())
