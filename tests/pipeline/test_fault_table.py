"""The table of faults: OpenAI's fault, the shown message, the effect on the data.

Each row has its own organization on one simulator. Three real refreshes, three hours apart, fetch all of
them: before, during and after the faults, so that the truth differs each time.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from finora_pipeline.accounts.database import connections
from finora_pipeline.cli import runs
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.openai_admin.client import Limits
from finora_pipeline.openai_simulator import Fault, FaultKind, KeyState, Simulator
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from tests.conftest import Installation, OpenAI
from tests.small_openai import small_openai

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "faults.md").read_text()

# The effect on the data, in the document's words.
KEPT, TRUE = "is unchanged", "is correct"
NO_AMOUNTS = "is correct, the new amounts are unknown (NULL)"
COSTS_ONLY = "costs are correct, that usage is unchanged"

KEY = "OpenAI does not accept this key: it was deleted or revoked. Create a new Admin key in OpenAI"
ROLE = "The key may not read this organization's cost and usage: it is a project key, or its creator"
LIMIT = "OpenAI's rate limit for this organization is used up; it usually passes soon."
NO_PAGE = "OpenAI's answer is not a page of daily buckets: "
ERROR = "OpenAI answered with an error; this usually passes within minutes."
NOT_FOUND = "OpenAI did not find the requested path; this passes unless the API address is wrong."
WEB_PAGE = "A web page came instead of data: from a proxy, a firewall or OpenAI's own protection."
LEFT_OUT = "OpenAI left out days that were requested."
MORE = "OpenAI said there are more pages but "
TOKENS = "OpenAI kept refusing its own page tokens; this usually passes."


@dataclass(frozen=True)
class Row:
    """`what` and `data` quote the document; `sentence` is shown to the user, None for nothing."""

    what: str
    sentence: str | None
    data: str
    faults: tuple[Fault, ...] = ()
    key: KeyState = KeyState.ACTIVE


def fault(what: str, sentence: str | None, kind: FaultKind, *more: Fault, data: str = "", **how: Any) -> Row:
    return Row(what, sentence, data or (KEPT if sentence else TRUE), (Fault(kind, **how), *more))


def refusal(what: str, sentence: str | None, status: int = 401, **how: Any) -> Row:
    return fault(what, sentence, FaultKind.STATUS, status=status, **how)


def said(message: str, code: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code}})


HTML: dict[str, Any] = {"content_type": "text/html", "body": "<title>Just a moment...</title>"}

ROWS = [
    Row("401: the key was deleted or revoked", KEY, KEPT, key=KeyState.REVOKED),
    Row("403, the error an object", ROLE, KEPT, key=KeyState.RESTRICTED),
    Row("403, the error a bare text", ROLE, KEPT, key=KeyState.DEMOTED),
    refusal(
        "401 `ip_not_authorized`",
        "This server's IP address is not on the organization's IP allowlist in OpenAI.",
        body=said("Your request IP is not authorized.", "ip_not_authorized"),
    ),
    refusal(
        "401 `incorrect_hostname`",
        "OpenAI serves this organization at another host. Give the address https://eu.api.openai.com/v1.",
        body=said("Use eu.api.openai.com instead.", "incorrect_hostname"),
    ),
    refusal(
        "401 `no_organization`",
        "The creator of this key belongs to no organization in OpenAI.",
        body=said("You must be a member of an organization.", "no_organization"),
    ),
    refusal(
        "403 for a country",
        "OpenAI does not serve the country or region of this server's address.",
        status=403,
        body=said("Not supported.", "unsupported_country_region_territory"),
    ),
    refusal(
        "401 or 403 for a reason that is not known",
        "OpenAI refuses this request; the key may be fine.",
        status=403,
        body=said("Your organization does not have access to this feature."),
    ),
    refusal("403 with a web page, once", None, status=403, times=1, **HTML),
    refusal("403 with a web page, for ever", WEB_PAGE, status=403, **HTML),
    refusal(
        "429 for a spend limit or an empty balance",
        "OpenAI returns no data because the organization's credit balance is used up.",
        status=429,
        body=said("Your credit balance is exhausted.", "credit_balance_exhausted"),
    ),
    fault("404 on costs, once", None, FaultKind.NOT_FOUND, endpoint="costs", times=1),
    fault("404 on costs, for ever", NOT_FOUND, FaultKind.NOT_FOUND, endpoint="costs"),
    fault("429 with `Retry-After: 0`, three times", None, FaultKind.RATE_LIMIT, times=3, seconds=0),
    fault("429 without `Retry-After`, twice", None, FaultKind.RATE_LIMIT, times=2),
    fault("429 for ever", LIMIT, FaultKind.RATE_LIMIT),
    fault("429 with `Retry-After: 0`, for ever", LIMIT, FaultKind.RATE_LIMIT, seconds=0),
    fault("429 with `Retry-After: 3600`", LIMIT, FaultKind.RATE_LIMIT, seconds=3600),
    fault("500, twice", None, FaultKind.SERVER_ERROR, times=2),
    fault("500 for ever", ERROR, FaultKind.SERVER_ERROR),
    fault(
        "500 for ever on the use of completions only",
        f"Use of completions could not be fetched: {ERROR}",
        FaultKind.SERVER_ERROR,
        endpoint="completions",
        data=COSTS_ONLY,
    ),
    fault("The connection breaks amid an answer, once", None, FaultKind.RESET, times=1),
    fault("The connection breaks amid every answer", "OpenAI could not be reached", FaultKind.RESET),
    fault("JSON cut in half, once", None, FaultKind.CUT, times=1),
    fault("JSON cut in half, for ever", NO_PAGE, FaultKind.CUT),
    fault("A web page with status 200", "OpenAI's answer is not a page of data but", FaultKind.HTML),
    # One spelling of all requests of completions, which every row has.
    fault(
        'A count written `10.0`, `1e1` or `"10"`',
        None,
        FaultKind.EDIT,
        edit=r'("num_model_requests":)(\d+)',
        body=r"\g<1>\g<2>.0",
    ),
    fault(
        "A name cut within a character, or with a NUL",
        None,
        FaultKind.EDIT,
        edit=r'("organization_name":"[^"]*)',
        body=r"\g<1> \\ud83d \\u0000",
    ),
    fault(
        "An amount that is not a number, or ten billion dollars and more",
        "OpenAI sent an amount that is not understood: '12,5' is not a decimal number",
        FaultKind.EDIT,
        endpoint="costs",
        edit=r'"value":"[^"]*"',
        body='"value":"12,5"',
    ),
    fault("`results` is null", NO_PAGE, FaultKind.NULL_RESULTS),
    # Valid by OpenAI's schema: the amount is unknown, not zero.
    fault("Rows without `amount`", None, FaultKind.NO_AMOUNT, data=NO_AMOUNTS),
    fault("Another currency", "OpenAI sent an amount in 'eur'", FaultKind.FOREIGN_CURRENCY),
    fault("More pages, but no page token, for ever", MORE + "gave no", FaultKind.NO_CURSOR),
    fault("The same page token again", MORE + "repeated", FaultKind.SAME_CURSOR),
    # A week fits one page without a cursor; this fault returns one that is then refused.
    fault("A page token is refused, once", None, FaultKind.SAME_CURSOR, times=1),
    fault("Page tokens are refused for ever", TOKENS, FaultKind.PAGE_TOKEN, Fault(FaultKind.SAME_CURSOR)),
    # Checked over all pages together: the window is fetched again.
    fault("More pages, but no page token, once", None, FaultKind.NO_CURSOR, times=1),
    fault("A day is left out, once", None, FaultKind.LEFT_OUT, times=1),
    fault("A day is left out, for ever", LEFT_OUT, FaultKind.LEFT_OUT),
    fault("The answer repeats the key", "The answer contains the key that was sent", FaultKind.ECHO_KEY),
    fault("A slow answer within the time-out", None, FaultKind.SLOW, seconds=0.05),
    fault("No answer", "OpenAI did not answer within", FaultKind.HANG),
]

# Cost facts by row, and tokens by model.
Facts = tuple[dict[Any, Any], dict[str, tuple[int, int]]]
# A user's published facts after a refresh, the truth then, and the shown message.
Seen = tuple[Facts, Facts, str | None]


def facts_of(installation: Installation, user_id: str = "user-0") -> Facts:
    tokens = installation.sql(
        "SELECT model, sum(input_tokens), sum(output_tokens) FROM daily_usage "
        "WHERE user_id = ? GROUP BY model",
        user_id,
    )
    return installation.costs(user_id), {model: (read, written) for model, read, written in tokens}


def truth_of(installation: Installation, number: int = 0, now: datetime | None = None) -> Facts:
    kept, openai = installation.history(7), installation.openai
    truth = openai.organizations[number].truth(kept.start, kept.end, now or openai.simulator.now)
    return truth.by_row, truth.tokens_by_model


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory):
    """Observations of each row before, during and after the faults."""
    home = tmp_path_factory.mktemp("faults") / "home"
    with small_openai(len(ROWS), days=5) as openai, pytest.MonkeyPatch.context() as environment:
        environment.setenv("DAGSTER_HOME", str(home / "dagster"))
        installation = Installation(home, openai)
        user_ids = installation.connect(plan="trial")
        simulator = openai.simulator
        # Long enough for a busy machine, short enough for lasting faults. One simulator process serves all
        # organizations, fewer than a hundred requests in two seconds.
        patient = OpenAIAdmin(
            openai.base_url,
            Limits(concurrency=16, timeout_seconds=2, retry_seconds=2, first_pause_seconds=0.001),
        )

        def refresh() -> list[Seen]:
            window = trailing_window(installation.today)
            # A user with a refused key is fetched at once when named.
            result = runs.refresh(installation.settings, window, users=user_ids, openai_admin=patient)
            assert result.succeeded, result.errors
            failures = installation.accounts.refreshes.last_failures(user_ids)
            reasons = {c.user_id: c.status_reason for c in installation.accounts.connections.all()}
            parts = installation.accounts.refreshes.part_failures(user_ids)
            for user, of_user in parts.items():
                failures.setdefault(user, of_user[0].message)
            return [
                (facts_of(installation, user), truth_of(installation, n), reasons[user] or failures.get(user))
                for n, user in enumerate(user_ids)
            ]

        before = refresh()
        for row, organization in zip(ROWS, openai.organizations, strict=True):
            simulator.set_key_state(organization.admin_key, row.key)
            for each in row.faults:
                simulator.add_fault(organization, replace(each))
        simulator.frozen_now = simulator.now + timedelta(hours=3)
        during = refresh()
        simulator.clear_faults()
        for organization in openai.organizations:
            simulator.set_key_state(organization.admin_key, KeyState.ACTIVE)
        simulator.frozen_now += timedelta(hours=3)
        return list(zip(before, during, refresh(), strict=True)), trailing_window(installation.today)


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.what for row in ROWS])
def test_each_fault_has_the_documented_outcome(number: int, seen) -> None:
    row, (before, during, after), read_again = ROWS[number], seen[0][number], seen[1]
    (facts_before, truth_before, _), (facts, truth, sentence), (_, truth_after, _) = before, during, after
    assert before == (truth_before, truth_before, None)
    assert truth_before[0] != truth[0] != truth_after[0]

    assert (sentence is None) == (row.sentence is None), sentence
    assert (row.sentence or "") in (sentence or "")
    costs, tokens = truth
    unknown = {key: None if key[0] >= read_again.start else amount for key, amount in costs.items()}
    becomes = {
        KEPT: facts_before,
        TRUE: truth,
        COSTS_ONLY: (costs, facts_before[1]),
        NO_AMOUNTS: (unknown, tokens),
    }
    assert facts == becomes[row.data]

    assert after == (truth_after, truth_after, None)


def test_the_document_has_a_row_for_each_fault() -> None:
    documented = [line.strip("| ").split(" | ") for line in DOCUMENT.splitlines() if line.startswith("| ")][
        1:
    ]
    assert [(what, data) for what, _, data in documented] == [(row.what, row.data) for row in ROWS]
    for (_, sentence, _), row in zip(documented, ROWS, strict=True):
        assert sentence.startswith(row.sentence or "nothing")


@pytest.fixture
def installation(start_openai: Callable[..., OpenAI], install: Callable[[OpenAI], Installation]):
    """An installation with a user, refreshed two hours before today's UTC midnight."""
    midnight = datetime.combine(datetime.now(UTC).date(), time(), UTC)
    openai = start_openai(days=4, now=midnight - timedelta(hours=2), services=False, projects=1)
    made = install(openai)
    made.connect(plan="trial")
    made.refresh()
    assert facts_of(made) == truth_of(made)
    return made


