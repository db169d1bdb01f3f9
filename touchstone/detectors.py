"""The two detectors of a shift between runs: evidence A on pass/fail items, evidence B on run means.

Both keep one e-process E_{j,t} for every run j at which the change may have come, and alarm when their envelope
R_t = sum_j w_j E_{j,t} reaches A = runs_per_year / alpha. The evidence may be looked at after every run, and inside
one. `touchstone.evalues` has the envelope, `touchstone.itemprior` the item model, docs/drift.md the whole story.
"""

from __future__ import annotations

import base64
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from touchstone.evalues import (
    Floats,
    Ints,
    alarm_threshold,
    bounded_exp,
    change_point_posterior,
    change_point_set,
    log_envelope,
    log_shift_ratio,
)
from touchstone.itemprior import ItemModel, fit_priors, overdispersion

WINDOW = 30  # runs that a start stays under watch
DROP_BELOW, DROP_AFTER = -3.0, 3  # a start with E < e^-3 after 3 runs is given up, which only lowers R
BATCH, FEWEST_CALLS, MOST_PASSES = 25, 50, 3
STEADY_PHI = 1.18  # above it runs vary as wholes, and more calls in one run add little
SHIFTS = np.array([0.75, 1.5, 3.0, 6.0])  # of a run mean, in its own sigma

DetectorDirection = Literal["worse", "better"]
Sampler = Callable[[Ints], ArrayLike]


