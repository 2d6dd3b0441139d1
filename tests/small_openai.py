"""A small simulated OpenAI for a test module: few organizations, completions, frozen clock."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

from finora_pipeline.openai_simulator import OrganizationSpec, Simulator, running
from tests.conftest import OpenAI, now_in_the_middle_of_today

_versions = count(2)


@contextmanager
def small_openai(organizations: int = 2, days: int = 3) -> Iterator[OpenAI]:
    """Serves the organizations for the length of the block."""
    now = now_in_the_middle_of_today()
    since = now.date() - timedelta(days=days - 1)
    specs = [
        OrganizationSpec(number, since=since, services=False, keys_per_project=1)
        for number in range(organizations)
    ]
    simulator = Simulator(specs, now=now)
    with running(simulator) as base_url:
        yield OpenAI(simulator, base_url)


def fresh_key(openai: OpenAI, number: int = 0) -> str:
    """Return another Admin key of an organization, which a test may revoke."""
    organization = openai.organizations[number]
    key = organization.new_admin_key(next(_versions))
    openai.simulator.add_key(organization, key)
    return key
