"""A plan to let other models' blocks stand in for a model's: which, and what that costs together.

Weights screen: the largest relative distance over a block's tensors, told from sketches, and of
those within reach the nearest few. Then each is swapped in by itself on calibration text; the
cheapest by what it loses for what it saves are put together, measured together, and certified
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from blockzoo.compact.allocate import Offer, frontier
from blockzoo.compact.candidates import certify_points, check_apart
from blockzoo.compact.laying import Laid
from blockzoo.compact.plan import Bytes, CompactPlan, Point
from blockzoo.compact.planner import refine, worth_measuring
from blockzoo.compact.trial import Trial, make_trial
from blockzoo.equivalence.certify import TOKENS, Paths, paths_of
from blockzoo.equivalence.losses import Variant
from blockzoo.equivalence.swap import Swap, fits, swapped
from blockzoo.errors import BlockzooError
from blockzoo.execution.texts import read_texts
from blockzoo.progress import Progress, silent
from blockzoo.records import Model
from blockzoo.similarity.ranking import block_sketches, likeness
from blockzoo.similarity.sketches import Sketches
from blockzoo.store.reach import first_names, reach

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

_WITHIN = 0.25  # relative distance of the farthest tensor: no block farther off ever held C
_NEAREST = 2  # donors of a hop that are tried


def plan_equivalent(
    zoo: Zoo,
    name: str,
    calibration: Paths,
    text: Paths,
    *,
    own: str | Path | None = None,
    grade: str = "B",
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> CompactPlan:
    """Plan to let blocks of other named models stand in for a model's.

    Parameters are `planner.plan_compact`'s.

    Raises
    ------
    SourceError
        Where a text cannot be used, or the two kinds overlap.
    BlockzooError
        Where the model has adapters on its blocks, or no block of another model is near enough
        to be tried.
    """
    model = zoo.model(name)
    if model.kind != "model" or model.compact:
        raise BlockzooError(
            f"{name} has adapters on its blocks, which were made for them and for no others",
            hint="name a full model; `certify` tries single swaps, also under adapters",
        )
    chosen_on = read_texts(paths_of(calibration))
    trial = make_trial(zoo.chain(model), chosen_on, zoo.tokenizer(model))
    check_apart(zoo, model, chosen_on, text, own, tokens)
    donors = _donors(zoo, model, progress)
    if not donors:
        raise BlockzooError(
            f"no block of another model is near enough to stand in for one of {name}'s",
            hint="`blockzoo similar` shows what is near; `dedupe --compact` keeps differences",
        )
    known = _known(zoo, model)
    points = _points(zoo, model, trial, donors, known, grade, progress)
    certified = certify_points(zoo, name, points, grade, text, own, calibration, tokens, progress)
    exact = _bytes(zoo, model, known)
    return CompactPlan(zoo, name, "", model.digest, exact, tuple(certified), grade)


def _donors(zoo: Zoo, model: Model, progress: Progress) -> dict[str, list[Swap]]:
    """For each hop the nearest blocks of other models that fit there."""
    blocks = zoo.blocks_of(model)
    found: dict[str, dict[str, Swap]] = {hop.name: {} for hop in model.chain}
    for digest in first_names(zoo.refs):
        other = zoo.model(digest)
        blocks |= zoo.blocks_of(other)
        hops = {hop.name: hop for hop in other.chain if hop.block}
        for hop in model.chain:
            theirs = hops.get(hop.name)
            if theirs is None or theirs.adapters or theirs.block == hop.block:
                continue
            if fits(blocks[hop.block], blocks[theirs.block]):
                swap = Swap(hop.name, hop.block, theirs.block, digest, theirs.name)
                found[hop.name].setdefault(theirs.block, swap)
    compared = {
        d for some in found.values() for swap in some.values() for d in (swap.block, swap.by)
    }
    known = block_sketches(Sketches(zoo.objects), [blocks[d] for d in sorted(compared)], progress)
    donors: dict[str, list[Swap]] = {}
    for hop in model.chain:
        apart = {
            by: likeness(blocks[hop.block], blocks[by], known).largest for by in found[hop.name]
        }
        near = sorted((by for by in apart if apart[by] <= _WITHIN), key=lambda by: apart[by])
        if near:
            donors[hop.name] = [found[hop.name][by] for by in near[:_NEAREST]]
    return donors


def _points(
    zoo: Zoo,
    model: Model,
    trial: Trial,
    donors: Mapping[str, Sequence[Swap]],
    known: Set[str],
    grade: str,
    progress: Progress,
) -> list[Point]:
    swaps = [swap for some in donors.values() for swap in some]
    told = trial.probe([_variant(zoo, model, (swap,)) for swap in swaps], progress)
    lost = dict(zip(swaps, told, strict=True))

    def change(swap: Swap) -> int:
        return _bytes(zoo, swapped(model, (swap,)), known).resident - before

    before = _bytes(zoo, model, known).resident
    # bytes are counted from the exact model, downwards
    offers = [
        Offer(hop, [(0, 0.0), *((change(swap), lost[swap]) for swap in some)])
        for hop, some in donors.items()
    ]
    choices = frontier(offers)

    def chosen(choice: Mapping[str, int]) -> tuple[Swap, ...]:
        order = [hop.name for hop in model.chain]
        taken = [donors[hop][number - 1] for hop, number in choice.items() if number]
        return tuple(sorted(taken, key=lambda swap: order.index(swap.hop)))

    sums = [sum(lost[swap] for swap in chosen(choice)) for choice in choices]
    names = first_names(zoo.refs)

    def measured(numbers: Sequence[int]) -> list[Point]:
        picked = [chosen(choices[i]) for i in numbers]
        losses = trial.loss([_variant(zoo, model, some) for some in picked], progress)
        return [
            Point(
                Laid(some, {}),
                _counts(some, names),
                _bytes(zoo, swapped(model, some), known),
                loss,
            )
            for some, loss in zip(picked, losses, strict=True)
        ]

    return refine(measured, worth_measuring(sums), grade)


def _counts(swaps: Sequence[Swap], names: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for swap in swaps:
        donor = f"{names.get(swap.donor, swap.donor[:12])}'s"
        found[donor] = found.get(donor, 0) + 1
    return found


def _variant(zoo: Zoo, model: Model, swaps: Sequence[Swap]) -> Variant:
    names = [hop.name for hop in model.chain]
    return Variant.changed_from(names.index(swaps[0].hop), zoo.chain(swapped(model, swaps)))


def _known(zoo: Zoo, model: Model) -> set[str]:
    """Digests of the tensors that other named models have."""
    others = set(first_names(zoo.refs)) - {model.digest}
    blocks = reach(zoo.objects, dict.fromkeys(others, ())).blocks.values()
    return {ref.digest for block in blocks for ref in block.tensors.values()}


def _bytes(zoo: Zoo, model: Model, known: Set[str]) -> Bytes:
    """Bytes of a chain's tensors that no other named model has."""
    own = {
        ref.digest: ref.nbytes
        for block in zoo.blocks_of(model).values()
        for ref in block.tensors.values()
        if ref.digest not in known
    }
    size = sum(own.values())
    return Bytes(size, size, size)
