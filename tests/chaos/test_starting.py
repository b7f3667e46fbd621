"""A process that begins to serve while others are in trouble."""

import asyncio

import pytest

from tests import deadlines
from tests.chaos.deployment import Deployment, Node
from tests.chaos.judge import Judge
from tests.chaos.test_resuming import SPEED, START_S, Gathering, leader

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")

HEAL_S = 40.0


async def health_of(node: Node, within_s: float = 20.0) -> dict:
    """What a process says of itself once it answers."""
    async with deadlines.timeout(within_s):
        while (health := await node.health()) is None or health["store"]["state"] == "unavailable":
            await asyncio.sleep(0.1)
    return health


async def test_a_process_that_starts_while_the_leaders_database_is_down_sends_nothing_wrong_as_final(tmp_path):
    """No process can read minutes that the leader cannot store; charts show them once they are stored."""
    async with Deployment(tmp_path, ingest=1, serve=2, speed=SPEED) as deployment:
        late = next(node for node in deployment.nodes if node.name == "serve1")
        deployment.nodes = [node for node in deployment.nodes if node.name in ("ingest0", "serve0")]
        for node in deployment.nodes:
            deployment.start(node)
        await Judge(deployment, []).until_right(START_S)
        way = (await leader(deployment)).database
        way.refuse()
        way.reset_existing()
        await deployment.minutes(4)
        deployment.start(late)
        deployment.nodes.append(late)
        await health_of(late)
        together = Gathering(deployment)
        try:
            await together.begin()
            await deployment.minutes(1)
            assert (await health_of(late))["bars"]["catchingUp"] == len(deployment.symbols)
            way.refuse(False)
            await together.judge.until_right(HEAL_S)
            wrong = together.judge.misbehaved()
            assert not wrong, "\n".join(wrong)
        finally:
            await together.end()
