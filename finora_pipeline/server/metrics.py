"""Metrics for a monitoring system: the age of each plan's data, refreshes, runs and the published file.

They are computed per request from the accounts, the published file and Dagster's records, so a restart loses
nothing.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from statistics import median

import dagster as dg
import duckdb
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finora_pipeline.accounts.model import Status
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.alerts.store import open_alerts
from finora_pipeline.jobs import JOB_NAMES, PLAN_TAG
from finora_pipeline.plans import PLANS
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.snapshot import DATABASE, attach, close_off

SPAN = timedelta(hours=24)


def metrics_page(settings: Settings, accounts: Accounts) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Installation(settings, accounts))
    return generate_latest(registry)


class _Installation(Collector):
    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        self._settings = settings
        self._accounts = accounts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = datetime.now(UTC)
        yield from self._connections(now)
        yield from self._refreshes(now)
        yield from self._runs(now)
        yield from self._published()
        # The second name is that of earlier versions.
        for name in ("finora_alerts_open", "finora_alarms_open"):
            alerts = GaugeMetricFamily(name, "Alerts that are not over.")
            alerts.add_metric([], len(open_alerts(self._accounts.database)))
            yield alerts

    def _connections(self, now: datetime) -> Iterator[GaugeMetricFamily]:
        count = GaugeMetricFamily(
            "finora_connections", "Connections by plan and state.", labels=["plan", "status"]
        )
        age = GaugeMetricFamily(
            "finora_data_age_seconds", "Age of the data of active connections.", labels=["plan", "of"]
        )
        promise = GaugeMetricFamily("finora_promise_seconds", "Promised refresh interval.", labels=["plan"])
        late = GaugeMetricFamily(
            "finora_connections_late",
            "Connections past the promised next refresh plus their plan's lead.",
            labels=["plan"],
        )
        connections = self._accounts.connections.all()
        for plan in PLANS.values():
            mine = [one for one in connections if one.plan == plan]
            for status in Status:
                count.add_metric([plan.name, status], sum(one.status is status for one in mine))
            promise.add_metric([plan.name], plan.refresh_interval.total_seconds())
            late.add_metric([plan.name], sum(one.is_late(now) for one in mine))
            ages = [
                (now - (one.refreshed_at or one.connected_at)).total_seconds()
                for one in mine
                if one.status is Status.ACTIVE
            ]
            if ages:
                age.add_metric([plan.name, "oldest"], max(ages))
                age.add_metric([plan.name, "median"], median(ages))
        yield from (count, age, promise, late)

    def _refreshes(self, now: datetime) -> Iterator[GaugeMetricFamily]:
        refreshes = GaugeMetricFamily(
            "finora_reads_24h",
            "Refreshes of single users in the last 24 hours, by outcome.",
            labels=["outcome"],
        )
        pages = GaugeMetricFamily("finora_pages_24h", "Pages fetched from OpenAI in the last 24 hours.")
        requests = GaugeMetricFamily(
            "finora_requests_24h",
            "Requests to OpenAI in the last 24 hours, by response status or kind of failure.",
            labels=["outcome"],
        )
        for outcome, count in sorted(self._accounts.refreshes.requests_since(now - SPAN).items()):
            requests.add_metric([outcome], count)
        outcomes = self._accounts.refreshes.outcomes_since(now - SPAN)
        for outcome, (count, _) in sorted(outcomes.items()):
            refreshes.add_metric([outcome], count)
        pages.add_metric([], sum(number for _, number in outcomes.values()))
        yield from (requests, refreshes, pages)

    def _runs(self, now: datetime) -> Iterator[GaugeMetricFamily]:
        runs = GaugeMetricFamily(
            "finora_runs_24h", "Dagster runs of the last 24 hours.", labels=["job", "plan", "status"]
        )
        last = GaugeMetricFamily(
            "finora_last_run_seconds", "Duration of the last finished run.", labels=["job", "plan"]
        )
        counts: dict[tuple[str, str, str], int] = {}
        seconds: dict[tuple[str, str], float] = {}
        with dg.DagsterInstance.get() as instance:
            for job in JOB_NAMES:
                filters = dg.RunsFilter(job_name=job, created_after=now - SPAN)
                for record in instance.get_run_records(filters):
                    plan = record.dagster_run.tags.get(PLAN_TAG, "")
                    key = (job, plan, record.dagster_run.status.value.lower())
                    counts[key] = counts.get(key, 0) + 1
                    if record.start_time and record.end_time:
                        seconds.setdefault((job, plan), record.end_time - record.start_time)
        for labels, number in sorted(counts.items()):
            runs.add_metric(labels, number)
        for labels, took in sorted(seconds.items()):
            last.add_metric(labels, took)
        yield from (runs, last)

    def _published(self) -> Iterator[GaugeMetricFamily]:
        path = self._settings.published_database
        age = GaugeMetricFamily(
            "finora_published_age_seconds", "Seconds since the published file was swapped in."
        )
        size = GaugeMetricFamily("finora_published_bytes", "Bytes of the published file.")
        rows = GaugeMetricFamily("finora_published_rows", "Rows in the published tables.", labels=["table"])
        if path.exists():
            about = path.stat()
            age.add_metric([], time.time() - about.st_mtime)
            size.add_metric([], about.st_size)
            with duckdb.connect(":memory:") as connection:
                attach(connection, path)
                close_off(connection, spills=False)
                found = connection.execute(
                    "SELECT table_name, estimated_size FROM duckdb_tables() "
                    "WHERE database_name = ? AND schema_name = 'main' ORDER BY ALL",
                    [DATABASE],
                ).fetchall()
            for table, number in found:
                rows.add_metric([table], number)
        yield from (age, size, rows)
