"""Criticism of a fitted story: predictive checks, calibration, comparison, a report."""

from .calibration import calibration, normal_scores, probability_integral_transform
from .comparison import compare
from .effects import Effects, effects, expert_table, experts
from .figures import calibration_curve, pit_histogram, replicates
from .health import Health, health
from .inference_data import to_arviz
from .posterior_calibration import SimulationBasedCalibration, simulation_based_calibration
from .predictive_check import Check, check
from .report import report
from .statistics import Sample, Statistic
from .summary import summary

__all__ = [
    "Check",
    "Effects",
    "Health",
    "Sample",
    "SimulationBasedCalibration",
    "Statistic",
    "calibration",
    "calibration_curve",
    "check",
    "compare",
    "effects",
    "expert_table",
    "experts",
    "health",
    "normal_scores",
    "pit_histogram",
    "probability_integral_transform",
    "replicates",
    "report",
    "simulation_based_calibration",
    "summary",
    "to_arviz",
]
