"""One self-contained page about a fit: what it is, what is wrong with it, what it says."""

import base64
import io
from collections.abc import Callable, Iterable
from functools import partial
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from pyro_moe import evaluation, plots
from pyro_moe.evaluation.marginals import has_classes
from pyro_moe.fitted import Fit
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.rows import Data, Rows

from . import figures
from .health import Health, health
from .predictive_check import Check, check

WIDE = 7.5  # inches from which on a picture is scrolled on a narrow screen, not shrunk


def report(
    fit: Fit,
    path: str | Path,
    data: Data | None = None,
    *,
    title: str | None = None,
    num_replicates: int = 200,
    seed: int = 0,
) -> Path:
    """Write a page about a fit that opens from disk in any browser, with nothing beside it.

    Warnings come first; then what was fitted and how, scores, predictive checks, the gate, the
    experts, and what the story generates.

    Args:
        fit: A fitted story.
        path: The file to write, such as ``report.html``.
        data: Rows to judge the fit by, best such that it has not seen; the training rows if
            None. `Rows` bring names of columns, labels and the shape of images.
        title: What the page is called; the story's name if None.
        num_replicates: Data sets that the predictive check makes.
        seed: Seed of every draw.

    Returns:
        The path.

    Raises:
        DataError: If the data is not such as was fitted, or the file cannot be written.

    Example:
        >>> import tempfile, torch, pyro_moe
        >>> from pyro_moe import models
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> story = models.GMM(x_dim=2, num_components=2)
        >>> fit = pyro_moe.fit(story.model, story.guide, x, loss="em", epochs=5, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(fit, Path(folder, "report.html"), num_replicates=20).read_text()
        >>> "<title>GMM</title>" in page
        True
    """
    path = Path(path)
    seen = data is None
    rows = _rows(fit, data)
    name = title or ("a fit" if fit.story is None else type(fit.story).__name__)
    checked = _or_none(lambda: check(fit, rows, num_replicates=num_replicates, seed=seed))
    gate = _or_none(lambda: health(fit, rows, seed=seed))
    sections = [
        _warnings(fit, checked, gate, seen),
        _what(fit, rows, seen),
        _scores(fit, rows),
        _checks(fit, rows, checked, seed),
        _gate(fit, rows, gate, seed),
        _experts(fit, rows, seed),
        _story(fit, rows, seed),
    ]
    page = _page(name, sections)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"expected a file that can be written; got {path} ({error.strerror})"
        ) from error
    return path


def _rows(fit: Fit, data: Data | None) -> Rows:
    """The rows with their names, on the CPU."""
    x, *others = fit.data if data is None else fit.as_tensors(data)
    like = data if isinstance(data, Rows) else Rows(x, columns=fit.columns)
    return Rows(
        x.cpu(),
        others[0].cpu() if others else None,
        like.labels,
        like.image_shape,
        like.columns or fit.columns,
        like.targets,
    )


