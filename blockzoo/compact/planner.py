"""Making a plan: differences found, rounded, weighed, combined, measured and certified."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blockzoo.compact.allocate import Offer, frontier, thin
from blockzoo.compact.candidates import certify_points, check_apart, grades_of, is_likely
from blockzoo.compact.differences import Differences, Matrix, find_differences
from blockzoo.compact.grams import grams
from blockzoo.compact.laying import Choice, lay, variant
from blockzoo.compact.options import Option, options_of
from blockzoo.compact.plan import Bytes, CompactPlan, Point, counted
from blockzoo.compact.trial import Trial, make_trial
from blockzoo.equivalence.certify import TOKENS, Paths, paths_of
from blockzoo.equivalence.grade import GRADES
from blockzoo.errors import BlockzooError, UsageError
from blockzoo.execution.packing import WIDTHS
from blockzoo.execution.tensors import to_torch
from blockzoo.execution.texts import read_texts
from blockzoo.progress import Progress, silent
from blockzoo.store.collect import YOUNG
from blockzoo.store.session import Session

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

_POINTS = 9  # of a frontier that are measured at first
_TOUCHED = YOUNG / 4  # seconds between touches of what is written and has no name yet
_REFINED = 3  # times that the middle is measured between what holds a grade and what does not
#: what is foretold to lose less is as good as exact, and what loses more is left out
_LOSSES = (1e-5, 1.5 * GRADES[-1].kl)

Options = Mapping[Matrix, Sequence[Option]]


def plan_compact(
    zoo: Zoo,
    name: str,
    calibration: Paths,
    text: Paths,
    *,
    own: str | Path | None = None,
    base: str | None = None,
    grade: str = "B",
    widths: Sequence[int] = WIDTHS,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> CompactPlan:
    """Plan to keep a full fine-tune as its base and compact differences.

    Parameters
    ----------
    zoo : Zoo
    name : str
        The tuned model.
    calibration : path or sequence of paths
        Text to fit and choose on; the model's own domain should be in it.
    text : path or sequence of paths
        Held-out text to certify on, each file a domain.
    own : path, optional
        Held-out text of the model's own domain.
    base : str, optional
        What to tell it by; the root of its family by default.
    grade : {"A", "B", "C"}
        What is wanted.
    widths : sequence of int
        Bits that a code may have: of 1, 2 and 4. None at all: only a LoRA that had been merged
        is looked for, and it becomes an adapter again.
    tokens : int
        Of each text that is certified on, at most.
    progress : Progress

    Raises
    ------
    SourceError
        Where a text cannot be used, or the two kinds overlap.
    BlockzooError
        Where the model is no full fine-tune of the base.
    """
    if wrong := [bits for bits in widths if bits not in WIDTHS]:
        raise UsageError(f"codes of {wrong[0]} bits are not known", hint="give 1, 2 or 4")
    tuned = zoo.model(name)
    base = base or find_root(zoo, name, progress)
    differences = find_differences(zoo, tuned, zoo.model(base), (name, base))
    chosen_on = read_texts(paths_of(calibration))
    trial = make_trial(zoo.chain(tuned), chosen_on, zoo.tokenizer(tuned))
    check_apart(zoo, tuned, chosen_on, text, own, tokens)
    with Session(zoo.objects) as session:
        progress = _touching(session, progress)
        options = _options(zoo, session, differences, trial, widths, progress)
        _commit(session)
        low = _all_low(options)
        if not widths and not low:
            some = sum(any(o.method == "lowrank" for o in each) for each in options.values())
            raise BlockzooError(
                f"{name} is no low-rank update of {base}: {some} of the {len(options)} matrices "
                "that differ are",
                hint="without --low-rank, differences are kept in codes",
            )
        choices: list[Choice] = []
        picked: list[int] = []
        if widths:
            losses = _foretold(zoo, differences, trial, options, progress)
            choices, picked = _frontier(options, losses)
        if low:
            choices, picked = [low, *choices], [0, *(i + 1 for i in picked)]

        def measured(numbers: Sequence[int]) -> list[Point]:
            return _points(zoo, differences, trial, [choices[i] for i in numbers], progress)

        points = refine(measured, picked, grade)
        certified = certify_points(
            zoo, name, points, grade, text, own, calibration, tokens, progress
        )
        exact = _bytes(differences, {matrix: some[-1] for matrix, some in options.items()})
        return CompactPlan(zoo, name, base, tuned.digest, exact, tuple(certified), grade)


def find_root(zoo: Zoo, name: str, progress: Progress = silent) -> str:
    """The name of the model that a model's family descends from, as far as weights tell.

    Raises
    ------
    BlockzooError
        Where it descends from none.
    """
    lineage = zoo.families(progress).lineage
    digest = zoo.resolve(name)
    while (parent := lineage.parent(digest)) is not None:
        digest = parent
    if digest == zoo.resolve(name):
        raise BlockzooError(
            f"{name} descends from no model in this zoo, as far as its weights tell",
            hint="name its base with --base",
        )
    return lineage.members[digest].name


def _touching(session: Session, progress: Progress) -> Progress:
    """As `progress`, and a session's objects stay young: nothing refers to them for hours yet."""
    touched = time.monotonic()

    def told(what: str, done: int, total: int, new: int) -> None:
        nonlocal touched
        if time.monotonic() - touched >= _TOUCHED:
            touched = time.monotonic()
            _commit(session)
        progress(what, done, total, new)

    return told


