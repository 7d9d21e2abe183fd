"""A fitted mixture of regressions: coefficients, standard errors and criteria."""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from pyro_moe.evaluation import Prediction, predict
from pyro_moe.fitted import Fit
from pyro_moe.fitting import em_of, scores
from pyro_moe.inference.em import EM

from .coefficients import at_limit, named_parameters, permute
from .fit import FormulaFit
from .labels import places
from .summary import Summary, summarized
from .uncertainty import (
    Information,
    informed,
    intervals,
    is_positive,
    profile_interval,
    scale_of,
)

COVARIANCES = ("observed", "sandwich")


@dataclass(frozen=True, repr=False)
class MixtureFit(FormulaFit):
    """A fitted mixture of regressions, the result of `mixture` with the story ``"me"``.

    It is a `FormulaFit`, with what a statistician asks of one. Names are those of statsmodels.

    Attributes:
        remaining: The increase of the log-likelihood that a step of Newton's method promises at
            the end, in nats.
        cov_type: How `cov_params` is computed, ``"observed"`` or ``"sandwich"``.
    """

    remaining: float = 0.0
    cov_type: str = "observed"

    def __repr__(self) -> str:
        done = "converged" if self.converged else "not converged"
        head = (
            f"MixtureFit({self.design.formula!r}, family={self.family!r}, "
            f"num_components={self.num_components}): "
        )
        if self.restored is not None:
            return f"{head}restored without its {self.num_rows} training rows, {done}"
        return (
            f"{head}{self.nobs:g} rows, "
            f"log-likelihood {self.llf:.6g}, {self.df_model} parameters, {done}"
        )

    @property
    def converged(self) -> bool:
        """Whether the parameters are at a maximum of the likelihood, or with a prior the mode."""
        return self.stopped is None and self.remaining < 1e-6

    # The parameters, and how sure they are

    @functools.cached_property
    def information(self) -> Information:
        r"""The observed information of the parameters of `params`.

        .. math:: A = -\nabla^2 [\ell(\theta) + \log p(\theta)]

        With the prior of the fit; of maximum likelihood, ``prior="none"``, it is that of ℓ alone.

        Raises:
            DataError: If the fit was restored without its training rows.
        """
        return informed(self._em(), self._values, at_limit(self.story, self.design))

    def cov_params(self, cov_type: str | None = None) -> pd.DataFrame:
        r"""The covariance of the estimates.

        .. math:: A^{-1} \text{ or } A^{-1} B A^{-1}, \quad
                  A = -\nabla^2 [\ell + \log p(\theta)], \quad B = \sum_n s_n s_n^\top

        with the score s_n of each row or group, the gradient of its log-likelihood, and the prior
        p(θ) of the fit. At the posterior mode A is the penalized observed information. Where it is
        singular, the entries of parameters that are not determined are NaN, and `undetermined`
        names them.

        Args:
            cov_type: ``"observed"`` or ``"sandwich"``; the attribute ``cov_type`` if None.
        """
        kind = self.cov_type if cov_type is None else cov_type
        if kind not in COVARIANCES:
            raise ValueError(f"expected cov_type in {COVARIANCES}; got {kind!r}")
        inverse = self.information.covariance()
        if kind == "sandwich":
            inverse = sandwich(inverse, self._scores())
        names = self.params.index
        return pd.DataFrame(inverse.cpu().numpy(), names, names)

    @functools.cached_property
    def undetermined(self) -> list[tuple[int, str, str]]:
        """Names of the parameters that the rows do not determine, so that they have no error."""
        flags = self.information.undetermined().tolist()
        return [name for name, flag in zip(self.params.index, flags, strict=True) if flag]

    @property
    def bse(self) -> pd.Series:
        """The standard errors."""
        return self._series(np.sqrt(np.diag(self.cov_params())), "standard error")

    @property
    def tvalues(self) -> pd.Series:
        """The estimates divided by their standard errors, z; NaN for scales, which are positive."""
        return (self.params / self.bse).where(~is_positive(self.params.index)).rename("z")

    @property
    def zvalues(self) -> pd.Series:
        """As `tvalues`."""
        return self.tvalues

    @property
    def pvalues(self) -> pd.Series:
        """P-values of the hypotheses that a coefficient is zero, two-sided."""
        return self._series(2.0 * norm.sf(np.abs(self.tvalues)), "p")

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        r"""Intervals of confidence 1 - α, :math:`\hat\theta \pm z_{1 - \alpha/2}\, se`.

        Those of scales and degrees of freedom are computed on the scale of their logarithm, and
        those of correlations on that of Fisher's z, artanh ρ. They hold for many rows. An
        interval of a normal expert of 18 rows is as narrow as one of 86 % instead of 90 %, even if
        its rows are known. `hmc` has no such error.

        Args:
            alpha: α, between 0 and 1.
        """
        check_alpha(alpha)
        return intervals(self.params, self.bse, alpha)

    def profile_interval(self, name: Any, alpha: float = 0.05) -> tuple[float, float]:
        r"""The interval of a parameter in which the profile likelihood is high.

        .. math:: 2 [\ell(\hat\theta) - \max_{\theta_{-i}} \ell(\theta_i, \theta_{-i})]
                  \le \chi^2_{1, 1 - \alpha}

        Unlike that of `conf_int` it need not be symmetric. With a prior, ℓ is the log-likelihood
        plus log p(θ).

        Args:
            name: A name in the index of `params`, (component, equation, term).
            alpha: α, between 0 and 1.

        Raises:
            ValueError: If there is no such parameter, the rows do not determine it, or weights are
                those of a sample, which have no likelihood.
        """
        check_alpha(alpha)
        if self.weight_type == "sampling":
            raise ValueError(
                "expected rows without weights, or weights that count rows; got sampling weights, "
                "which have no likelihood: use conf_int, or bootstrap"
            )
        names = list(self.params.index)
        if tuple(name) not in names or tuple(name) in self.undetermined:
            known = [each for each in names if each not in self.undetermined]
            raise ValueError(f"expected a parameter of {known}; got {name!r}")
        fit, place, scales = copy.deepcopy(self), names.index(tuple(name)), map(scale_of, names)
        forth = [scale.forth for scale in scales]  # steps of the others are on their scales, too

        def values() -> torch.Tensor:
            return torch.stack([f(value) for f, value in zip(forth, fit._values(), strict=True)])

        scale = scale_of(name)
        error = float(self.bse.iloc[place] * scale.slope(self.params.iloc[place]))
        low, high = profile_interval(fit._em(), values, place, error, alpha)
        return float(scale.back(low)), float(scale.back(high))

    # How well it fits

    @functools.cached_property
    def llf(self) -> float:
        """The log-likelihood of the training rows, in nats."""
        with torch.no_grad():
            return float(self._em().log_likelihoods().sum())

    @property
    def df_model(self) -> int:
        """The number of parameters, scales and the gate's coefficients included."""
        return len(self.params)

    @property
    def df_resid(self) -> float:
        """The number of rows less that of parameters."""
        return self.nobs - self.df_model

    @property
    def nobs(self) -> float:
        """The number of rows, or the sum of their weights."""
        return self.annotations.total(len(self.training_rows[0]))

    @property
    def aic(self) -> float:
        """-2 llf + 2 df_model."""
        return -2.0 * self.llf + 2.0 * self.df_model

    @property
    def bic(self) -> float:
        """-2 llf + log(nobs) df_model."""
        return -2.0 * self.llf + math.log(self.nobs) * self.df_model

    @property
    def icl(self) -> float:
        r"""BIC of the complete data with the most probable assignment.

        .. math:: \mathrm{BIC} - 2 \sum_n \log \max_k p(c_n = k \mid x_n, y_n)
        """
        em = self._em()
        with torch.no_grad():
            largest, share = em.e_step()[0].amax(-1).log(), em.shares()
        return self.bic - 2.0 * float((share * largest).sum())

    @property
    def sizes(self) -> pd.DataFrame:
        """Of each component: the mean gate, the sum of posteriors, and the rows assigned to it."""
        with torch.no_grad():
            q = self._em().e_step()[0].T
            gate = self.story.gate(self.training_rows[0]).probs.double()
        weights = self.annotations.weights
        weights = torch.ones_like(q[0]) if weights is None else weights.to(q)
        hard = torch.zeros_like(q).scatter(0, q.argmax(0, keepdim=True), 1.0)
        found = {
            "gate": gate.mT @ weights / weights.sum(),
            "posterior": q @ weights,
            "assigned": hard @ weights,
        }
        index = pd.RangeIndex(len(q), name="component")
        return pd.DataFrame({name: each.cpu().numpy() for name, each in found.items()}, index)

    def posterior(self) -> pd.DataFrame:
        """The probability of each component given x and y of each training row or its group.

        In rows with a label it is the given one. Rows have the index of the fitted table.
        """
        q = self._em().e_step()[0]
        return pd.DataFrame(q.cpu().numpy(), self.index)

    def classify(self) -> pd.Series:
        """The most probable component of each training row, with the index of the fitted table."""
        return self.posterior().idxmax(axis=1).rename("component")

    def predict(self, data: Any) -> Prediction:
        """The predictive distribution of y for rows, see `evaluation.predict`."""
        return predict(self, data)

    def summary(self, alpha: float = 0.05) -> Summary:
        """Tables of the fit, its components and its coefficients, to print.

        Args:
            alpha: One minus the confidence of the intervals.
        """
        return summarized(self, alpha)

    # Labels

    def relabel(self, order: str | Sequence[int] | tuple[str, str] | Fit = "size") -> "MixtureFit":
        """The fit with its components in another order.

        Args:
            order: ``"size"``, largest first; the name of a coefficient, as ``"x"`` or
                ``("yn", "x")``, smallest first; the present numbers in the new order; or another
                fit of the same rows, whose components it then matches.

        Raises:
            ValueError: If it is no such order.
        """
        found = places(self, order)
        result = copy.deepcopy(self)
        for name in ("params", "information", "undetermined", "llf", "training"):
            vars(result).pop(name, None)
        permute(result.story, found)
        labels = self.annotations.labels
        if labels is None:
            return result
        before = self.design.label_order or range(len(found))
        design = replace(self.design, label_order=tuple(before[k] for k in found))
        annotations = replace(self.annotations, labels=labels[:, found])
        return replace(result, annotations=annotations, design=design)

    # Behind it

    def _em(self) -> EM:
        """A run of EM at the present parameters."""
        return em_of(self, self.programs.model, self.programs.guide)

    def _values(self) -> torch.Tensor:
        return named_parameters(self.story, self.design)[1]

    def _scores(self) -> torch.Tensor:
        """Scores of rows, or of groups, times their weights, or the root of replication weights."""
        each = scores(self._em()) @ self.information.lift
        weights, groups = self.annotations.weights, self.annotations.groups
        if groups is not None or weights is None or self.weight_type == "sampling":
            return each
        return each / weights.double().sqrt().unsqueeze(-1)

    def _series(self, values: Any, name: str) -> pd.Series:
        return pd.Series(np.asarray(values), self.params.index, name=name)


def check_alpha(alpha: float) -> None:
    """Check that α is between 0 and 1."""
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha between 0 and 1; got {alpha}")


def sandwich(inverse: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The sandwich covariance, NaN where the inverse information is.

    Args:
        inverse: Shape (P, P).
        scores: Shape (N, P).
    """
    halves = scores @ inverse.nan_to_num(0.0)
    return (halves.mT @ halves).masked_fill(inverse.isnan(), torch.nan)