class _Detector(ABC):
    """What both detectors share: the starts under watch, their envelope, alarm, and change point."""

    kind: str

    def __init__(self, runs_per_year: float, alpha: float, direction: DetectorDirection) -> None:
        if direction not in ("worse", "better"):
            raise ValueError(f"direction is {direction!r}; it must be 'worse' (scores fall) or 'better' (they rise)")
        self.log_threshold = float(np.log(alarm_threshold(runs_per_year, alpha)))
        self.runs_per_year, self.alpha = float(runs_per_year), float(alpha)
        self.direction: DetectorDirection = direction
        self.runs = 0  # runs seen since calibration
        self._first = 0  # index of the oldest run that is still kept
        self._weights: list[float] = []  # of each kept run
        self._live: list[bool] = []  # whether each kept run is still watched as a start
        self._log_e = np.empty(0)  # of the live starts, oldest first

    @abstractmethod
    def _evidence(self, starts: Ints) -> Floats:
        """log E of the starts (positions among the kept runs)."""

    @abstractmethod
    def _forget(self, runs: int) -> None:
        """Drop the data of the oldest `runs` kept runs."""

    def _open_run(self, weight: float) -> None:
        """Give up hopeless and expired starts, then add this run as a start."""
        if not (np.isfinite(weight) and weight > 0):
            raise ValueError(f"the weight of a run is {weight}; it must be positive")
        for position, log_e in zip(np.flatnonzero(self._live), self._log_e, strict=True):
            age = len(self._live) - int(position)
            if age >= WINDOW or (age >= DROP_AFTER and log_e < DROP_BELOW):
                self._live[int(position)] = False
        unused = self._live.index(True) if any(self._live) else len(self._live)
        self._forget(unused)
        del self._weights[:unused], self._live[:unused]
        self._first += unused
        self.runs += 1
        self._weights.append(float(weight))
        self._live.append(True)

    def _judge(self) -> bool:
        self._log_e = self._evidence(np.flatnonzero(self._live))
        return self.alarm

    @property
    def log_e_value(self) -> float:
        """log (R / A); 0 or more is an alarm, -inf before the first run."""
        return log_envelope(self._log_e, self._live_weights()) - self.log_threshold

    @property
    def e_value(self) -> float:
        """R / A: 1 or more is an alarm."""
        return bounded_exp(self.log_e_value)

    @property
    def alarm(self) -> bool:
        return self.log_e_value >= 0.0

    @property
    def single_run_e_value(self) -> float:
        """E of the latest run alone, as if the change had come with it; 1 before the first run."""
        return bounded_exp(float(self._log_e[-1])) if self.runs else 1.0

    def change_point(self) -> tuple[int, int]:
        """(run at which the change most likely came, runs in the 95 % set); the first `update` is run 0.

        Meaningful once there is evidence of a change. Raises ValueError before the first run.
        """
        if not self.runs:
            raise ValueError("no run was seen yet, so there is no change point")
        position, size = change_point_set(change_point_posterior(self._log_e, self._live_weights()))
        return self._first + int(np.flatnonzero(self._live)[position]), size

    def _live_weights(self) -> Floats:
        return np.array(self._weights)[self._live] if self._live else np.empty(0)

    def state(self) -> dict[str, Any]:
        """Everything, as a JSON-able dict; `from_state` gives a detector with identical evidence."""
        return {
            "kind": self.kind,
            "runs_per_year": self.runs_per_year,
            "alpha": self.alpha,
            "direction": self.direction,
            "runs": self.runs,
            "first": self._first,
            "weights": list(self._weights),
            "live": list(self._live),
            **self._data(),
        }

    @abstractmethod
    def _data(self) -> dict[str, Any]: ...

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The detector that `state()` described. Raises ValueError on the state of another kind of detector."""
        if state.get("kind") != cls.kind:
            raise ValueError(f"this is the state of a {state.get('kind')!r} detector, not of a {cls.kind!r} one")
        detector = cls.__new__(cls)
        _Detector.__init__(detector, state["runs_per_year"], state["alpha"], state["direction"])
        detector.runs, detector._first = state["runs"], state["first"]
        detector._weights, detector._live = list(state["weights"]), list(state["live"])
        detector._restore(state)
        if detector.runs:
            detector._judge()
        return detector

    @abstractmethod
    def _restore(self, state: dict[str, Any]) -> None: ...


class PassFailDetector(_Detector):
    """Evidence A: pass/fail items, each against its own calibrated pass probability.

    calibration: shape [m, n] (m runs over n items) or [m, k, n] (k passes over the set in each run), values 0, 1, or
    NaN for "not measured"; at least 20 runs keep the promise of `alpha` false alarms a year (10: up to 15 %).
    direction: "worse" finds falling pass rates, "better" is its mirror image (on 1 - score).
    Raises ValueError on other shapes or values.
    """

    kind = "pass_fail"

    def __init__(
        self,
        calibration: ArrayLike,
        runs_per_year: float = 365,
        alpha: float = 0.05,
        *,
        direction: DetectorDirection = "worse",
    ) -> None:
        super().__init__(runs_per_year, alpha, direction)
        rows = np.asarray(calibration, float)
        if rows.ndim not in (2, 3) or not rows.size:
            raise ValueError(f"calibration has shape {rows.shape}; it must be [runs, items] or [runs, passes, items]")
        rows = _binary(rows.reshape(-1, rows.shape[-1]), direction)
        passes, fails = _counts(rows)
        self._set_model(passes, fails, fit_priors(passes, fails))
        self.phi = overdispersion(rows, self._model.group, self._model)
        self._passes: list[Ints] = []  # of each kept run, shape [n]
        self._fails: list[Ints] = []
        self._cursor = 0

    def _set_model(self, passes: Ints, fails: Ints, priors: Floats) -> None:
        self.items = len(passes)
        self._calibration = (passes, fails, priors)
        self._model = ItemModel.from_counts(passes, fails, priors)

    @property
    def sigma(self) -> float:
        """sd of one call around its own item's pass probability, overdispersion included."""
        return float(np.sqrt(self.phi * self._model.variance[self._model.group].mean()))

    def update(self, scores: ArrayLike, *, weight: float = 1.0, continues: bool = False) -> bool:
        """Add a run and say whether the alarm stands now.

        scores: shape [n], or [k, n] for k passes; 0, 1, or NaN for "not measured". With `continues` they belong to
        the run before (a further batch): however a run is split, the evidence is the same. `weight`: see YearlyBudget.
        """
        rows = np.atleast_2d(np.asarray(scores, float))
        if rows.ndim != 2 or rows.shape[1] != self.items:
            raise ValueError(f"scores have shape {np.shape(scores)}; the calibration has {self.items} items")
        passes, fails = _counts(_binary(rows, self.direction))
        if continues and self.runs:
            self._passes[-1], self._fails[-1] = self._passes[-1] + passes, self._fails[-1] + fails
        else:
            self._open_run(weight)
            self._passes.append(passes)
            self._fails.append(fails)
        return self._judge()

    def run(self, sample: Sampler, *, weight: float = 1.0) -> tuple[bool, int]:
        """An adaptive run: ask for as few calls as the day needs; returns (alarm, calls).

        sample(indices) -> scores of these items, one call each (NaN: failed). Items come in rotating batches of 25.
        Stops when alarmed; after 50 calls when no start has evidence (all E <= 1); after a pass over the set unless
        some E >= e^2, then up to 3 passes. Where runs vary as wholes (phi > 1.18) it is one fixed pass.
        """
        self.update(np.full(self.items, np.nan), weight=weight)
        if self.phi > STEADY_PHI:
            return self._sampled(sample, np.arange(self.items)), self.items
        calls = 0
        for _ in range(MOST_PASSES):
            for begin in range(0, self.items, BATCH):
                size = min(BATCH, self.items - begin)
                indices = (self._cursor + np.arange(size)) % self.items
                self._cursor = (self._cursor + size) % self.items
                calls += size
                if self._sampled(sample, indices):
                    return True, calls
                if calls >= FEWEST_CALLS and self._log_e.max() <= 0.0:
                    return False, calls
            if self._log_e.max() < 2.0:
                break
        return False, calls

    def _sampled(self, sample: Sampler, indices: Ints) -> bool:
        scores = np.full(self.items, np.nan)
        scores[indices] = np.asarray(sample(indices), float)
        return self.update(scores, continues=True)

    def _evidence(self, starts: Ints) -> Floats:
        """Counts since each start, each run's divided by its overdispersion: k passes of one run share its luck."""
        passes, fails = np.stack(self._passes), np.stack(self._fails)
        most = (passes + fails).max(axis=1, keepdims=True)
        scale = 1 + np.maximum(most, 1) * (self.phi - 1)
        y = np.cumsum((passes / scale)[::-1], axis=0)[::-1][starts]
        f = np.cumsum((fails / scale)[::-1], axis=0)[::-1][starts]
        return self._model.log_e(y, f)

    def _forget(self, runs: int) -> None:
        del self._passes[:runs], self._fails[:runs]

    def _data(self) -> dict[str, Any]:
        passes, fails, priors = self._calibration
        return {
            "calibration": [pack(passes), pack(fails)],
            "priors": pack(priors),
            "phi": self.phi,
            "passes": pack(np.stack(self._passes)) if self._passes else None,
            "fails": pack(np.stack(self._fails)) if self._fails else None,
            "cursor": self._cursor,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        passes, fails = (unpack(text).astype(np.int64) for text in state["calibration"])
        self._set_model(passes, fails, unpack(state["priors"]))
        self.phi, self._cursor = state["phi"], state["cursor"]
        kept = [[] if state[key] is None else list(unpack(state[key]).astype(np.int64)) for key in ("passes", "fails")]
        self._passes, self._fails = kept


class GradedDetector(_Detector):
    """Evidence B: run means of graded scores, latencies or distances, against the calibrated run means.

    calibration: shape [m], m >= 3 run means. The noise of a run mean is unknown and integrated out (Student t), so
    the evidence does not change under x -> a x + b, a > 0.
    sigma_floor: the smallest sd of a run mean that is believed, in score units. By default none, except for constant
    calibrations (a replayed vendor): those say nothing about noise, and are read as 1 % of their mean (0.01 if 0).
    cases: how many cases `run` asks for. Raises ValueError on other shapes, NaN, or infinity.
    """

    kind = "graded"

    def __init__(
        self,
        calibration: ArrayLike,
        runs_per_year: float = 365,
        alpha: float = 0.05,
        *,
        direction: DetectorDirection = "worse",
        sigma_floor: float | None = None,
        cases: int = 1,
    ) -> None:
        super().__init__(runs_per_year, alpha, direction)
        means = np.asarray(calibration, float)
        if means.ndim != 1 or means.size < 3 or not np.isfinite(means).all():
            raise ValueError(f"calibration has shape {means.shape}; it must be at least 3 finite run means")
        center, spread = float(means.mean()), float(means.std(ddof=1))
        floor = sigma_floor or 0.0
        if sigma_floor is None and spread <= 1e-9 * abs(center):
            floor = 0.01 * abs(center) or 0.01
        self.sigma = max(spread, floor)
        if self.sigma <= 0:
            raise ValueError("constant calibration means need a positive sigma_floor")
        self.center, self.calibration_runs, self.cases = center, means.size, cases
        self._means: list[float] = []  # standardised mean of each kept run

    def update(self, scores: ArrayLike, *, weight: float = 1.0) -> bool:
        """Add a run by its mean, or by the scores that it is the mean of (NaN: not measured); alarm now?

        A run without any score is no run and changes nothing.
        """
        values = np.asarray(scores, float)
        if np.isnan(values).all():
            return self.alarm
        mean = float(np.nanmean(values))
        if not np.isfinite(mean):
            raise ValueError(f"the run mean is {mean}")
        self._open_run(weight)
        self._means.append((mean - self.center) / self.sigma)
        return self._judge()

    def run(self, sample: Sampler, *, weight: float = 1.0) -> tuple[bool, int]:
        """One fixed run over all `cases` (graded evidence is per run, so there is nothing to stop early)."""
        return self.update(sample(np.arange(self.cases)), weight=weight), self.cases

    def _evidence(self, starts: Ints) -> Floats:
        x = np.array(self._means)
        new = len(x) - starts
        sums = np.cumsum(x[::-1])[::-1][starts]
        squares = np.cumsum((x**2)[::-1])[::-1][starts]
        sign = -1.0 if self.direction == "worse" else 1.0
        return log_shift_ratio(self.calibration_runs, new, sums, squares, sign * SHIFTS)

    def _forget(self, runs: int) -> None:
        del self._means[:runs]

    def _data(self) -> dict[str, Any]:
        return {
            "center": self.center,
            "sigma": self.sigma,
            "calibration_runs": self.calibration_runs,
            "cases": self.cases,
            "means": list(self._means),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.center, self.sigma, self.cases = state["center"], state["sigma"], state["cases"]
        self.calibration_runs, self._means = state["calibration_runs"], list(state["means"])


def pack(array: NDArray[Any]) -> dict[str, Any]:
    """A compact JSON form of an array: base64 of the zlib-compressed bytes (integers in the smallest type)."""
    if array.dtype.kind in "iu":
        array = array.astype(np.min_scalar_type(int(array.max(initial=0))))
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    text = base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()
    return {"shape": list(array.shape), "dtype": little.dtype.str, "zlib": text}


def unpack(packed: dict[str, Any]) -> NDArray[Any]:
    """The array of `pack`."""
    raw = zlib.decompress(base64.b64decode(packed["zlib"]))
    return np.frombuffer(raw, np.dtype(packed["dtype"])).reshape(packed["shape"]).copy()


def _binary(rows: Floats, direction: DetectorDirection) -> Floats:
    """Check that scores are 0, 1 or NaN; mirror them for "better"."""
    if not (np.isnan(rows) | (rows == 0) | (rows == 1)).all():
        bad = rows[~(np.isnan(rows) | (rows == 0) | (rows == 1))][0]
        raise ValueError(f"pass/fail scores are 0, 1 or NaN (not measured), not {bad:g}; graded ones: GradedDetector")
    return rows if direction == "worse" else 1.0 - rows


def _counts(rows: Floats) -> tuple[Ints, Ints]:
    """Passes and fails per item over the rows, both of shape [n]."""
    return (rows == 1).sum(axis=0).astype(np.int64), (rows == 0).sum(axis=0).astype(np.int64)
