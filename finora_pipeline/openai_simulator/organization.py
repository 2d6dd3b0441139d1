"""An invented organization: its directory, and its exact usage and costs on each UTC day.

Everything follows from the seed, the day and the moment of the query: two queries at the same moment agree,
and a later query restates today and the two days before, as OpenAI does.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache

from finora_pipeline.openai_admin.endpoints import ENDPOINTS, OPTIONAL_DIMENSIONS
from finora_pipeline.openai_simulator.catalog import MODELS, SERVICES, Line, Model

# The share of a day that is booked at its end, and the hours until the rest is booked.
BOOKED_AT_DAY_END = 0.94
SETTLING_HOURS = 48
# OpenAI books some charges under a provisional name and renames them a day later.
PROVISIONAL_MODEL = "chat-latest"
PROVISIONAL_HOURS = 24
WEEKDAYS = (1.0, 1.08, 1.1, 1.05, 0.95, 0.35, 0.3)

_PARTS = {service.endpoint: service.parts for service in SERVICES}

_PROJECT_NAMES = ("Default project", "Support assistant", "Search", "Analytics", "Mobile app", "Research")
_FIRST_NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Katherine", "Linus", "Radia", "Tim")
_LAST_NAMES = ("Adams", "Baker", "Castro", "Dubois", "Eriksen", "Fischer", "Gupta", "Haddad", "Ito", "Jansen")


@dataclass(frozen=True, slots=True)
class OrganizationSpec:
    """The size of an organization.

    `since`, `until`: the first and last day of usage; `daily_requests`: typical completions of a project and
    model on a working day; `services`: whether it uses other endpoints than completions; `cost_groupings`:
    the `group_by` values that its costs accept in addition to project and line item; `refused_dimensions`:
    those that its usage refuses; `service_accounts`: their number, with one key each. The last
    `archived_projects`, the last `vanished_members` and the last `deleted_keys` of the other projects are
    gone from the start of `gone_since`, as is their usage.
    """

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
    refused_dimensions: tuple[str, ...] = ()
    until: date | None = None
    archived_projects: int = 0
    vanished_members: int = 0
    deleted_keys: int = 0
    service_accounts: int = 0
    gone_since: date | None = None

    def __post_init__(self) -> None:
        if self.archived_projects or self.vanished_members or self.deleted_keys:
            if self.gone_since is None:
                raise ValueError("Archived projects, vanished members and deleted keys need `gone_since`.")
            # The Admin key is the first member's.
            if self.archived_projects > self.projects or self.vanished_members >= self.members:
                raise ValueError("More projects or members are gone than existed.")
            if self.deleted_keys > (self.projects - self.archived_projects) * self.keys_per_project:
                raise ValueError("More keys are deleted than existed.")


@dataclass(frozen=True, slots=True)
class SimulatedProject:
    """A project; times are Unix seconds."""

    id: str
    name: str
    created_at: int
    archived_at: int | None = None


@dataclass(frozen=True, slots=True)
class SimulatedMember:
    """A member; times are Unix seconds."""

    id: str
    name: str
    email: str
    role: str
    added_at: int
    left_at: int | None = None


@dataclass(frozen=True, slots=True)
class SimulatedServiceAccount:
    """A service account; times are Unix seconds."""

    id: str
    name: str
    role: str
    created_at: int


@dataclass(frozen=True, slots=True)
class SimulatedApiKey:
    """An API key of a project, owned by a member or a service account; times are Unix seconds."""

    id: str
    name: str
    project: SimulatedProject
    owner: SimulatedMember | SimulatedServiceAccount
    created_at: int
    deleted_at: int | None = None

    @property
    def member_id(self) -> str | None:
        """The member that usage of this key has; None if a service account owns the key."""
        return self.owner.id if isinstance(self.owner, SimulatedMember) else None

    @property
    def last_use_before(self) -> int | None:
        """The end of its usage in Unix seconds: that of the key, its project or its owner."""
        left_at = self.owner.left_at if isinstance(self.owner, SimulatedMember) else None
        ends = (self.deleted_at, self.project.archived_at, left_at)
        return min((end for end in ends if end is not None), default=None)


@dataclass(frozen=True, slots=True)
class Cell:
    """Usage of an API key with a model of a service on a day, and the lines it is billed by."""

    service: str
    api_key: SimulatedApiKey
    model: str | None
    service_tier: str | None
    measures: dict[str, int]
    lines: tuple[Line, ...]
    is_provisional: bool = False

    def parts(self) -> Iterator[tuple[dict[str, str], dict[str, int]]]:
        """The optional dimensions and the measures of each part; the measures add up to the cell's."""
        parts = _PARTS.get(self.service, ())
        if not parts:
            yield {}, self.measures
        weight, before = sum(part.weight for part in parts), 0
        for part in parts:
            after = before + part.weight
            measures = {
                measure: count * after // weight - count * before // weight
                for measure, count in self.measures.items()
            }
            yield part.dimensions, measures
            before = after


