"""A prefix computed once serves whoever has the same upstream, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from blockzoo.zoo import Zoo
from tests.runtime.answers import reference
from tests.runtime.blocks.stepping import Stepper
from tests.runtime.blocks.test_mixture import assert_equal

PROMPT = [(17 * i) % 4000 + 5 for i in range(45)]


def test_a_second_request_of_a_tenant_computes_only_its_end(real_zoo: Zoo, shared: Path) -> None:
    stepper = Stepper(real_zoo)
    model = reference(shared / "family" / "sql-full")
    for tail in ([7, 8, 9], [100]):
        row = stepper.row("sql-full", PROMPT + tail, 8)
        stepper.run([row])
        assert_equal(row, model)
    assert row.reused == (40,) * 4


def test_tenants_that_part_later_go_on_from_kept_hidden_states(real_zoo: Zoo, shared: Path) -> None:
    stepper = Stepper(real_zoo)
    names = ("base", "shakespeare-top3")  # the same up to layer 4 of 8
    models = {name: reference(shared / "family" / name) for name in names}
    first = [stepper.row(name, [5, 6, 7], 1) for name in names]
    stepper.run(first)  # from here on it is known where they part
    before = stepper.computed
    row = stepper.row("base", [*PROMPT, 9], 6)
    stepper.run([row])
    assert_equal(row, models["base"])
    alone = stepper.computed - before
    row = stepper.row("shakespeare-top3", [*PROMPT, 30, 31], 6)
    assert row.reused == (40, 40, 0, 0)
    stepper.run([row])
    assert_equal(row, models["shakespeare-top3"])
    row = stepper.row("shakespeare-top3", [*PROMPT, 30, 33], 6)
    assert row.reused == (40,) * 4
    before = stepper.computed
    stepper.run([row])
    assert_equal(row, models["shakespeare-top3"])
    assert stepper.computed - before < alone / 3


def test_chunks_smaller_than_what_is_shared(real_zoo: Zoo, shared: Path) -> None:
    stepper = Stepper(real_zoo)
    names = ("base", "shakespeare-top3", "chat-added-tokens")
    stepper.run([stepper.row(name, [5, 6, 7], 1) for name in names])
    stepper.run([stepper.row("base", PROMPT, 2)])
    rows = [stepper.row("shakespeare-top3", [*PROMPT, i], 5, chunk=i) for i in (1, 3, 11, 50)]
    rows += [stepper.row("base", PROMPT[:20], 5, chunk=2)]
    assert {row.reused for row in rows[:4]} == {(40, 40, 0, 0)}
    stepper.run(rows)
    for row, name in zip(rows, ["shakespeare-top3"] * 4 + ["base"], strict=True):
        assert_equal(row, reference(shared / "family" / name))


def test_virtual_tokens_are_part_of_what_is_shared(real_zoo: Zoo, shared: Path) -> None:
    stepper = Stepper(real_zoo)
    model = reference(shared / "family" / "trec-prefix")
    for chunk in (3, 99):
        rows = [stepper.row("trec-prefix", [*PROMPT, i], 5, chunk=chunk) for i in (1, 2)]
        stepper.run(rows)
        for row in rows:
            assert_equal(row, model)
    assert rows[0].reused == (48,) * 4
    plain = stepper.row("base", PROMPT, 2)
    assert plain.reused == (0,) * 4


def test_another_dtype_shares_nothing(real_zoo: Zoo) -> None:
    wide, narrow = Stepper(real_zoo), Stepper(real_zoo, torch.bfloat16)
    first, second = (stepper.row("base", PROMPT, 1) for stepper in (wide, narrow))
    assert set(first.tenant.upstream or ()).isdisjoint(second.tenant.upstream or ())
