"""The search for the cheapest model that keeps enough: whole recipes first, then layers, and float last.

1. What is faster in float stays float, if that is so when it is measured.
2. Changes of the whole recipe that cost nothing when the model runs, from cheap to costly; what helps is kept.
3. The layers that do most damage are repaired in 8 bits, together and then one by one.
4. Layers get activations of 16 bits, or stay float, by what they damage over what that costs: how many are needed is
   found by doubling and bisection.
5. Of these as many as possible get their codes back.

It sees no model: what it tries, and what came of it, are `Trials`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxq.tune.history import Trial
from onnxq.tune.repairs import Repair, Variant
from onnxq.tune.trials import OutOfTime, Trials

_READERS = 0.5
"""Which part of the damage of a layer counts for those it reads from."""


@dataclass(frozen=True)
class Search:
    """How much to try.

    Attributes:
        focus: How many of the worst layers are repaired together.
        single: How many of them are repaired one by one.
        repairs: How many trials to spend on repairs.
        returns: How many trials to spend on giving layers their codes back.
        margin: A change is kept if it leaves less than this part of the damage.
    """

    focus: int = 8
    single: int = 2
    repairs: int = 16
    returns: int = 12
    margin: float = 0.97

    def run(self, trials: Trials) -> None:
        """Search until a model is found, everything was tried, or the time is over; `trials` has what was found."""
        try:
            _Steps(trials, self).run()
        except OutOfTime:
            return


class _Steps:
    """One search; what is best so far is `current`."""

    def __init__(self, trials: Trials, options: Search) -> None:
        self._trials = trials
        self._options = options
        self._placed = False
        self.current = self._quick = trials.run(Variant(), "as configured")

    def run(self) -> None:
        """Take one step after the other until the constraint is met."""
        self._place()
        if self.current.met:
            return
        if self._change():
            return
        damage = self._trials.rank(self.current.variant)
        if self._repair(damage):
            return
        found = [self._widen(damage), self._leave(damage)]
        for variant, needed in (pair for pair in found if pair is not None):
            self._give_back(variant, needed)

    # ---- whole recipes -------------------------------------------------------------------------

    def _place(self) -> None:
        """Leave float what is faster so."""
        if self._trials.objective != "latency":
            return
        costs = self._trials.prober.costs
        floats = costs.cheapest() & frozenset(self._trials.prober.layers)
        if not floats or len(floats) == len(self._trials.prober.layers):
            return
        placed = self._trials.run(Variant().with_floats(floats), f"{_layers(len(floats))} faster in float")
        if placed.outcome.refused or not self._trials.is_faster(placed, self.current):
            self._trials.set_aside(placed)
            return
        self._placed = True
        self.current = self._quick = placed

    def _floats(self, forced: Sequence[str]) -> frozenset[str]:
        """Layers to leave float, where some must be."""
        left = frozenset(forced) | self.current.variant.floats
        return self._trials.prober.costs.cheapest(left) if self._placed else left

    def _keep(self, trial: Trial) -> bool:
        """Go on from a trial if it is better; whether it meets the constraint."""
        if trial.met or trial.outcome.damage < self._options.margin * self.current.outcome.damage:
            self.current = trial
            self._quick = trial if trial.variant.slow <= 1.0 else self._quick
        return trial.met

    def _change(self) -> bool:
        for change in self._trials.prober.changes():
            variant = self.current.variant.with_change(change)
            if not self._leaves_time(variant):
                continue
            if self._keep(self._trials.run(variant, change.name)):
                return True
        return False

    def _leaves_time(self, variant: Variant) -> bool:
        """Whether a trial leaves time to find out which layers must stay float: that never fails."""
        doublings = math.log2(max(2, len(self._trials.prober.layers)))
        return self._trials.time_for(1.0 + doublings, variant)

    # ---- repairs -------------------------------------------------------------------------------

    def _repair(self, damage: Mapping[str, float]) -> bool:
        """Repair the worst layers, all of them and then each."""
        order = sorted(damage, key=lambda layer: -damage[layer])[: self._options.focus]
        groups: dict[Repair, list[str]] = {}
        for layer in order:
            for repair in self._trials.prober.repairs(layer):
                groups.setdefault(repair, []).append(layer)
        tries = [(layers, repair) for repair, layers in sorted(groups.items(), key=lambda item: item[0].slow)]
        for layer in order[: self._options.single]:
            tries += [([layer], repair) for repair in self._trials.prober.repairs(layer) if groups[repair] != [layer]]
        for layers, repair in tries[: self._options.repairs]:
            variant = self.current.variant.with_repair(layers, repair)
            if not self._leaves_time(variant):
                continue
            where = layers[0] if len(layers) == 1 else _layers(len(layers))
            if self._keep(self._trials.run(variant, f"{repair.name}: {where}")):
                return True
        return False

    # ---- 16 bits and float ---------------------------------------------------------------------

    def _by_gain(self, damage: Mapping[str, float]) -> list[str]:
        """Layers that have codes, by what they damage over what it costs to leave them float, the best first.

        What a layer costs on average is added, so that one that costs nothing and damages next to nothing is not
        the first. A layer is worth a part of what the layers do that read from it: where it is its codes that they
        suffer from, leaving them float is not enough.
        """
        prober, floats = self._trials.prober, self.current.variant.floats
        if self._trials.objective == "latency":
            extra = {name: max(0.0, prober.costs.extra(name, floats)) for name in prober.layers}
        else:
            extra = {name: float(prober.weight_bytes.get(name, 0)) for name in prober.layers}
        usual = sum(extra.values()) / max(1, len(extra)) or 1.0
        worth = {name: damage.get(name, 0.0) for name in prober.layers}
        for edge in prober.costs.edges:
            if edge.producer in worth and edge.consumer in worth:
                worth[edge.producer] += _READERS * damage.get(edge.consumer, 0.0)
        left = [name for name in prober.layers if name not in floats]
        return sorted(left, key=lambda name: -worth[name] / (extra[name] + usual))

    def _widen(self, damage: Mapping[str, float]) -> tuple[Callable[[Sequence[str]], Variant], list[str]] | None:
        """Give layers 16 bits, where that costs less than to leave them float."""
        repair = self._trials.prober.wide()
        base = self.current.variant
        if repair is None:
            return None
        order = [name for name in self._by_gain(damage) if self._trials.prober.costs.wide_pays(name)]

        def widened(layers: Sequence[str]) -> Variant:
            return base.with_repair(layers, repair)

        return self._fewest(order, widened, "with 16 bits", len(order))

    def _leave(self, damage: Mapping[str, float]) -> tuple[Callable[[Sequence[str]], Variant], list[str]] | None:
        """Leave layers float; not all of them, for that is the float model.

        Where time is short what takes long to quantize with is given up for that.
        """
        doublings = math.log2(max(2, len(self._trials.prober.layers)))
        if self.current != self._quick and not self._trials.time_for(2.0 * doublings, self.current.variant):
            self.current = self._quick
        base = self.current.variant
        order = self._by_gain(damage)

        def left(layers: Sequence[str]) -> Variant:
            return base.with_floats(self._floats(layers))

        return self._fewest(order, left, "left float", len(order) - 1)

    def _fewest(
        self, order: Sequence[str], make: Callable[[Sequence[str]], Variant], what: str, most: int
    ) -> tuple[Callable[[Sequence[str]], Variant], list[str]] | None:
        """The shortest beginning of `order` that is enough, by doubling and then bisection."""
        failed, count = 0, 1
        while count <= most and not self._enough(make, order[:count], what):
            failed, count = count, min(2 * count, most) if count < most else most + 1
        if count > most:
            return None
        while count - failed > 1:
            middle = (failed + count) // 2
            if self._enough(make, order[:middle], what):
                count = middle
            else:
                failed = middle
        return make, list(order[:count])

    def _enough(self, make: Callable[[Sequence[str]], Variant], layers: Sequence[str], what: str) -> bool:
        variant = make(layers)
        if len(variant.floats) >= len(self._trials.prober.layers):
            return False
        return self._trials.run(variant, f"{_layers(len(layers))} {what}").met

    def _give_back(self, make: Callable[[Sequence[str]], Variant], needed: list[str]) -> None:
        """Give layers their codes back, halves first: what is enough without them is taken."""
        spent = 0
        waiting = [needed[len(needed) // 2 :], needed[: len(needed) // 2]] if len(needed) > 1 else []
        while waiting and spent < self._options.returns:
            part = waiting.pop(0)
            rest = [name for name in needed if name not in part]
            if not part or not rest or not self._trials.may_cost_less(make(rest), make(needed)):
                continue
            spent += 1
            if self._trials.run(make(rest), f"{_layers(len(part))} given back").met:
                needed = rest
            elif len(part) > 1:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"
