"""Imputation of missing features: importance sampling, then chains where it does not suffice."""

from .entry import Imputation, completions, impute

__all__ = ["Imputation", "completions", "impute"]
