"""Chooses the sensor: which one this kernel can have, and which one was asked for."""

from __future__ import annotations

from replicator.capture.sensor import Sensor
from replicator.capture.tracepoint import TracepointSensor, families_of
from replicator.errors import EnvironmentFault, UsageError

SENSORS = ("auto", "tracepoint", "vfs")


def sensor_name(sensor: Sensor) -> str:
    """As --sensor takes it."""
    return type(sensor).__name__.removesuffix("Sensor").lower()


def select_sensor(wanted: str, fstype: str, *, tracing: bool = False) -> Sensor:
    """A sensor, not attached yet. UsageError for an unknown name, EnvironmentFault for one that is not to be had.

    `tracing`: it tells of bytes and sizes only, not of attributes, and keeps the names of processes.
    """
    if wanted not in SENSORS:
        raise UsageError(f"there is no sensor {wanted!r}: use one of {', '.join(SENSORS)}")
    if wanted == "vfs":
        raise EnvironmentFault("the vfs sensor is not part of this version: use --sensor tracepoint, or auto")
    families_of(fstype)
    return TracepointSensor(tracing=tracing)