def _or_none(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except SiteError:  # the story lacks what is asked for
        return None


def _warnings(fit: Fit, checked: Check | None, gate: Health | None, seen: bool) -> str:
    found = []
    if fit.stopped:
        found.append(f"training stopped early: {fit.stopped}")
    if gate is not None:
        found += gate.warnings()
    if checked is not None and not checked.surprises().empty:
        first = checked.surprises().iloc[0]
        where = f" ({first['column']})" if first["column"] else ""
        where += "" if pd.isna(first["component"]) else f" in component {first['component']}"
        found.append(
            f"the story does not make data like these: {checked}. Most surprising: the "
            f"{first['statistic']} of {first['site']}{where}, "
            f"{first['observed']:.4g}, where the story has {first['replicated']:.4g} "
            f"± {first['standard_deviation']:.2g}"
        )
    if seen:
        found.append(
            "these are the rows that were fitted: checks on them are kinder than on new ones"
        )
    if not found:
        return '<section class="well"><h2>No warnings</h2><p>Every check passed.</p></section>'
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _what(fit: Fit, rows: Rows, seen: bool) -> str:
    settings = {key: value for key, value in fit.settings.items() if not callable(value)}
    size = sum(parameter.numel() for parameter in fit.parameters().values())
    facts = {
        "rows fitted": f"{len(fit.data[0]):,}",
        "rows of this report": f"{len(rows):,}" + (" (those that were fitted)" if seen else ""),
        "columns of x": str(fit.x_dim),
        "parameters": f"{size:,}",
        "epochs done": f"{len(fit.history):,}",
        **{key.replace("_", " "): str(value) for key, value in settings.items()},
        "versions": ", ".join(f"{p} {version(p)}" for p in ("pyro-moe", "pyro-ppl", "torch")),
    }
    body = "".join(
        f'<tr><td class="text">{escape(key)}</td><td class="text">{escape(value)}</td></tr>'
        for key, value in facts.items()
    )
    history = _picture(plots.history(fit), "The ELBO by epoch, a panel for each phase of training.")
    return _section("What was fitted", f'<div class="scroll"><table>{body}</table></div>{history}')


def _scores(fit: Fit, rows: Rows) -> str:
    scores: dict[str, float] = {"ELBO, nats per row": evaluation.elbo(fit, rows).mean().item()}
    if rows.y is not None:
        rows = rows.with_targets()
        prediction, target = evaluation.predict(fit, rows.x), torch.as_tensor(rows.y)
        if has_classes(prediction.distributions[0]):
            scores |= evaluation.classification_scores(prediction, target)
        else:
            found = evaluation.regression_scores(prediction, target, levels=(0.5, 0.9))
            coverage = found.pop("coverage")
            scores |= {key.replace("_", " "): value for key, value in found.items()}
            scores |= {f"coverage of {a:.0%} intervals": share for a, share in coverage.items()}
    table = pd.DataFrame({"score": list(scores), "value": list(scores.values())})
    return _section("Scores", _table(table))


def _checks(fit: Fit, rows: Rows, checked: Check | None, seed: int) -> str:
    if checked is None:
        return ""
    surprises = checked.surprises()
    shown = checked.table.sort_values("p_value", kind="stable").head(10)
    chosen = shown if surprises.empty else surprises.head(20)
    parts = [f"<p>{escape(str(checked))}.</p>", _table(chosen)]
    if surprises.empty:
        parts.insert(1, '<p class="soft">The ten that are least like the story\'s:</p>')
    if rows.y is not None or rows.image_shape is not None or fit.x_dim <= 50:
        parts.append(
            _picture(
                figures.replicates(fit, rows, seed=seed),
                "Data beside data sets that the story makes.",
            )
        )
    if checked.pit is not None:
        parts.append(
            _picture(figures.pit_histogram(checked), "Where targets lie in their predictions.")
        )
        parts.append(
            _picture(figures.calibration_curve(checked), "Coverage of intervals by level.")
        )
    return _section("Does the story make data like these?", "".join(parts))


def _gate(fit: Fit, rows: Rows, gate: Health | None, seed: int) -> str:
    if gate is None:
        return ""
    numbers = {
        "components": len(gate.shares),
        "effective number of components": gate.effective_components,
        "entropy of the gate, nats per row": gate.entropy,
        "KL(q(c|x) ‖ p(c|z)), nats per row": gate.disagreement,
        "objective less marginal ELBO, nats per row": gate.objective_gap,
    }
    known = {key: value for key, value in numbers.items() if value is not None}
    parts = [_table(pd.DataFrame({"": list(known), "value": list(known.values())}))]
    for picture, caption in (
        (
            partial(plots.gate_map, resolution=120),
            "Which component answers where; paler is less certain.",
        ),
        (plots.latent_map, "Codes of rows, colored by component."),
    ):
        try:
            parts.append(_picture(picture(fit, rows, seed=seed), caption))
        except (DataError, SiteError):  # no plane, or no code
            continue
    return _section("The gate", "".join(parts))


def _experts(fit: Fit, rows: Rows, seed: int) -> str:
    if rows.y is None:
        return ""
    rows = rows.with_targets()
    parts = [
        _table(figures.expert_table(fit, rows, seed=seed)),
        _picture(
            figures.experts(fit, rows, seed=seed),
            "What each expert says as one column varies, over the rows where it rules.",
        ),
        _picture(
            plots.predictions(fit, rows, seed=seed), "Targets against what was predicted of them."
        ),
    ]
    return _section("The experts", "".join(parts))


def _story(fit: Fit, rows: Rows, seed: int) -> str:
    parts = []
    pictures: Iterable[tuple[Callable[[], Figure], str]] = (
        (
            lambda: plots.generated(fit, image_shape=rows.image_shape, seed=seed),
            "What each component generates.",
        ),
        (
            lambda: plots.reconstructions(fit, rows, seed=seed),
            "Rows beside what the story makes of their codes.",
        ),
    )
    for draw, caption in pictures:
        try:
            parts.append(_picture(draw(), caption))
        except (DataError, SiteError):
            continue
    return _section("What the story generates", "".join(parts)) if parts else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{escape(str(name).replace('_', ' '))}</th>" for name in table.columns)
    body = "".join(
        "<tr>" + "".join(_cell(value) for value in row) + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    if pd.isna(value):
        return "<td></td>"
    if isinstance(value, float):
        return f"<td>{value:.4g}</td>"
    text = ' class="text"' if isinstance(value, str) else ""
    return f"<td{text}>{escape(str(value))}</td>"


def _picture(figure: Figure, caption: str) -> str:
    """A picture within the page; one that is wide keeps its size on a narrow screen."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    inches = figure.get_size_inches()[0]
    wide = ' class="wide"' if inches > WIDE else ""
    return (
        f'<figure><div class="scroll"><img{wide} width="{inches * 96:.0f}" alt="{escape(caption)}" '
        f'src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _page(title: str, sections: Iterable[str]) -> str:
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>"
        f"<h1>{escape(title)}</h1>\n"
        + "\n".join(part for part in sections if part)
        + "</main></body></html>\n"
    )
