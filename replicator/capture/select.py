"""Chooses the sensor: which one this kernel can have, and which one was asked for."""

from __future__ import annotations

from replicator.capture import tracepoint, vfs
from replicator.capture.bpf import bpf_refusal
from replicator.capture.bpf_sensor import LOST_INODES, RING_BYTES, BpfSensor
from replicator.capture.compile import kernel_types
from replicator.capture.keeping import Keeping
from replicator.capture.sensor import Sensor
from replicator.capture.tracepoint import TracepointSensor
from replicator.capture.vfs import VfsSensor
from replicator.errors import EnvironmentFault, UsageError

SENSORS = ("auto", "tracepoint", "vfs")


def sensor_name(sensor: Sensor) -> str:
    """As --sensor takes it."""
    return type(sensor).__name__.removesuffix("Sensor").lower()


def select_sensor(
    wanted: str,
    fstype: str,
    *,
    tracing: bool = False,
    ring_bytes: int | None = None,
    lost_inodes: int | None = None,
    keeping: Keeping | None = None,
) -> BpfSensor:
    """A sensor, not attached yet. UsageError for an unknown name, EnvironmentFault for one that is not to be had.

    `tracing`: it tells of bytes and sizes only, not of attributes, and keeps the names of processes. For the others see
    `BpfSensor`.
    """
    if wanted not in SENSORS:
        raise UsageError(f"there is no sensor {wanted!r}: use one of {', '.join(SENSORS)}")
    refusal = bpf_refusal()
    if refusal is not None:
        raise EnvironmentFault(refusal)
    sizes = (ring_bytes or RING_BYTES, lost_inodes or LOST_INODES)
    types = kernel_types((fstype, "iomap"))
    if wanted == "vfs" or (wanted == "auto" and vfs.mechanisms(types).usable):
        vfs.check(fstype)
        return VfsSensor(*sizes, tracing=tracing, keeping=keeping, types=types)
    tracepoint.families_of(fstype)
    return TracepointSensor(*sizes, tracing=tracing, keeping=keeping, types=types)
