"""The search: which candidates are simulated, how far, and which is best. It simulates nothing; a
function that answers questions is passed in.

1. Every layout that fits, from the least guess on, by estimates. Left out are those whose guess is
   far behind the best estimate, and given up those whose clock is: both are heuristics, which
   `benchmarks/plans.py` holds against full enumerations.
2. The best of these along every axis of the space, one at a time; what helped is put together, and
   the same begins anew around it, with fewer of them, until nothing helps.
3. The best by estimate on the whole load: the winner and those close behind it, until the first of
   all is a whole run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from batchgen.errors import UserError
from batchgen.search.crew import Answer, Ask
from batchgen.search.estimate import Estimate
from batchgen.search.fit import Fitted, Fitter
from batchgen.search.space import SPLITS, Axis, Candidate, Options

ROUND = 8
"""Candidates that are asked about together: all have the limit of what was known before."""
CUT = 1.2
"""Times the best estimate, at which a candidate is given up."""
CUT_OPEN = 1.7
"""The same of layouts whose options are searched too: these may gain so much."""
CENTRES = (6, 3, 2)
"""Candidates around which every axis is tried, by sweep."""
MOST_SPLITS = 3
"""Numbers of engines that prefill, those of the least guess, that are tried around a centre."""
GAIN = 0.997
"""Times the centre's time: what counts as better."""
CLOSE = 1.08
"""Times the best estimate: what is close behind it, and simulated whole."""
MOST_WHOLE = 10
LARGE_LOAD = 50_000
"""Rows from which on only the best by estimate is simulated whole: shares of so many rows are
alike."""


@dataclass(slots=True, kw_only=True)
class Found:
    """What a search found. best: a whole run, unless all were given up; rest: the others that were
    tried, best first; refused: why others were not; guesses: by candidate."""

    best: Estimate
    rest: list[Estimate]
    refused: dict[str, str]
    fitting: int
    guesses: dict[Candidate, float] = field(default_factory=dict)

    @property
    def runner_up(self) -> Estimate | None:
        """The next best in another layout, or else with other options; of those whose time is known
        if there is one."""
        known = [one for one in self.rest if one.how in ("simulated", "estimate")]
        tried = known or [one for one in self.rest if one.how != "ideal passes"]
        other = [one for one in tried if one.candidate.layout != self.best.candidate.layout]
        return next(iter(other or tried), None)


