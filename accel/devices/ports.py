"""Checks of the port numbers that devices are created with; below the devices, above `errors`."""

from __future__ import annotations

from accel.errors import AddressError

PORT_SPACE_SIZE = 1 << 16


def check_port(device: str, port: int, size: int) -> int:
    """Return `port` if `size` ports from there fit into the port space.

    Raises:
        AddressError: They do not fit.
    """
    if not 0 <= port <= PORT_SPACE_SIZE - size:
        raise AddressError(
            f"device '{device}': port {port:#x} does not fit; its first port must be in 0..{PORT_SPACE_SIZE - size:#x}"
        )
    return port
