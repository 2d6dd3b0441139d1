"""A simulator of OpenAI's organization API for the demo, the tests and the benchmarks.

Invented organizations, OpenAI's answers about them and faults on demand belong here. Code that runs against
the real OpenAI does not import this package.
"""

from finora_pipeline.openai_simulator.app import Simulator
from finora_pipeline.openai_simulator.faults import Fault, FaultKind, KeyState
from finora_pipeline.openai_simulator.organization import (
    OrganizationSpec,
    SimulatedOrganization,
    Truth,
)
from finora_pipeline.openai_simulator.server import running

__all__ = [
    "Fault",
    "FaultKind",
    "KeyState",
    "OrganizationSpec",
    "SimulatedOrganization",
    "Simulator",
    "Truth",
    "running",
]
