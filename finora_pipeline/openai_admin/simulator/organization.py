"""A made-up organization: who is in it and what it used and paid on each UTC day, exactly.

Everything follows from the seed, the day and the moment of looking: two looks at the same moment agree,
and a later look restates today and the two days before it, as OpenAI does.
"""

import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache

from finora_pipeline.openai_admin.simulator.catalog import MODELS, SERVICES, Line, Model

# How a day looks before it is settled: what is booked of a day at its end, and when the rest has arrived.
BOOKED_AT_DAY_END = 0.94
SETTLING_HOURS = 48
# A line that OpenAI books under a provisional name and renames a day later, so that it vanishes.
PROVISIONAL_MODEL = "chat-latest"
PROVISIONAL_HOURS = 24
WEEKDAYS = (1.0, 1.08, 1.1, 1.05, 0.95, 0.35, 0.3)

_PROJECT_NAMES = ("Default project", "Support assistant", "Search", "Analytics", "Mobile app", "Research")
_FIRST_NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Katherine", "Linus", "Radia", "Tim")
_LAST_NAMES = ("Adams", "Baker", "Castro", "Dubois", "Eriksen", "Fischer", "Gupta", "Haddad", "Ito", "Jansen")


@dataclass(frozen=True, slots=True)
class OrganizationSpec:
    """The size of an organization. `daily_requests` is the typical number of completions of one project
    and model on a working day; `services` tells whether it uses the endpoints besides completions;
    `cost_groupings` are the `group_by` values besides project and line item that its costs accept.
    `until` is the last day of use, for an organization that has stopped."""

    number: int
    since: date
    seed: int = 7
    projects: int = 3
    members: int = 4
    keys_per_project: int = 2
    models: tuple[Model, ...] = MODELS
    daily_requests: int = 60
    services: bool = True
    cost_groupings: tuple[str, ...] = ("api_key_id", "user_id")
    until: date | None = None


@dataclass(frozen=True, slots=True)
class SimulatedProject:
    id: str
    name: str
    created_at: int
    archived_at: int | None = None


@dataclass(frozen=True, slots=True)
class SimulatedMember:
    id: str
    name: str
    email: str
    role: str
    added_at: int


@dataclass(frozen=True, slots=True)
class SimulatedApiKey:
    id: str
    name: str
    project: SimulatedProject
    owner: SimulatedMember
    created_at: int


@dataclass(frozen=True, slots=True)
class Cell:
    """What one API key did with one model of one service on one day, and the lines it is billed by."""

    service: str
    api_key: SimulatedApiKey
    model: str | None
    service_tier: str | None
    measures: dict[str, int]
    lines: tuple[Line, ...]
    is_provisional: bool = False


@dataclass(frozen=True, slots=True)
class Truth:
    """What a refresh must find, to the last digit: USD and tokens, by the dimensions of the tables."""

    total: Decimal
    by_day: dict[date, Decimal]
    by_project: dict[str, Decimal]
    by_line_item: dict[str, Decimal]
    by_row: dict[tuple[date, str, str], Decimal]
    tokens_by_model: dict[str, tuple[int, int]] = field(default_factory=dict)


