"""Three users whose organizations have what analysts ask about, and the truth of it from the simulator.

`acme` has credits, a new price, a new model, a fine-tune, a service account and a restated closed month, and
OpenAI does not split its costs; those of `globex` it does. `initech` has an unknown day.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_simulator import OrganizationSpec, SimulatedOrganization, Simulator, running
from finora_pipeline.openai_simulator.catalog import MODELS, Line, Model
from finora_pipeline.openai_simulator.organization import Cell, SimulatedApiKey
from finora_pipeline.warehouse.database import Warehouse
from tests.conftest import Installation, OpenAI, now_in_the_middle_of_today

USERS = ("acme", "globex", "initech")
PRICES = (Decimal("0.0000003"), Decimal("0.00000015"), Decimal("0.0000012"))
TUNED = Model("ft-gpt-4o-mini-2024-07-18", "ft:gpt-4o-mini-2024-07-18:acme::9x1", *PRICES, 0.3)
NEW_MODEL, DEARER = MODELS[4].name, MODELS[2].name
CREDIT, CORRECTION = "promotional credit", "billing adjustment"


@dataclass(frozen=True, slots=True)
class Charge:
    """A line of a cell: its day, line item, API key, quantity with its unit, and USD."""

    day: date
    line: Line
    key: SimulatedApiKey
    quantity: int
    usd: Decimal
    cell: Cell


def month_before(first: date) -> date:
    return (first - timedelta(days=1)).replace(day=1)


class World:
    """The installation, the moment between its two refreshes, and the simulator's charges at the second."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.openai = installation.openai
        self.today = installation.today
        self.this_month = self.today.replace(day=1)
        self.last_month = month_before(self.this_month)
        self.month_before = month_before(self.last_month)
        self.since = self.month_before
        self.unknown_day = self.last_month + timedelta(days=9)
        self.price_day = self.last_month + timedelta(days=4)
        self.new_model_day = self.last_month + timedelta(days=6)
        self.is_corrected = False
        self.between = datetime.now(UTC)
        self.before: list[Charge] = []

    def days(self, first: date) -> list[date]:
        """The days of a month up to today."""
        count = ((first + timedelta(days=31)).replace(day=1) - first).days
        return [day for day in (first + timedelta(days=n) for n in range(count)) if day <= self.today]

    def known(self, user_id: str) -> list[date]:
        """The days whose costs were fetched."""
        days = [self.since + timedelta(days=n) for n in range((self.today - self.since).days + 1)]
        return [day for day in days if (user_id, day) != ("initech", self.unknown_day)]

    def cells(
        self, user_id: str, days: list[date], now: datetime | None = None
    ) -> Iterator[tuple[date, Cell]]:
        organization = self.openai.organizations[USERS.index(user_id)]
        for day in days:
            for cell in organization.cells(day, now or self.openai.simulator.now):
                yield day, cell

    def charges(self, user_id: str, days: list[date], now: datetime | None = None) -> list[Charge]:
        return [
            Charge(
                day,
                line,
                cell.api_key,
                cell.measures[line.measure],
                cell.measures[line.measure] * line.price,
                cell,
            )
            for day, cell in self.cells(user_id, days, now)
            for line in cell.lines
        ]

    def change(self, organization: SimulatedOrganization) -> None:
        """Give the organization credits, a new price, a new model and, later, a correction."""
        simulated = organization.cells

        def cells(day: date, now: datetime) -> list[Cell]:
            found = [
                cell
                for cell in simulated(day, now)
                if day >= self.new_model_day or not any(NEW_MODEL in line.text for line in cell.lines)
            ]
            if day >= self.price_day:
                found = [replace(cell, lines=tuple(map(dearer, cell.lines))) for cell in found]
            if found and day.day in (3, 17):
                found.append(extra(organization, CREDIT, "-2.5"))
            if found and self.is_corrected and day == self.month_before + timedelta(days=11):
                found.append(extra(organization, CORRECTION, "-0.75"))
            return found

        # In place of the method, as the simulator's answers and its truth call it.
        vars(organization)["cells"] = cells


def dearer(line: Line) -> Line:
    return replace(line, price=line.price * 2) if line.text == f"{DEARER}, output" else line


def extra(organization: SimulatedOrganization, text: str, usd: str) -> Cell:
    """A charge without usage, of the first project."""
    line = Line(text, "_once", None, Decimal(usd))
    return Cell("code_interpreter_sessions", organization.api_keys[0], None, None, {"_once": 1}, (line,))


@contextmanager
def analysts_world(home: Path) -> Iterator[World]:
    """Serves the organizations for the length of the block; the data folder has been refreshed twice."""
    now = now_in_the_middle_of_today()
    since = month_before(month_before(now.date().replace(day=1)))
    small = OrganizationSpec(0, since, keys_per_project=1, projects=2, members=3)
    specs = (
        replace(small, models=(*MODELS[:5], TUNED), cost_groupings=(), service_accounts=1),
        replace(small, number=1, models=MODELS[:2]),
        replace(small, number=2, models=MODELS[:1], services=False),
    )
    simulator = Simulator(specs, now=now)
    with running(simulator) as base_url:
        installation = Installation(home, OpenAI(simulator, base_url))
        world = World(installation)
        world.change(simulator.organizations[0])
        installation.connect(plan="scale", users=USERS)
        assert installation.refresh().failed_users == []
        world.between = datetime.now(UTC)
        world.before = world.charges("acme", world.known("acme"))
        simulator.frozen_now = now + timedelta(hours=7)
        world.is_corrected = True
        forget_day(installation, "initech", world.unknown_day)
        assert installation.refresh().failed_users == []
        window = Window(since, world.today + timedelta(days=1))
        assert installation.refresh(window, users=["acme"]).failed_users == []
        yield world


def forget_day(installation: Installation, user_id: str, day: date) -> None:
    """As if the costs of a day had never been fetched."""
    with Warehouse(installation.settings.home).writing() as connection:
        for table in ("daily_costs", "pipeline.loaded_days"):
            connection.execute(f"DELETE FROM {table} WHERE user_id = ? AND date = ?", [user_id, day])
        connection.execute("INSERT INTO pipeline.stale_days VALUES (?, 'openai', ?)", [user_id, day])
        connection.execute("INSERT INTO pipeline.stale_users VALUES (?, 'openai')", [user_id])
