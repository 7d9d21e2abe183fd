"""Mixtures of regressions as a statistician knows them: formulas, coefficients, their errors."""

from .entry import mixture
from .fit import FormulaFit
from .resampling import Bootstrap, BootstrapTest, bootstrap, bootstrap_test
from .result import MixtureFit
from .selection import select_mixture
from .summary import Summary
from .table import coefficient_table

__all__ = [
    "Bootstrap",
    "BootstrapTest",
    "FormulaFit",
    "MixtureFit",
    "Summary",
    "bootstrap",
    "bootstrap_test",
    "coefficient_table",
    "mixture",
    "select_mixture",
]
