"""Slow down the guessing of passwords and codes.

Counts are kept in memory: a restart clears them. Failures count by address and name together, so that no
stranger can lock out the owner of a name; failed codes by name alone, since they need its password. A device
that has signed in with the name before counts apart.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finora_pipeline.settings import Network

# Failures of an address and name before waits begin; the first wait, doubled each time, and the longest.
FREE_FAILURES = 10
FIRST_WAIT_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 900.0
# Behind a proxy that hides addresses all strangers share one, so a name must open again soon.
LONGEST_SHARED_WAIT_SECONDS = 90.0
# Time after the last failure until a count starts over.
FORGET_SECONDS = 3_600.0
# Failures of an address, and of all addresses, with any names; the seconds until each is forgiven.
FAILURES_OF_ADDRESS, ADDRESS_SECONDS = 30, 10.0
FAILURES_OVERALL, OVERALL_SECONDS = 300, 1.0
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """A sign-in: the name, the client's address, and its device if that has signed in before.

    With `is_code` the password was right and a code is checked.
    """

    name: str
    address: str
    device: str | None = None
    is_address_shared: bool = False
    is_code: bool = False

    @property
    def pair(self) -> str:
        if self.is_code and not self.device:
            # Codes are short enough to guess from many addresses; strangers get here with the password only.
            return f"code of {self.name}"
        origin = f"device {self.device}" if self.device else f"address {_network(self.address)}"
        return f"{origin} {'code of ' if self.is_code else ''}{self.name}"


class LoginThrottle:
    """Decides whether a sign-in may be attempted now.

    An attempt counts as failed until it has succeeded, so that guesses sent at once all count.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, remembered: int = REMEMBERED) -> None:
        self._pairs = BackOff(now, remembered)
        self._addresses = Bucket(FAILURES_OF_ADDRESS, ADDRESS_SECONDS, now, remembered)
        self._overall = Bucket(FAILURES_OVERALL, OVERALL_SECONDS, now, 1)

    def wait(self, attempt: Attempt) -> float:
        """Seconds until the attempt is allowed; 0 if it is allowed now."""
        wait = self._pairs.wait(attempt.pair)
        if attempt.device is None:
            spraying = (self._addresses.wait(_network(attempt.address)), self._overall.wait(""))
            wait = max(wait, *spraying)
        return wait

    def begin(self, attempt: Attempt) -> int:
        """Count the attempt as failed; return the failures of its pair."""
        longest = LONGEST_SHARED_WAIT_SECONDS if attempt.is_address_shared else LONGEST_WAIT_SECONDS
        if attempt.device is None:
            self._addresses.add(_network(attempt.address))
            self._overall.add("")
        return self._pairs.add(attempt.pair, longest)

    def succeed(self, attempt: Attempt) -> int:
        """Take the failure back and clear the pair's earlier ones; return their number."""
        failures = self._pairs.clear(attempt.pair)
        if attempt.device is None:
            self._addresses.take_back(_network(attempt.address))
            self._overall.take_back("")
        return max(0, failures - 1)

    def take_back(self, attempt: Attempt) -> None:
        """Take the failure back of an attempt that was never checked."""
        self._pairs.take_back(attempt.pair)
        if attempt.device is None:
            self._addresses.take_back(_network(attempt.address))
            self._overall.take_back("")


class BackOff:
    """Failures by key: after the free ones each failure doubles the time that the key is closed."""

    def __init__(self, now: Callable[[], float], remembered: int) -> None:
        self._now = now
        self._remembered = remembered
        # Failures, and the moment at which the key opens again.
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, key: str) -> float:
        return max(0.0, self._known.get(key, (0, 0.0))[1] - self._now())

    def add(self, key: str, longest: float) -> int:
        failures, until = self._known.pop(key, (0, self._now()))
        failures = 1 if self._now() - until > FORGET_SECONDS else failures + 1
        beyond = failures - FREE_FAILURES
        wait = min(longest, FIRST_WAIT_SECONDS * 2.0 ** min(beyond, 30)) if beyond >= 0 else 0.0
        self._known[key] = (failures, self._now() + wait)
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)
        return failures

    def take_back(self, key: str) -> None:
        if key in self._known:
            self._known[key] = (self._known[key][0] - 1, self._now())

    def clear(self, key: str) -> int:
        return self._known.pop(key, (0, 0.0))[0]

    def __len__(self) -> int:
        return len(self._known)


class Bucket:
    """Failures by key: a leaky bucket of `most`, of which one is forgiven every `seconds`."""

    def __init__(self, most: int, seconds: float, now: Callable[[], float], remembered: int) -> None:
        self._most = most
        self._seconds = seconds
        self._now = now
        self._remembered = remembered
        # The moment at which the last failure of the key is forgiven.
        self._forgiven: OrderedDict[str, float] = OrderedDict()

    def wait(self, key: str) -> float:
        return max(0.0, self._left(key) - (self._most - 1) * self._seconds)

    def add(self, key: str) -> None:
        self._forgiven[key] = self._now() + self._left(key) + self._seconds
        self._forgiven.move_to_end(key)
        while len(self._forgiven) > self._remembered:
            self._forgiven.popitem(last=False)

    def take_back(self, key: str) -> None:
        self._forgiven[key] = self._now() + max(0.0, self._left(key) - self._seconds)

    def __len__(self) -> int:
        return len(self._forgiven)

    def _left(self, key: str) -> float:
        return max(0.0, self._forgiven.get(key, 0.0) - self._now())


def _network(address: str) -> str:
    """The address; for IPv6 its /64 network, which a provider gives to one customer."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address):
        return str(known.ipv4_mapped or ipaddress.ip_network((known, 64), strict=False))
    return address


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """The client's address: the peer's, or the last trusted proxy's X-Forwarded-For."""
    hops = [peer, *(hop.strip() for hop in reversed(forwarded.split(",")) if hop.strip())]
    for hop in hops:
        try:
            address = ipaddress.ip_address(hop)
        except ValueError:
            # A trusted proxy sent something else than an address.
            return peer
        if not any(address in network for network in trusted):
            return str(address)
    return hops[-1]