# Day, service, project, member, API key, model, batch, service tier and the optional dimensions.
UsageKey = tuple[date | str | bool | None, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """The facts that a refresh must find, exact: USD and tokens by the dimensions of the tables.

    `tokens_by_model`: input and output tokens; `usage`: each endpoint's measures by all its dimensions,
    None for a dimension it does not have.
    """

    total: Decimal
    by_day: dict[date, Decimal]
    by_project: dict[str, Decimal]
    by_line_item: dict[str, Decimal]
    by_row: dict[tuple[date, str, str], Decimal]
    tokens_by_model: dict[str, tuple[int, int]]
    by_member: dict[tuple[date, str | None], Decimal]
    by_key: dict[tuple[date, str], Decimal]
    usage: dict[UsageKey, dict[str, int]]


class SimulatedOrganization:
    """An organization as OpenAI would show it to its Admin key."""

    def __init__(self, spec: OrganizationSpec) -> None:
        self.spec = spec
        rng = random.Random(f"{spec.seed}/{spec.number}")
        self.id = f"org-{self._id('org', 0)}"
        self.name = f"Example Company {spec.number}"
        created = int(datetime.combine(spec.since, time(9), UTC).timestamp())
        gone = _midnight(spec.gone_since) if spec.gone_since else None
        self.projects = [
            SimulatedProject(
                f"proj_{self._id('project', n)}",
                _PROJECT_NAMES[n % len(_PROJECT_NAMES)],
                created + n,
                gone if n >= spec.projects - spec.archived_projects else None,
            )
            for n in range(spec.projects)
        ]
        self.members = [
            self._member(n, created, gone if n >= spec.members - spec.vanished_members else None)
            for n in range(spec.members)
        ]
        keys_left = (spec.projects - spec.archived_projects) * spec.keys_per_project
        deleted = range(keys_left - spec.deleted_keys, keys_left)
        self.api_keys = [
            SimulatedApiKey(
                f"key_{self._id(project.id, n)}",
                f"{project.name} key {n + 1}",
                project,
                self.members[(p + n) % len(self.members)],
                created + n,
                gone if p * spec.keys_per_project + n in deleted else None,
            )
            for p, project in enumerate(self.projects)
            for n in range(spec.keys_per_project)
        ]
        self.api_keys += [self._service_key(n, created) for n in range(spec.service_accounts)]
        self.admin_key = self.new_admin_key(1)
        self._weights = {
            (key.id, model.name): model.weight * rng.uniform(0.3, 1.7)
            for key in self.api_keys
            for model in spec.models
        }
        self._settled = lru_cache(maxsize=512)(self._settled_cells)

    def new_admin_key(self, version: int) -> str:
        """An Admin key in OpenAI's form; a rotation uses the next version."""
        return f"sk-admin-sim{self.spec.number:04d}v{version}-{self._id('admin key', version)}"

    def _id(self, kind: str, number: int) -> str:
        text = f"{self.spec.seed}/{self.spec.number}/{kind}/{number}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def _service_key(self, number: int, created: int) -> SimulatedApiKey:
        account = SimulatedServiceAccount(
            f"svc_acct_{self._id('service account', number)}",
            f"Service account {number + 1}",
            "member",
            created + number,
        )
        return SimulatedApiKey(
            f"key_{self._id('service account key', number)}",
            f"{account.name} key",
            self.projects[number % len(self.projects)],
            account,
            account.created_at,
        )

    def _member(self, number: int, created: int, left: int | None) -> SimulatedMember:
        first = _FIRST_NAMES[(number + self.spec.number) % len(_FIRST_NAMES)]
        last = _LAST_NAMES[(number * 3 + self.spec.number) % len(_LAST_NAMES)]
        email = f"{first}.{last}@company{self.spec.number}.example".lower()
        role = "owner" if number == 0 else "reader"
        return SimulatedMember(
            f"user-{self._id('member', number)}", f"{first} {last}", email, role, created, left
        )

    def cells(self, day: date, now: datetime) -> list[Cell]:
        """The cells of a day as booked at the moment `now`.

        Empty before `spec.since`, and after today or `spec.until`.
        """
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
        """The exact sums from `start` (inclusive) to `end` (exclusive), as booked at `now`."""
        by_day: dict[date, Decimal] = {}
        by_project: dict[str, Decimal] = defaultdict(Decimal)
        by_line_item: dict[str, Decimal] = defaultdict(Decimal)
        by_row: dict[tuple[date, str, str], Decimal] = defaultdict(Decimal)
        tokens: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        by_member: dict[tuple[date, str | None], Decimal] = defaultdict(Decimal)
        by_key: dict[tuple[date, str], Decimal] = defaultdict(Decimal)
        usage: dict[UsageKey, dict[str, int]] = {}
        day = start
        while day < end:
            for cell in self.cells(day, now):
                _add_usage(usage, day, cell)
                if cell.service == "completions" and cell.model:
                    tokens[cell.model][0] += cell.measures["input_tokens"]
                    tokens[cell.model][1] += cell.measures["output_tokens"]
                for line in cell.lines:
                    amount = cell.measures[line.measure] * line.price
                    by_day[day] = by_day.get(day, Decimal(0)) + amount
                    by_project[cell.api_key.project.id] += amount
                    by_line_item[line.text] += amount
                    by_row[day, cell.api_key.project.id, line.text] += amount
                    by_member[day, cell.api_key.member_id] += amount
                    by_key[day, cell.api_key.id] += amount
            day += timedelta(days=1)
        return Truth(
            sum(by_day.values(), Decimal(0)),
            by_day,
            dict(by_project),
            dict(by_line_item),
            dict(by_row),
            {model: (counts[0], counts[1]) for model, counts in tokens.items()},
            dict(by_member),
            dict(by_key),
            usage,
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
        midnight = _midnight(day)
        return [cell for cell in cells if (end := cell.api_key.last_use_before) is None or midnight < end]


def _midnight(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())


def _add_usage(usage: dict[UsageKey, dict[str, int]], day: date, cell: Cell) -> None:
    endpoint, key = ENDPOINTS[cell.service], cell.api_key
    grouped = endpoint.dimensions
    for optional, measures in cell.parts():
        row = (
            day,
            cell.service,
            key.project.id,
            key.member_id if "user_id" in grouped else None,
            key.id if "api_key_id" in grouped else None,
            cell.model if "model" in grouped else None,
            False if "batch" in grouped else None,
            cell.service_tier if "service_tier" in grouped else None,
            *(optional.get(dimension) for dimension in OPTIONAL_DIMENSIONS),
        )
        total = usage.setdefault(row, dict.fromkeys(endpoint.measures, 0))
        for measure, count in measures.items():
            if measure in total:
                total[measure] += count


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
    """OpenAI's token split without cache writes: input = cached + uncached, output = text."""
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