def _commit(session: Session) -> None:
    if not session.commit():
        raise BlockzooError("the zoo was collected meanwhile", hint="run it again")


def _options(
    zoo: Zoo,
    session: Session,
    differences: Differences,
    trial: Trial,
    widths: Sequence[int],
    progress: Progress,
) -> dict[Matrix, list[Option]]:
    total = sum(matrix.tuned.nbytes for matrix in differences.matrices)
    done, found = 0, {}
    for matrix, gram in grams(trial.chain, differences.matrices, trial.batches()):
        tensors = (
            to_torch(*zoo.tensor(matrix.tuned.digest)),
            to_torch(*zoo.tensor(matrix.base.digest)),
        )
        found[matrix] = options_of(session, matrix, tensors, gram, sorted(widths))
        done += matrix.tuned.nbytes
        progress("round", done, total, 0)
    return found


def _foretold(
    zoo: Zoo, differences: Differences, trial: Trial, options: Options, progress: Progress
) -> dict[Matrix, list[float]]:
    """The loss of every option by itself: measured for one, by its error for the others."""
    probes, probed = [], []
    whole = {matrix: some[-1] for matrix, some in options.items()}
    for matrix, some in options.items():
        between = [option for option in some if option.method not in ("none", "full")]
        probe = max(between or some[:1], key=lambda option: option.error)
        probed.append(probe)
        probes.append(variant(zoo, differences, lay(differences, {**whole, matrix: probe})))
    told = trial.probe(probes, progress) if probes else []
    return {
        matrix: [option.error * (kl / probe.error if probe.error else 0.0) for option in some]
        for (matrix, some), probe, kl in zip(options.items(), probed, told, strict=True)
    }


def _frontier(
    options: Options, losses: Mapping[Matrix, Sequence[float]]
) -> tuple[list[Choice], list[int]]:
    """The choices that lose least for their bytes, and which of them are worth measuring."""
    offers = [
        Offer(matrix, [(o.resident, kl) for o, kl in zip(some, losses[matrix], strict=True)])
        for matrix, some in options.items()
    ]
    choices = frontier(offers)
    sums = [sum(losses[matrix][number] for matrix, number in c.items()) for c in choices]
    found: list[Choice] = [
        {matrix: options[matrix][i] for matrix, i in choice.items()} for choice in choices
    ]
    return found, worth_measuring(sums)


def _points(
    zoo: Zoo,
    differences: Differences,
    trial: Trial,
    choices: Sequence[Choice],
    progress: Progress,
) -> list[Point]:
    laid = [lay(differences, choice) for choice in choices]
    found = trial.loss([variant(zoo, differences, each) for each in laid], progress)
    return [
        Point(each, counted([o.name for o in choice.values()]), _bytes(differences, choice), loss)
        for each, choice, loss in zip(laid, choices, found, strict=True)
    ]


def _bytes(differences: Differences, choice: Choice) -> Bytes:
    rest = differences.rest  # norms and the like: as many in every choice
    return Bytes(
        rest + sum(option.stored for option in choice.values()),
        rest + sum(option.resident for option in choice.values()),
        rest + sum(option.step for option in choice.values()),
    )


def _all_low(options: Options) -> dict[Matrix, Option]:
    """Every matrix in two factors: a merged LoRA as it was. Empty where not all can be."""
    found = {
        matrix: option for matrix, some in options.items() for option in some
        if option.method == "lowrank"
    }  # fmt: skip
    return found if len(found) == len(options) else {}


def worth_measuring(losses: Sequence[float]) -> list[int]:
    """Places of a frontier, given what each is foretold to lose; the first is the exact model."""
    least, most = _LOSSES
    good = [i for i, kl in enumerate(losses) if i and kl <= most]
    almost = [i for i in good if losses[i] <= least]
    kept = almost[-1:] + [i for i in good if losses[i] > least]
    return [kept[i] for i in thin([losses[i] for i in kept], _POINTS)] if kept else []


def refine(
    measured: Callable[[Sequence[int]], list[Point]], picked: Sequence[int], wanted: str
) -> list[Point]:
    """Measure some choices of a frontier, then those in between where a grade is lost.

    Parameters
    ----------
    measured : callable
        Numbers of choices to their points.
    picked : sequence of int
        What is measured first.
    wanted : str
        Grades worse than this need not be found.

    Returns
    -------
    list of Point
        From the most bytes to the fewest.
    """
    found = dict(zip(picked, measured(picked), strict=True))
    for _ in range(_REFINED):
        between = set()
        for grade in grades_of(wanted):
            good = [i for i, point in found.items() if is_likely(point.loss, grade)]
            worse = [i for i in found if good and i > max(good)]
            if worse:
                between.add((max(good) + min(worse)) // 2)
        new = sorted(between - set(found))
        found |= dict(zip(new, measured(new), strict=True)) if new else {}
    return [found[i] for i in sorted(found)]