class SimulatedOrganization:
    """One organization as OpenAI would show it to its Admin key."""

    def __init__(self, spec: OrganizationSpec) -> None:
        self.spec = spec
        rng = random.Random(f"{spec.seed}/{spec.number}")
        self.id = f"org-{self._id('org', 0)}"
        self.name = f"Example Company {spec.number}"
        created = int(datetime.combine(spec.since, time(9), UTC).timestamp())
        self.projects = [
            SimulatedProject(
                f"proj_{self._id('project', n)}", _PROJECT_NAMES[n % len(_PROJECT_NAMES)], created + n
            )
            for n in range(spec.projects)
        ]
        self.members = [self._member(n, created) for n in range(spec.members)]
        self.api_keys = [
            SimulatedApiKey(
                f"key_{self._id(project.id, n)}",
                f"{project.name} key {n + 1}",
                project,
                self.members[(p + n) % len(self.members)],
                created + n,
            )
            for p, project in enumerate(self.projects)
            for n in range(spec.keys_per_project)
        ]
        self.admin_key = self.new_admin_key(1)
        self._weights = {
            (key.id, model.name): model.weight * rng.uniform(0.3, 1.7)
            for key in self.api_keys
            for model in spec.models
        }
        self._settled = lru_cache(maxsize=512)(self._settled_cells)

    def new_admin_key(self, version: int) -> str:
        """An Admin key in OpenAI's form; rotating is asking for the next version."""
        return f"sk-admin-sim{self.spec.number:04d}v{version}-{self._id('admin key', version)}"

    def _id(self, kind: str, number: int) -> str:
        text = f"{self.spec.seed}/{self.spec.number}/{kind}/{number}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def _member(self, number: int, created: int) -> SimulatedMember:
        first = _FIRST_NAMES[(number + self.spec.number) % len(_FIRST_NAMES)]
        last = _LAST_NAMES[(number * 3 + self.spec.number) % len(_LAST_NAMES)]
        email = f"{first}.{last}@company{self.spec.number}.example".lower()
        role = "owner" if number == 0 else "reader"
        return SimulatedMember(f"user-{self._id('member', number)}", f"{first} {last}", email, role, created)

    def cells(self, day: date, now: datetime) -> list[Cell]:
        """All that is booked of a day at the moment `now`; nothing before `spec.since` or after today
        or `spec.until`."""
        if not self.spec.since <= day <= min(now.date(), self.spec.until or now.date()):
            return []
        hours = (now - datetime.combine(day, time(), UTC)).total_seconds() / 3600
        booked = min(hours / 24, 1.0) * (
            BOOKED_AT_DAY_END + (1 - BOOKED_AT_DAY_END) * min(max(hours - 24, 0) / SETTLING_HOURS, 1.0)
        )
        cells = self._settled(day)
        if hours > 24 + PROVISIONAL_HOURS:
            cells = [cell for cell in cells if not cell.is_provisional]
        if booked >= 1:
            return cells
        return [
            Cell(
                cell.service,
                cell.api_key,
                cell.model,
                cell.service_tier,
                _scaled(cell.measures, booked),
                cell.lines,
                cell.is_provisional,
            )
            for cell in cells
        ]

    def truth(self, start: date, end: date, now: datetime) -> Truth:
        """The exact sums of the days from `start` to before `end`, as booked at the moment `now`."""
        by_day: dict[date, Decimal] = {}
        by_project: dict[str, Decimal] = defaultdict(Decimal)
        by_line_item: dict[str, Decimal] = defaultdict(Decimal)
        by_row: dict[tuple[date, str, str], Decimal] = defaultdict(Decimal)
        tokens: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        day = start
        while day < end:
            for cell in self.cells(day, now):
                if cell.service == "completions" and cell.model:
                    tokens[cell.model][0] += cell.measures["input_tokens"]
                    tokens[cell.model][1] += cell.measures["output_tokens"]
                for line in cell.lines:
                    amount = cell.measures[line.measure] * line.price
                    by_day[day] = by_day.get(day, Decimal(0)) + amount
                    by_project[cell.api_key.project.id] += amount
                    by_line_item[line.text] += amount
                    by_row[day, cell.api_key.project.id, line.text] += amount
            day += timedelta(days=1)
        return Truth(
            sum(by_day.values(), Decimal(0)),
            by_day,
            dict(by_project),
            dict(by_line_item),
            dict(by_row),
            {model: (counts[0], counts[1]) for model, counts in tokens.items()},
        )

    def _settled_cells(self, day: date) -> list[Cell]:
        rng = random.Random(f"{self.spec.seed}/{self.spec.number}/{day}")
        age = (day - self.spec.since).days
        shape = WEEKDAYS[day.weekday()] * (1 + age / 400)
        cells: list[Cell] = []
        for key in self.api_keys:
            for model in self.spec.models:
                level = self.spec.daily_requests * self._weights[key.id, model.name] * shape
                requests = int(level * rng.uniform(0.7, 1.3) / self.spec.keys_per_project) + 1
                cells.append(_completions(key, model, requests, rng, tier="default"))
        busiest = self.api_keys[0]
        if self.spec.models and rng.random() < 0.5:
            cells.append(_completions(busiest, self.spec.models[0], 5, rng, tier="priority"))
        if self.spec.services:
            cells += [
                _service_cell(self.api_keys[n % len(self.api_keys)], n, rng) for n in range(len(SERVICES))
            ]
            cells.append(_provisional(busiest, rng))
        return cells


def _completions(key: SimulatedApiKey, model: Model, requests: int, rng: random.Random, tier: str) -> Cell:
    prefix, factor = ("priority | ", 2) if tier == "priority" else ("", 1)
    asked = requests * rng.randint(300, 2_500)
    cached = int(asked * rng.uniform(0, 0.4)) if rng.random() < 0.8 else 0
    written = requests * rng.randint(40, 700)
    lines = (
        Line(f"{prefix}{model.name}, input", "input_uncached_tokens", "tokens", model.input_price * factor),
        Line(
            f"{prefix}{model.name}, cached input",
            "input_cached_tokens",
            "tokens",
            model.cached_price * factor,
        ),
        Line(f"{prefix}{model.name}, output", "output_tokens", "tokens", model.output_price * factor),
    )
    measures = _token_measures(asked - cached, cached, written, requests)
    return Cell("completions", key, model.usage_name, tier, measures, lines)


def _provisional(key: SimulatedApiKey, rng: random.Random) -> Cell:
    lines = (Line(f"{PROVISIONAL_MODEL} , input", "input_uncached_tokens", "tokens", Decimal("0.000005")),)
    measures = _token_measures(rng.randint(1_000, 9_000), 0, 0, 3)
    return Cell("completions", key, PROVISIONAL_MODEL, "default", measures, lines, is_provisional=True)


def _service_cell(key: SimulatedApiKey, number: int, rng: random.Random) -> Cell:
    service = SERVICES[number]
    factor = rng.uniform(0.6, 1.4)
    return Cell(
        service.endpoint,
        key,
        service.model,
        "default" if service.endpoint == "decisions" else None,
        {measure: max(1, int(typical * factor)) for measure, typical in service.typical.items()},
        service.lines,
    )


def _token_measures(uncached: int, cached: int, written: int, requests: int) -> dict[str, int]:
    """The token split that OpenAI documents: input = cached + uncached + cache writes, output = text."""
    return {
        "input_tokens": uncached + cached,
        "input_cached_tokens": cached,
        "input_uncached_tokens": uncached,
        "input_text_tokens": uncached,
        "input_cached_text_tokens": cached,
        "output_tokens": written,
        "output_text_tokens": written,
        "num_model_requests": requests,
    }


def _scaled(measures: dict[str, int], booked: float) -> dict[str, int]:
    scaled = {measure: int(count * booked) for measure, count in measures.items()}
    if "input_uncached_tokens" in scaled:
        scaled["input_tokens"] = scaled["input_cached_tokens"] + scaled["input_uncached_tokens"]
    return scaled
