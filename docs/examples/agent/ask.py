"""Look at an agent, then give it a task."""

import asyncio

from synapse_p2p import Client, RemoteError

DIFF = """\
-    return a - b
+    print("here")
+    return a + b
"""


async def main() -> None:
    lead = Client(port=9996)

    info = await lead.call("_agent.info")
    print(f"{info['name']} is a {info['role']}: {info['description']}")
    for capability in await lead.call("_agent.capabilities"):
        print(f"  can do {capability['name']}, needs {capability['input_schema']['required']}")

    decision = await lead.call("_agent.ask", "Fix the sum", {"diff": DIFF})
    print("merge it?", decision["merge"], "- says", decision["reviewed_by"], decision["findings"])
    decision = await lead.call("_agent.ask", "Fix the sum, again", {"diff": DIFF.replace('+    print("here")\n', "")})
    print("merge it?", decision["merge"], "- says", decision["reviewed_by"], decision["findings"])

    try:
        await Client(port=9997).call("_agent.ask", "Review nothing", {})
    except RemoteError as error:
        print("refused:", error)


asyncio.run(main())
