"""How to look for what has to stay in float: AMCT's binary search, and repairs first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from onnxq.dialects.amct.search import AS_CONFIGURED, ROLLED_BACK, Fix, Settings, Strategy, Trial, Trials
from onnxq.errors import RecipeError, nearest


@dataclass(frozen=True)
class BinarySearch:
    """AMCT's search: the shortest prefix of the ranking that is enough when it is rolled back.

    It takes for granted that rolling back more is never worse. Where the last probe failed, the best one is run once
    more, as AMCT does, which has its files written by the last run.

    Source: AMCT's BinarySearch strategy.
    """

    def search(self, trials: Trials) -> Trial | None:
        """Roll back a prefix."""
        best = shortest_prefix(trials, trials.layers, {})
        if best is None:
            trials.give_up()
            return None
        return best if trials.history[-1] is best else trials.run(best.settings, again=True)


@dataclass(frozen=True)
class Repair:
    """Repairs first, and as few layers in float as possible.

    1. Each fix on all layers that offer it (what takes long only on the most damaging ones), kept if less is lost.
    2. The most damaging layers are rolled back one at a time to see what each is worth to the whole model; those that
       are worth most get the fixes they have not had.
    3. Layers are rolled back by what they are worth until it is enough, then by rank.
    4. What was rolled back and turns out not to be needed is quantized again.

    Where more than one layer is left in float, AMCT's search is done as well, and the better of the two results is
    taken: there are never more layers in float than it leaves.

    Attributes:
        focus: How many layers to look at one at a time.
        worst: How many of them to try all fixes on.
        probes: How many evaluations to spend on this at the most; AMCT's search is not counted.
    """

    focus: int = 8
    worst: int = 3
    probes: int = 80

    def search(self, trials: Trials) -> Trial | None:
        """Repair, then roll back."""
        repairer = _Repairer(trials, self)
        found = repairer.run()
        if found is None or len(found.rolled_back) > 1:
            plain = shortest_prefix(trials, trials.layers, {})
            known = [repairer.give_back(trial) for trial in (found, plain) if trial is not None]
            found = min(known, key=lambda t: (len(t.rolled_back), trials.damage(t)), default=None)
        if found is None:
            trials.give_up()
        return found


def strategy_of(name: str | Strategy) -> Strategy:
    """The strategy called `name`, or the strategy itself.

    Raises:
        RecipeError: If there is none of that name.
    """
    if not isinstance(name, str):
        return name
    known: Mapping[str, Strategy] = {"BinarySearch": BinarySearch(), "Repair": Repair()}
    if name not in known:
        raise RecipeError(f"there is no strategy {name!r}; known: {', '.join(known)}{nearest(name, known)}")
    return known[name]


def shortest_prefix(trials: Trials, order: Sequence[str], base: Settings) -> Trial | None:
    """Search for the shortest part of `order` that is enough when it is rolled back.

    Args:
        trials: Where to try.
        order: Layers.
        base: What else to do.

    Returns:
        The trial, or None if nothing short of all layers of the model is enough.
    """
    best: Trial | None = None
    left, right = 0, len(order) - 1
    while left <= right:
        middle = (left + right) // 2
        settings = {**base, **dict.fromkeys(order[: middle + 1], ROLLED_BACK)}
        if all(not settings.get(layer, AS_CONFIGURED).quantize for layer in trials.layers):
            return best
        trial = trials.run(settings)
        if trial.ok:
            best, right = trial, middle - 1
        else:
            left = middle + 1
    return best


class _Repairer:
    """One search by `Repair`; what is best so far is `current`."""

    def __init__(self, trials: Trials, options: Repair) -> None:
        self._trials = trials
        self._options = options
        self._limit = trials.evaluations + options.probes
        self._focus = trials.layers[: options.focus]
        self._order = self._focus
        self._singles: list[Trial] = []
        self._repaired: Settings = {}
        self.current = trials.first

    def run(self) -> Trial | None:
        """Repair, roll back if that is not enough; None if neither is."""
        for step in (self._fix_everywhere, self._fix_the_worst, self._roll_back):
            step()
            if self.current.ok:
                return self.current
        return None

    def give_back(self, trial: Trial) -> Trial:
        """Quantize again what need not be in float, the last rolled back first."""
        for layer in reversed(trial.rolled_back):
            if len(trial.rolled_back) == 1 or self._spent:
                break
            settings = {**trial.settings, layer: self._repaired.get(layer, AS_CONFIGURED)}
            again = self._trials.run(settings)
            if again.ok:
                trial = again
        return trial

    @property
    def _spent(self) -> bool:
        return self._trials.evaluations >= self._limit

    def _try(self, settings: Settings) -> bool:
        """Keep it if it is better, unless it is what there is; whether there is nothing left to try."""
        if settings == self.current.settings or self._spent:
            return self._spent
        trial = self._trials.run(settings)
        if trial.ok or self._trials.damage(trial) < self._trials.damage(self.current):
            self.current = trial
        return self.current.ok

    def _with_fix(self, fix: Fix, layers: Sequence[str]) -> Settings:
        changed = dict(self.current.settings)
        for layer in layers:
            if fix in self._trials.fixes(layer):
                changed[layer] = changed.get(layer, AS_CONFIGURED).with_fix(fix)
        return changed

    def _fix_everywhere(self) -> None:
        for fix in Fix:
            if self._try(self._with_fix(fix, self._focus if fix is Fix.ADAROUND else self._trials.layers)):
                return

    def _fix_the_worst(self) -> None:
        """Find out what each layer is worth, by what is lost without its quantization; then fix the worst."""
        left: dict[str, float] = {}
        for layer in self._focus:
            if self._spent or len(self._trials.layers) == 1:
                break
            trial = self._trials.run({**self.current.settings, layer: ROLLED_BACK})
            left[layer] = self._trials.damage(trial)
            self._singles += [trial] if trial.ok else []
        ordered = sorted(left, key=lambda layer: left[layer])
        self._order = (*ordered, *(layer for layer in self._focus if layer not in left))
        for layer in self._order[: self._options.worst]:
            for fix in Fix:
                if self._try(self._with_fix(fix, [layer])):
                    return

    def _roll_back(self) -> None:
        self._repaired = self.current.settings
        if self._singles:
            self.current = min(self._singles, key=self._trials.damage)
            return
        settings = dict(self._repaired)
        for count, layer in enumerate(self._order, 1):
            if self._spent or count == len(self._trials.layers):
                return
            settings[layer] = ROLLED_BACK
            trial = self._trials.run(settings)
            if trial.ok:
                self.current = trial
                return
        rest = [layer for layer in self._trials.layers if layer not in self._order]
        self.current = shortest_prefix(self._trials, rest, MappingProxyType(settings)) or self.current