class Finder:
    """One search. limit_s: nobody wants what takes longer (a deadline)."""

    def __init__(self, fitter: Fitter, answer: Answer, *, limit_s: float | None = None) -> None:
        self.fitter, self.answer, self.limit_s = fitter, answer, limit_s
        self.known: dict[Candidate, Estimate] = {}
        self.guesses: dict[Candidate, float] = {}
        self.crowded: dict[Candidate, bool] = {}
        self.likes: dict[tuple[object, ...], list[Fitted]] = {}

    def run(self) -> Found:
        """Raises UserError when nothing fits, and what simulations raise."""
        fitting = self.fitter.layouts()
        fitting.sort(key=lambda one: one.guess_s)
        for one in fitting:
            self._know(one)
        self._try_all(fitting)
        for count in CENTRES:
            if not self._sweep(count):
                break
        self._try_whole()
        return self._found(len(fitting))

    # -- limits -----------------------------------------------------------------------------------

    def _best(self) -> Estimate | None:
        tried = [one for one in self.known.values() if one.how != "ideal passes"]
        return min(tried, key=_first, default=None)

    def _limit(self, cut: float) -> float | None:
        """The clock at which a candidate is given up; None while none serves all rows."""
        best = self._best()
        least = None if best is None or best.failed else cut * best.seconds
        if self.limit_s is None:
            return least
        return cut * self.limit_s if least is None else min(least, cut * self.limit_s)

    def _know(self, fitted: Fitted) -> None:
        self.guesses[fitted.candidate] = fitted.guess_s
        self.crowded[fitted.candidate] = fitted.crowded
        self.likes.setdefault(fitted.like, []).append(fitted)

    # -- 1: layouts -------------------------------------------------------------------------------

    def _try_all(self, fitting: list[Fitted]) -> None:
        cut = CUT_OPEN if self.fitter.space.budgets else CUT
        for begin in range(0, len(fitting), ROUND):
            self._ask([one.candidate for one in fitting[begin : begin + ROUND]], cut)

    def _ask(self, candidates: Iterable[Candidate], cut: float) -> None:
        """Estimates of candidates that are not hopeless by their guess."""
        limit, best = self._limit(cut), self._best()
        hopeless = limit
        if limit is not None and best is not None and best.seconds < self.guesses[best.candidate]:
            # Guesses are too high for this load: a candidate is held against the best one's guess.
            hopeless = limit * self.guesses[best.candidate] / best.seconds
        asks = []
        for one in candidates:
            if hopeless is not None and self.guesses[one] > hopeless:
                self.known[one] = Estimate(
                    candidate=one, seconds=self.guesses[one], how="ideal passes"
                )
            else:
                asks.append(Ask(candidate=one, limit_s=limit, is_whole=False))
        for found in self.answer(asks):
            self.known[found.candidate] = found

    # -- 2: options -------------------------------------------------------------------------------

    def _sweep(self, count: int) -> bool:
        """Tries every axis around the best of so many layouts; whether the best of all gained."""
        before = self._best()
        if before is None:
            return False
        centres = self._centres(count)
        axes = {one: self._axes(one) for one in centres}
        tried = []
        for one in centres:
            for axis in axes[one]:
                new = self._new(
                    one.without(axis.keys).having(value) for value in self._near(one, axis)
                )
                tried += new[: MOST_SPLITS if axis.name == SPLITS else None]
        if not tried:
            return False
        self._in_rounds(tried, CUT)
        together = []
        for one in centres:
            together += self._together(one, axes[one])
        self._in_rounds(self._new(together), CUT)
        after = self._best()
        assert after is not None
        return after.failed < before.failed or after.seconds < GAIN * before.seconds

    def _centres(self, count: int) -> list[Candidate]:
        """The best candidate of each of the best layouts, of those places that fit."""
        best: dict[object, Estimate] = {}
        for one in self.known.values():
            if one.how in ("simulated", "estimate"):
                layout = one.candidate.layout
                if layout not in best or one.key < best[layout].key:
                    best[layout] = one
        return [one.candidate for one in sorted(best.values(), key=lambda one: one.key)[:count]]

    def _axes(self, candidate: Candidate) -> list[Axis]:
        return self.fitter.axes(candidate, crowded=self.crowded[candidate])

    def _near(self, centre: Candidate, axis: Axis) -> list[Options]:
        """Values of an axis, that of the job among them, but the centre's own."""
        own = tuple(pair for pair in centre.options if pair[0] in axis.keys)
        return [value for value in ((), *axis.values) if value != own]

    def _new(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those that are not known yet, fit, and differ from all others in what they do."""
        found = []
        for one in dict.fromkeys(candidates):
            if one in self.known or str(one) in self.fitter.refused:
                continue
            try:
                fitted = self.fitter.fit(one)
            except UserError as error:
                self.fitter.refused[str(one)] = str(error)
                continue
            as_good = [f for f in self.likes.get(fitted.like, ()) if f.covers(fitted)]
            if as_good:
                self.fitter.refused[str(one)] = as_good[0].as_good
                continue
            self._know(fitted)
            found.append(one)
        return sorted(found, key=lambda one: self.guesses[one])

    def _in_rounds(self, candidates: list[Candidate], cut: float) -> None:
        candidates = sorted(dict.fromkeys(candidates), key=lambda one: self.guesses[one])
        for begin in range(0, len(candidates), 2 * ROUND):
            self._ask(candidates[begin : begin + 2 * ROUND], cut)

    def _together(self, centre: Candidate, axes: list[Axis]) -> list[Candidate]:
        """What helped, put together: the best value of every axis, and of every two."""
        helped: list[tuple[tuple[int, float], Axis, Options]] = []
        at = self.known[centre]
        for axis in axes:
            tried = [
                (self.known[step].key, value)
                for value in self._near(centre, axis)
                if (step := centre.without(axis.keys).having(value)) in self.known
            ]
            key, value = min(tried, default=((0, float("inf")), ()))
            if tried and key < (at.failed, GAIN * at.seconds):
                helped.append((key, axis, value))
        helped.sort(key=lambda one: one[0])
        found = [_with(centre, helped[:count]) for count in range(2, len(helped) + 1)]
        found += [
            _with(centre, [one, other]) for i, one in enumerate(helped) for other in helped[i + 1 :]
        ]
        return list(dict.fromkeys(found))

    # -- 3: the whole load ------------------------------------------------------------------------

    def _try_whole(self) -> None:
        left = MOST_WHOLE if len(self.fitter.trace) < LARGE_LOAD else 1
        while left > 0:
            best = self._best()
            if best is None or best.how != "estimate":
                return
            near = [
                one
                for one in self.known.values()
                if one.how == "estimate"
                and one.failed <= best.failed
                and one.seconds <= CLOSE * best.seconds
            ]
            near = sorted(near, key=lambda one: one.key)[: max(1, left // 2)]
            left -= len(near)
            limits = [
                one.seconds
                for one in self.known.values()
                if one.how == "simulated" and one.failed <= best.failed
            ]
            limits += [] if self.limit_s is None else [self.limit_s]
            limit = min(limits, default=None)
            asks = [Ask(candidate=one.candidate, limit_s=limit, is_whole=True) for one in near]
            for found in self.answer(asks):
                found.share_s = self.known[found.candidate].share_s
                self.known[found.candidate] = found

    def _found(self, fitting: int) -> Found:
        tried = [one for one in self.known.values() if one.how != "ideal passes"]
        whole = [one for one in tried if one.how == "simulated"]
        best = min(whole or tried or list(self.known.values()), key=_first)
        # Options that gain next to nothing are left out of the answer.
        plain = [
            one for one in whole if one.failed == best.failed and GAIN * one.seconds <= best.seconds
        ]
        best = min(plain, default=best, key=lambda one: (len(one.candidate.options), one.seconds))
        # Shares end a little earlier than all engines together: estimates that are left are
        # multiplied by the largest time of a whole load over that of its share.
        over = max([1.0, *(one.seconds / one.share_s for one in whole if one.share_s)])
        for one in tried:
            if one.how == "estimate":
                one.seconds *= over
        rest = [one for one in self.known.values() if one is not best]
        rest.sort(key=lambda one: (one.how == "ideal passes", one.key))
        return Found(
            best=best,
            rest=rest,
            refused=self.fitter.refused,
            fitting=fitting,
            guesses=self.guesses,
        )


def _first(one: Estimate) -> tuple[int, float, bool]:
    """Of two with the same time the one that has run to its end."""
    return *one.key, one.how != "simulated"


def _with(centre: Candidate, helped: list[tuple[tuple[int, float], Axis, Options]]) -> Candidate:
    for _, axis, value in helped:
        centre = centre.without(axis.keys).having(value)
    return centre
