"""The section on predictive checks: statistics, replicates, calibration."""

from pyro_moe.criticism import figures
from pyro_moe.criticism.predictive_check import Check

from .page import columns, paragraph, picture, section, table
from .subject import Subject

LEAST_ROWS = 50  # from which on a histogram of the transform says something
MOST_COLUMNS = 50


def checks(subject: Subject) -> str:
    """The verdict of the predictive check, its most extreme statistics, and pictures of it."""
    checked = subject.checked
    if checked is None:
        return ""
    surprises = checked.surprises()
    extreme = checked.table.sort_values("p_value", kind="stable").head(6)
    chosen = extreme if surprises.empty else surprises.head(12)
    shown = checked.allowed.loc[chosen.index]
    component = shown["component"].astype("string").fillna("all")
    shown = shown.assign(component=component).rename(
        columns={"site": "variable", "replicated": "simulated"}
    )
    note = "the six smallest p-values" if surprises.empty else "the smallest p-values first"
    parts = [paragraph(str(checked))]
    if subject.fit.groups_of(subject.data) is not None and subject.has_target:
        parts.append(paragraph("The rows of a group are simulated with one component"))
    if subject.fit.weight_type == "sampling":
        parts.append(paragraph("Rows are not weighted here, nor in pictures"))
    parts += [paragraph(f"{note}:", soft=True), table(shown), paragraph(_of_p(checked), soft=True)]
    return section("Predictive checks", *parts, columns(*_pictures(subject)))


def _of_p(checked: Check) -> str:
    """What p-values are computed from."""
    spread = (1 + checked.ratio) ** 0.5
    return (
        "p is the share of simulated values that are at least as far from their mean as the "
        "observed one. Parameters are estimates: standard deviations, and p, allow for their error "
        f"by a factor of {spread:.3g}, and distances of distributions by one of {spread**2:.3g}"
    )


def _pictures(subject: Subject) -> list[str]:
    fit, rows, checked = subject.fit, subject.rows, subject.checked
    drawn = []
    if rows.y is not None or rows.image_shape is not None or fit.x_dim <= MOST_COLUMNS:
        drawn.append(
            picture(
                figures.replicates(fit, rows, classes=subject.classes, seed=subject.seed),
                "Observed data and data sets simulated from the model.",
            )
        )
    if checked is not None and checked.pit is not None and len(checked.pit) >= LEAST_ROWS:
        drawn += [
            picture(
                figures.pit_histogram(checked, names=subject.targets),
                "Probability integral transform of the targets. It is uniform if the model is "
                "correct.",
            ),
            picture(
                figures.calibration_curve(checked),
                "Coverage of central prediction intervals against their nominal level.",
            ),
        ]
    return drawn
