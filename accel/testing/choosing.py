"""On which accelerators a test runs: what ``--accel`` and the marker ``accelerators`` say together.

Layer: above `claims`; used by the pytest plugin, once a test needs it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from attrs import field, frozen, validators

from accel.errors import UsageError
from accel.plugins import find_accelerator, parse_accelerators, plugin_manager, probe_all
from accel.testing.claims import Claims, claims_of

_NOTHING_CHOSEN = "no accelerator is chosen; give --accel NAME, or mark the test with accelerators(NAME)"


def _as_texts(value: str | Iterable[str]) -> frozenset[str]:
    return frozenset((value,) if isinstance(value, str) else map(str, value))


@frozen
class Needs:
    """What one marker says.

    Attributes:
        names: Accelerators to run on; none for those of ``--accel``.
        capabilities: All of these have to be claimed.
        executes: One of these has to be executed; anything will do where it is empty.
        vcpus: So many vCPUs of one VM.
    """

    names: tuple[str, ...] = ()
    capabilities: frozenset[str] = field(default=(), converter=_as_texts)
    executes: frozenset[str] = field(default=(), converter=_as_texts)
    vcpus: int = field(default=1, validator=validators.ge(1))

    def missing(self, claims: Claims) -> str:
        """Return what `claims` lacks, as the reason to skip a test; an empty string if it has everything."""
        lacking = sorted(self.capabilities - {str(one) for one in claims.capabilities})
        if lacking:
            return f"{claims.name} does not claim {', '.join(lacking)}"
        if self.executes and not self.executes & claims.executes:
            can = " and ".join(sorted(claims.executes)) or "nothing"
            return f"{claims.name} executes {can}; this needs {' or '.join(sorted(self.executes))}"
        if self.vcpus > claims.max_vcpus:
            most = f"{claims.max_vcpus} vCPU{'s' if claims.max_vcpus > 1 else ''}"
            return f"{claims.name} has up to {most} in a VM; this needs {self.vcpus}"
        return ""


def needs_of(node: pytest.Item | pytest.Function) -> list[Needs]:
    """Return what the markers of a test say, the closest first. Raises pytest.UsageError for what means nothing."""
    found = []
    for marker in node.iter_markers("accelerators"):
        try:
            found.append(Needs(marker.args, **marker.kwargs))
        except (TypeError, ValueError) as error:
            raise pytest.UsageError(f"{node.nodeid}: accelerators{marker.args}: {error}") from error
    return found


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a test each accelerator that it is to run on.

    Raises:
        pytest.UsageError: A marker means nothing.
    """
    needs = needs_of(metafunc.definition)
    wanted = given(metafunc.config)
    named = next((one.names for one in needs if one.names), ())
    if named and wanted:
        chosen = [name for name in named if name in wanted]
        reason = f"runs on {', '.join(named)}, and --accel is {', '.join(wanted)}"
    else:
        # Who asks for a capability and no name means all that have it.
        chosen = list(named or wanted or (plugin_manager().accelerators() if needs else ()))
        reason = _NOTHING_CHOSEN
    skipped = pytest.param("none", marks=pytest.mark.skip(reason=reason))
    metafunc.parametrize("accelerator_name", chosen or [skipped], indirect=True)


_GIVEN = pytest.StashKey[tuple[str, ...]]()


def given(config: pytest.Config) -> tuple[str, ...]:
    """Return the accelerators of ``--accel``, checked once.

    Raises:
        pytest.UsageError: There is no such accelerator, or none of them can be used here.
    """
    if _GIVEN not in config.stash:
        texts: list[str] = config.getoption("accel")
        try:
            names = parse_accelerators(",".join(texts)) if texts else ()
            answers = probe_all([find_accelerator(name) for name in names])
        except UsageError as error:
            raise pytest.UsageError(f"--accel: {error}") from error
        if names and not any(answer.ok for answer in answers):
            reasons = "; ".join(f"{name}: {answer.reason}" for name, answer in zip(names, answers, strict=True))
            raise pytest.UsageError(f"--accel: none of these can be used here: {reasons}")
        config.stash[_GIVEN] = names
    return config.stash[_GIVEN]


def check_offers(request: pytest.FixtureRequest) -> None:
    """Skip a test if the accelerator that it was given cannot be used, or does not offer what it needs."""
    try:
        claims = claims_of(request.param)
    except UsageError as error:
        raise pytest.UsageError(f"{request.node.nodeid}: {error}") from error
    if claims.problem:
        pytest.skip(f"{claims.name} cannot be used here: {claims.problem}")
    for needs in needs_of(request.node):
        if reason := needs.missing(claims):
            pytest.skip(reason)
