"""Checkpoints of a fit, from which it goes on as if it had never been stopped."""

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as serialized

from pyro_moe import files
from pyro_moe.fitted.training import fingerprint
from pyro_moe.inference.errors import DataError, DataWarning, warn
from pyro_moe.inference.programs import restore, state
from pyro_moe.inference.svi import SVI
from pyro_moe.inference.traces import create_parameters

from .plan import Plan

SECONDS = 30.0
KEPT = 2
_NAME = re.compile(r"(.+)-(\d+)-([0-9a-f]{16})\.safetensors")


class Checkpoint:
    """The states of the phases of a fit in a folder, the last two of each.

    A state has the parameters and buffers, the optimizer's moments, the best state so far, and the
    history, on which early stopping and the schedules depend. The random numbers of an epoch
    depend on the seed and its number alone. The name of a file has a hash of its content, so that
    a damaged file is passed over, and the one before it is used.

    Args:
        folder: The folder to save states in, which is created if necessary.
        plan: The plan of the fit.
        resume: The folder with states to go on from, or None. States in other folders than this
            are removed.

    Raises:
        DataError: If the folder cannot be written.

    Warns:
        DataWarning: If there is no state to go on from.
    """

    def __init__(self, folder: str | Path, plan: Plan, resume: str | Path | None = None) -> None:
        self.folder, self.plan = Path(folder), _fingerprint(plan)
        self.source = None if resume is None else Path(resume)
        try:
            if self.source is None or self.source.resolve() != self.folder.resolve():
                for path in _states(self.folder):
                    path.unlink()
        except OSError as error:
            raise files.not_written(self.folder, error) from error
        if self.source is not None and not _states(self.source):
            warn(
                f"expected a checkpoint in {self.source}; got none: the fit starts from the "
                "beginning",
                DataWarning,
            )
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether thirty seconds have passed since the last state was saved."""
        return time.monotonic() - self._saved >= SECONDS

    def go_on(self, phase: str, run: Any, most: float = math.inf) -> list[dict[str, float]]:
        """Set a run to its last state in the folder of the interrupted fit, if there is one.

        Args:
            phase: The name of the phase, which is unique in the fit.
            run: The run of SVI or EM at its start.
            most: The most epochs of the state.

        Returns:
            The records of the epochs that were restored.

        Raises:
            DataError: If the state belongs to another fit.
        """
        if self.source is not None:
            for path in sorted(_states(self.source, phase), key=_epoch, reverse=True):
                found = self._read(path) if _epoch(path) <= most else None
                if found is not None:
                    return _set(run, *found)
        return []

    def go_on_together(self, runs: Mapping[str, Any]) -> None:
        """Set several runs, by phase, to the last state that all have that have epochs left.

        Training saves their states one after the other, and may be killed between them.
        """
        for phase, run in runs.items():
            self.go_on(phase, run)
        going = {phase: run for phase, run in runs.items() if not run.ended}
        least = min((len(run.history) for run in going.values()), default=0)
        for phase, run in going.items():
            if len(run.history) > least:
                self.go_on(phase, run, least)

    def keep(self, phase: str, run: Any) -> None:
        """Save the state of a run that has completed an epoch."""
        if not run.history:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.not_written(self.folder, error) from error
        content = serialized(*_state(run, self.plan))
        digest = hashlib.sha256(content).hexdigest()[:16]
        name = f"{phase}-{len(run.history)}-{digest}.safetensors"
        files.write(self.folder / name, content)
        for path in sorted(_states(self.folder, phase), key=_epoch)[:-KEPT]:
            path.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def keep_together(self, runs: Mapping[str, Any]) -> None:
        """Save the states of several runs, by phase."""
        for phase, run in runs.items():
            self.keep(phase, run)

    def _read(self, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The tensors and the other values of a state, or None if the file is damaged."""
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != path.stem.rpartition("-")[2]:
                return None
            tensors, values = load(content), json.loads(files.metadata(content)["values"])
        except (OSError, SafetensorError):
            return None
        if values["plan"] != self.plan:
            raise DataError(
                f"expected a checkpoint of this fit; got {path}, of other data, another story or "
                "other settings"
            )
        return tensors, values


def _states(folder: Path, phase: str | None = None) -> list[Path]:
    found = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("*.safetensors")]
    return [path for path, match in found if match and phase in (None, match[1])]


def _epoch(path: Path) -> int:
    return int(path.stem.split("-")[-2])


def _fingerprint(plan: Plan) -> str:
    """A hash of the rows, of the settings, and of the names and shapes of the parameters."""
    plain = {
        name: value if isinstance(value, str | int | float | dict | None) else type(value).__name__
        for name, value in plan.settings.items()
    }
    start = (plan.start,) if torch.is_tensor(plan.start) else ()
    named = state({"params": {}}, plan.model, plan.guide)
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    rows = fingerprint((*plan.columns, *plan.annotations.columns, *start))
    parts = [plain, rows, shapes]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _state(run: Any, plan: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What a run needs to go on: tensors, and other values as one text."""
    parts = {"now": state(run.store, run.model, run.guide)}
    values: dict[str, Any] = {"plan": plan, "history": run.history}
    if isinstance(run, SVI):
        parts["best"], values["bfloat16"] = run.best or {}, run.gradients.bfloat16
        if run.optimizer is not None:
            names = {id(value): name for name, value in run.parameters().items()}
            (group,) = run.optimizer.param_groups
            values["optimized"] = [names[id(p)] for p in group["params"]]
            values["numbers"] = {}
            for p, moments in run.optimizer.state.items():
                tensors = {k: v for k, v in moments.items() if torch.is_tensor(v)}
                parts[f"moments.{names[id(p)]}"] = tensors
                others = {k: v for k, v in moments.items() if k not in tensors}
                values["numbers"][names[id(p)]] = others
    found = {
        f"{part}/{name}": value.detach().clone(memory_format=torch.contiguous_format)
        for part, named in parts.items()
        for name, value in named.items()
    }
    return found, {"values": json.dumps(values)}


def _set(
    run: Any, tensors: dict[str, torch.Tensor], values: dict[str, Any]
) -> list[dict[str, float]]:
    """Set a run to a state."""
    parts: dict[str, dict[str, torch.Tensor]] = {"now": {}, "best": {}}
    device = run.data[0].device
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value.to(device)
    if not set(parts["now"]) <= set(state(run.store, run.model, run.guide)):
        example = (column[:1] for column in run.data)
        create_parameters(run.model, run.guide, run.store, *example)
    restore(parts["now"], run.store, run.model, run.guide)
    records = values["history"][len(run.history) :]
    run.history[:] = values["history"]
    if isinstance(run, SVI):
        run.best, run.gradients.bfloat16 = parts["best"] or None, values["bfloat16"]
        if "optimized" in values:
            named = run.parameters()
            learned = [named[name] for name in values["optimized"]]
            run.optimizer = run.new_optimizer(learned)
            for name, numbers in values["numbers"].items():
                moments = {**numbers, **parts.get(f"moments.{name}", {})}
                run.optimizer.state[named[name]] = moments
    return records