def test_a_day_that_becomes_empty(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    organization, simulator = installation.openai.organizations[0], installation.openai.simulator
    day, settled = installation.today - timedelta(days=2), organization._settled
    assert day in {key[0] for key in installation.costs("user-0")}
    with monkeypatch.context() as patch:
        patch.setattr(organization, "_settled", lambda asked: [] if asked == day else settled(asked))
        simulator.frozen_now = simulator.now + timedelta(hours=1)
        installation.refresh()
        assert day not in {key[0] for key in installation.costs("user-0")}
        assert facts_of(installation) == truth_of(installation)
    simulator.frozen_now += timedelta(minutes=30)
    installation.refresh()
    assert day in {key[0] for key in installation.costs("user-0")}
    assert facts_of(installation) == truth_of(installation)


def test_midnight_passes_during_a_refresh(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator, today = installation.openai.simulator, installation.today
    midnight = datetime.combine(today, time(), UTC)
    before, after = midnight - timedelta(seconds=30), midnight + timedelta(minutes=30)
    # The pipeline uses the real clock: this is the window it requests before midnight.
    simulator.frozen_now = before
    installation.refresh(trailing_window(today - timedelta(days=1)))
    assert facts_of(installation) == truth_of(installation)

    # Costs are fetched first; then the new day begins.
    simulator.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            Simulator, "now", property(lambda self: after if self.requests["costs"] > 1 else before)
        )
        assert installation.refresh().failed_users == []
    costs, tokens = facts_of(installation)
    assert costs == truth_of(installation, now=before)[0]
    assert tokens == truth_of(installation, now=after)[1]

    simulator.frozen_now = after
    installation.refresh()
    assert facts_of(installation) == truth_of(installation)
    assert {day for day, _, _ in installation.costs("user-0")} >= {today - timedelta(days=1), today}


def test_missing_days_of_a_known_organization_are_not_empty_days(start_openai, install):
    openai = start_openai(days=20, services=False)
    installation = install(openai)
    installation.connect(plan="trial")
    connected_at = openai.simulator.now - timedelta(days=15)
    with installation.accounts.database.write() as database:
        database.execute(update(connections).values(connected_at=connected_at))
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.LATE_START, "costs"))
    (refused,) = installation.refresh().failed_users
    assert refused.message == LEFT_OUT
    openai.simulator.clear_faults()
    assert not installation.refresh().failed_users
    installation.assert_exact("user-0", 0, installation.history(7))
