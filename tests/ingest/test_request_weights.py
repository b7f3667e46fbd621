"""Weights that depend on the request, one budget for all of them, and a header with the weight in use."""

import asyncio
from typing import ClassVar

import pytest
from tornado.web import RequestHandler

from candled import ExchangeError, RequestBudget, Unavailable
from candled.budget import LocalBudgets
from candled.budget_file import BudgetFile
from candled.clock import SystemClock
from candled.ingest.http import HttpClient
from candled.token_bucket import TokenBucket
from tests import deadlines
from tests.clocks import ManualClock
from tests.plugins.local import web_server

BUDGETS = {
    "weight": RequestBudget(limit=6000, used_header="X-MBX-USED-WEIGHT-1M"),
    "history": RequestBudget(limit=40, period_s=2, remaining_header="Remaining"),
}


# ---------------------------------------------------------------- weights and used weights


class Counting(RequestHandler):
    """Answers with headers that a test sets."""

    headers: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[str]] = []

    def get(self) -> None:
        Counting.asked.append(self.request.path)
        for name, value in self.headers.items():
            self.set_header(name, value)
        self.finish("[]")


async def test_a_budget_that_the_plugin_does_not_declare_is_an_error():
    http = HttpClient(SystemClock(), 10.0, budgets=BUDGETS)
    with pytest.raises(ExchangeError, match="expected a budget of weight, history, got wait"):
        await http.get_json("http://127.0.0.1:1/", budget="wait")
    http.close()


@pytest.mark.parametrize(
    ("budget", "headers", "is_paused"),
    [
        ("weight", {}, False),
        ("weight", {"X-MBX-USED-WEIGHT-1M": "5399"}, False),
        ("weight", {"x-mbx-used-weight-1m": "5400"}, True),
        ("weight", {"X-MBX-USED-WEIGHT-1M": "1e999"}, True),
        ("weight", {"X-MBX-USED-WEIGHT-1M": "nan"}, False),
        ("weight", {"X-MBX-USED-WEIGHT-1M": "many"}, False),
        ("weight", {"X-MBX-USED-WEIGHT-1M": "-7"}, False),
        ("history", {"Remaining": "5"}, False),
        ("history", {"Remaining": "4"}, True),
        ("history", {"X-MBX-USED-WEIGHT-1M": "6000"}, False),
    ],
)
async def test_a_budget_waits_for_the_next_period_if_the_exchange_reports_that_it_is_used(
    budget, headers, is_paused, monkeypatch
):
    monkeypatch.setattr(Counting, "headers", headers)
    made: dict[str, object] = {}
    budgets = LocalBudgets(SystemClock())

    def make(name: str, rate: float):
        made[name.partition("/")[2]] = budgets.budget(name, rate)
        return budgets.budget(name, rate)

    http = HttpClient(SystemClock(), 10.0, make, budgets=BUDGETS)
    async with web_server(("/", Counting)) as url:
        await http.get_json(f"{url}/", weight=20, budget=budget)
    http.close()
    closed_s = made[budget].closed_for()
    assert (closed_s > 0) is is_paused
    assert closed_s <= BUDGETS[budget].period_s
    assert made[""].closed_for() == 0.0  # other requests of the host go on


async def test_a_host_that_asks_for_silence_closes_all_its_budgets():
    class Refusing(RequestHandler):
        def get(self) -> None:
            self.set_header("Retry-After", "30")
            self.send_error(429)

    budgets = LocalBudgets(SystemClock())
    http = HttpClient(SystemClock(), 10.0, budgets.budget, budgets=BUDGETS)
    async with web_server(("/", Refusing)) as url:
        with pytest.raises(Unavailable):
            await http.get_json(f"{url}/", budget="history")
        for budget in ("", "weight", "history"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await http.get_json(f"{url}/", budget=budget)
    http.close()


async def test_a_plugin_can_pause_a_host_that_refuses_in_its_own_way():
    """As Bybit does with 10006, and Kraken with `EAPI:Rate limit exceeded`, with status 200."""
    http = HttpClient(SystemClock(), 10.0)
    async with web_server(("/", Counting)) as url:
        await http.get_json(f"{url}/")
        http.pause_requests(f"{url}/other", 600)
        (host,) = http.describe().values()
    http.close()
    assert 590 < host["closedForSeconds"] <= 600


# ---------------------------------------------------------------- weights of all kinds of budgets


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_weights_add_up_to_the_rate(kind, tmp_path):
    clock = ManualClock()
    make = LocalBudgets(clock).budget if kind == "memory" else BudgetFile(tmp_path / "budget", clock).budget
    spent, budgets = 0.0, [make("host/weight", 20.0), make("host/weight", 20.0)]

    async def ask(budget, weight: float) -> None:
        nonlocal spent
        while True:
            await budget.acquire(weight)
            spent += weight

    tasks = [asyncio.ensure_future(ask(one, weight)) for one, weight in zip(budgets, (80.0, 3.0), strict=True)]
    for _ in range(600):
        await clock.advance(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert 20 * 60 * 0.85 <= spent <= 20 * 61 + 80


async def test_a_weight_of_nothing_waits_only_while_a_host_is_closed(tmp_path):
    clock = ManualClock()
    for budget in (LocalBudgets(clock).budget("host", 1.0), BudgetFile(tmp_path / "budget", clock).budget("host", 1.0)):
        for _ in range(50):
            await budget.acquire(0.0)
        assert budget.remaining_share() == 1.0
        await budget.acquire()
        await deadlines.wait_for(clock_runs(clock, budget.acquire(0.0)), 5)
        budget.close_for(5.0)
        waiting = asyncio.ensure_future(budget.acquire(0.0))
        await clock.advance(4.0)
        assert not waiting.done()
        await clock.advance(2.0)
        await waiting


async def clock_runs(clock: ManualClock, work) -> None:
    """Do work that must not have to wait."""
    task = asyncio.ensure_future(work)
    await clock.advance(0.0)
    assert task.done()


def test_a_weight_above_the_burst_is_paid_for_by_the_next_taker():
    bucket = TokenBucket(20.0)
    assert bucket.try_take(0.0, 80.0) == 0.0
    assert bucket.try_take(0.0, 80.0) == pytest.approx(4.0)
    assert bucket.try_take(2.9) > 0.0
    assert bucket.try_take(3.1) == 0.0
