"""Simulation-based calibration of a guide."""

from .calibrating import simulation_based_calibration
from .result import SimulationBasedCalibration

__all__ = ["SimulationBasedCalibration", "simulation_based_calibration"]
