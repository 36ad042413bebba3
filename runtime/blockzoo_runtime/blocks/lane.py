"""Tenants whose chains have the same executors, and one step of all their rows.

A step's new tokens are packed, ``(1, N, width)``, ordered by tenant. Layers are cut into hop
groups: at each, a row computes the slots whose keys and values do not stand there yet. Where a
row begins earlier in a deeper group, because only the shallower ones are shared with others, the
hidden states between come from the pages, where they were kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from blockzoo.execution.adapters.virtual import Prefix, Prompt
from blockzoo.execution.compile import Compiled, CompiledHop
from blockzoo.execution.context import Context
from blockzoo_runtime.blocks.profile import Profile
from blockzoo_runtime.blocks.resident import ResidentTensors
from blockzoo_runtime.blocks.route import Route
from blockzoo_runtime.blocks.rows import Joined, Row, Work, by_tenant, calls
from blockzoo_runtime.kv.attention import PagedAttention
from blockzoo_runtime.kv.cache import KVCache
from blockzoo_runtime.kv.layout import PAGE
from blockzoo_runtime.kv.spans import places
from blockzoo_runtime.upload import upload

if TYPE_CHECKING:
    from blockzoo_runtime.tenant import Tenant


class Lane:
    """Runs the rows of some tenants.

    Parameters
    ----------
    resident : ResidentTensors
    kv : KVCache
    first : Tenant
        One of them; the others' chains are of the same make.
    profile : Profile, optional
        How fast each kind of block is on the device by batch size. None: batches are not cut.
    """

    def __init__(
        self,
        resident: ResidentTensors,
        kv: KVCache,
        first: Tenant,
        profile: Profile | None = None,
    ) -> None:
        self._resident = resident
        self._kv = kv
        self._layout = first.layout
        self._compiled = first.compiled
        if resident.device.type != "cpu":
            _move_buffers(self._compiled, resident.device)
        self._knees = [_knee(hop, profile) for hop in self._compiled.hops]
        self._order: list[Tenant] = []
        self._route: tuple[tuple[tuple[str, int], ...], Route] | None = None

    @property
    def route(self) -> Route:
        """The last step's."""
        assert self._route is not None
        return self._route[1]

    def step(self, works: Sequence[Work]) -> tuple[torch.Tensor, list[int]]:
        """Compute the works' new slots.

        Returns
        -------
        logits : torch.Tensor
            (R, V) float32: the wanted positions' of all works, ordered by tenant. Where a
            tenant's vocabulary is smaller than V, the rest is ``-inf``.
        order : list of int
            The order of the works in it.
        """
        tenants = self._tenants(works)
        place = {tenant.digest: i for i, tenant in enumerate(tenants)}
        order = sorted(range(len(works)), key=lambda i: place[works[i].tenant.digest])
        rows = [Row(works[i], [min(start, works[i].end) for start in works[i].pages.starts])
                for i in order]  # fmt: skip
        route = self._routed(tenants)
        for row in rows:
            self._prefix(row)
        rows = [row for row in rows if row.new]  # a chunk of nothing but a prefix is done
        owners = [place[row.work.tenant.digest] for row in rows]
        if not rows:
            return torch.empty(0, 0), order
        try:
            return self._run(route, rows, owners), order
        finally:
            route.leave()

    def _run(self, route: Route, rows: list[Row], owners: list[int]) -> torch.Tensor:
        layout, device = self._layout, self._resident.device
        count = len(layout.groups)
        new = [row.new for row in rows]
        pools = [self._kv.pool(layout, group) for group in range(count)]
        joined = Joined(rows, count, device)
        attention = PagedAttention(layout, pools, joined.spans, device)
        context = self._context(route, rows, owners)
        full = context.hidden
        hidden: torch.Tensor = joined.take(full, 0)
        compiled = self._compiled
        hop = 1
        for group in range(count):
            if group and joined.differs(group):
                kept = pools[group - 1].hidden
                assert kept is not None
                hidden = joined.merge(hidden, group, kept)
            route.frame.set(by_tenant(owners, joined.counts[group], len(route.frame.bounds) - 1))
            arguments: dict[Any, dict[str, Any]] = {}
            while hop <= len(compiled.hops):
                part = compiled.hops[hop - 1]
                if layout.group_of(part.depth)[0] != group:
                    break
                if not hidden.shape[1]:  # all of the group stands already
                    hop += 1
                    continue
                kind = part.layer_type
                if kind not in arguments:
                    given = {name: joined.take(value, group)
                             for name, value in context.of(kind).items()}  # fmt: skip
                    given[compiled.family.cache_argument] = attention
                    arguments[kind] = given
                route.enter(hop)
                hidden = self._block(route, hop, hidden, arguments[kind])
                hop += 1
            states = pools[group].hidden
            if states is not None:  # tenants part here
                states.index_copy_(0, attention.slots(group), hidden[0])
        wanted: list[int] = []
        last = 0
        for row, size in zip(rows, new, strict=True):
            last += size
            wanted += range(last - row.work.outputs, last)
        outputs = [row.work.outputs for row in rows]
        route.frame.set(by_tenant(owners, outputs, len(route.frame.bounds) - 1))
        if len(wanted) < hidden.shape[1]:
            [index] = upload([wanted], device)
            hidden = hidden.index_select(1, index)
        if not wanted:
            return hidden.new_empty(0, 0, dtype=torch.float32)
        route.enter(hop)
        logits: torch.Tensor = compiled.tail.run(hidden)[0].float()
        first = 0
        for row in rows:
            last = first + row.work.outputs
            if row.work.tenant.vocabulary < logits.shape[1]:
                logits[first:last, row.work.tenant.vocabulary :] = float("-inf")
            first = last
        return logits

    def _block(
        self, route: Route, hop: int, hidden: torch.Tensor, arguments: dict[str, Any]
    ) -> torch.Tensor:
        """One hop, in batches of the size that suits its kind of block."""
        part, knee, frame = self._compiled.hops[hop - 1], self._knees[hop - 1], route.frame
        if knee is None or frame.tokens < 2 * knee:
            return part.executor.run(hidden, part.depth, arguments)
        whole, pieces, first = frame.counts, [], 0
        for counts in frame.pieces(knee):
            frame.set(counts)
            piece = hidden[:, first : first + frame.tokens]
            pieces.append(part.executor.run(piece, part.depth, arguments))
            first += frame.tokens
        frame.set(whole)
        return torch.cat(pieces, 1)

    def _context(self, route: Route, rows: list[Row], owners: list[int]) -> Context:
        """Embed every new slot; what layers are given besides hidden states."""
        contexts = []
        for part, own in calls(rows, owners):
            counts = [row.new for row in part]
            route.frame.set(by_tenant(own, counts, len(route.frame.bounds) - 1))
            route.enter(0)
            contexts.append(self._embed(part))
        if len(contexts) == 1:
            return contexts[0]
        hidden = torch.cat([context.hidden for context in contexts], 1)
        kinds = contexts[0].arguments
        return Context(
            hidden,
            {
                kind: {name: _cat([c.arguments[kind][name] for c in contexts]) for name in given}
                for kind, given in kinds.items()
            },
        )

    def _embed(self, rows: Sequence[Row]) -> Context:
        ids: list[int] = []
        positions: list[int] = []
        prompts: list[tuple[int, int, int, Row]] = []
        for row in rows:
            start, end = row.starts[-1], row.work.end
            virtual = len(row.work.tenant.virtual)
            if start < virtual:
                prompts.append((len(ids), start, min(virtual, end), row))
            ids += [max(slot, 0) for slot in row.work.slots[start:end]]
            positions += range(start, end)
        device = self._resident.device
        tokens, where = (each[None] for each in upload([ids, positions], device))
        backbone = self._compiled.backbone
        embedded = None
        if prompts:
            embedded = backbone.tokens(tokens)
            for first, start, end, row in prompts:
                prompt = row.work.tenant.compiled.virtual
                assert isinstance(prompt, Prompt)
                values = prompt.embeddings(self._resident.source(row.work.tenant.dtype))
                embedded[0, first : first + end - start] = values[start:end]
        return backbone.run(tokens, None, where, None, embedded)

    def _prefix(self, row: Row) -> None:
        """Write the keys and values of a prefix adapter where they do not stand yet."""
        tenant = row.work.tenant
        prefix = tenant.compiled.virtual
        if not isinstance(prefix, Prefix):
            return
        stored = None
        end = min(prefix.tokens, row.work.end)
        for group, start in enumerate(row.starts):
            if start >= end:
                continue
            if stored is None:  # (layers, 2, tokens, heads, width)
                stored = prefix.keys_values(self._resident.source(tenant.dtype)).transpose(2, 3)
            table = row.work.pages.tables[group]
            # what the page's rest holds is masked, but must be numbers
            rest = range(end, -(-end // PAGE) * PAGE)
            index, blank = upload(
                [places(table, range(start, end)), places(table, rest)], self._resident.device
            )
            first = self._layout.first_layer(group)
            own = stored[first : first + self._layout.groups[group].layers, :, start:end]
            pool = self._kv.pool(self._layout, group)
            pool.keys.index_copy_(1, index, own[:, 0])
            pool.values.index_copy_(1, index, own[:, 1])
            pool.keys.index_fill_(1, blank, 0)
            pool.values.index_fill_(1, blank, 0)
            row.starts[group] = end

    def _tenants(self, works: Sequence[Work]) -> list[Tenant]:
        """The works' tenants, those that share most side by side."""
        active = {work.tenant.digest: work.tenant for work in works}
        known = {tenant.digest for tenant in self._order}
        for digest, tenant in active.items():
            if digest not in known:
                self._insert(tenant)
        self._order = [tenant for tenant in self._order
                       if tenant.digest in active or self._resident.has(tenant.digest)]  # fmt: skip
        return [tenant for tenant in self._order if tenant.digest in active]

    def _insert(self, new: Tenant) -> None:
        """Put a tenant beside the one that it shares most with."""
        best, at = -1, 0
        for i, tenant in enumerate(self._order):
            same = tenant.needs.nbytes.keys() & new.needs.nbytes.keys()
            shared = sum(new.needs.nbytes[key] for key in same)
            if shared > best:
                best, at = shared, i + 1
            self._part(tenant, new)
        self._order.insert(at, new)

    def _part(self, one: Tenant, other: Tenant) -> None:
        """Keep hidden states where two tenants part, so that either can go on from there."""
        if one.upstream is None or other.upstream is None:
            return
        equal = [a == b for a, b in zip(one.upstream, other.upstream, strict=True)]
        last = equal.index(False) - 1 if False in equal else -1
        if last >= 0:
            self._kv.part_after(self._layout, last)

    def _routed(self, tenants: list[Tenant]) -> Route:
        key = tuple((tenant.digest, self._resident.loads[tenant.digest]) for tenant in tenants)
        if self._route is None or self._route[0] != key:
            self._route = key, Route(tenants, self._resident)
        return self._route[1]


def _move_buffers(compiled: Compiled, device: torch.device) -> None:
    """Have what executors keep (rotary frequencies) on the device: no step should copy it."""
    executors = [compiled.backbone.model, *(hop.executor.layer for hop in compiled.hops)]
    for executor in executors:
        for module in executor.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)


def _knee(hop: CompiledHop, profile: Profile | None) -> int | None:
    """How many tokens a block should be given at once; None for as many as there are.

    Only blocks that see each token by itself are cut; an attention's batch is what the scheduler
    makes a step of.
    """
    if profile is None or hop.block.kind not in ("mlp", "moe"):
        return None
    return profile.knee(hop.block.kind, hop.block.spec)


def _cat(values: Sequence[Any]) -> Any:
    """One argument of several calls, as if of one."""
    if isinstance(values[0], tuple):
        return tuple(_cat(each) for each in zip(*values, strict=True))
    if isinstance(values[0], torch.Tensor) and values[0].dim() > 1:
        return torch.cat(list(values), 1)
    return values[0]
