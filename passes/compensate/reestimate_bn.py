"""``reestimate-bn``: the running statistics of batch norms behind pruned channels are measured again.

    y = gamma (x - mean) / sqrt(var + eps) + beta       mean, var [C] := those of x over all calibration data

What a norm reads in the pruned program has other statistics than those that it remembers. Norms are taken in graph
order, so that each sees what the norms before it now give. Mean and variance are exact over the data, no running
average: as if one batch of all data had passed in training mode (with the unbiased variance that this stores).

Source: Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ...compiler.collection import no_collection
from ...compiler.ops import Call, normalise
from ...compiler.program import Program
from ..base import PassResult, Remark, RemarkKind
from ..edit import Edit
from .base import Compensation
from .layers import Pairs, set_tensors
from .sequential import Sequential, channel_statistics


@dataclass(frozen=True)
class ReestimateBN(Compensation):
    """Measure the statistics of batch norms again."""

    name: ClassVar[str] = "reestimate-bn"

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Measure; see :class:`~..base.Pass`."""
        compared, batches, edit = self.compared(), self.batches(program), Edit(program)
        pairs = Pairs(edit.program, compared.dense, compared.plan)
        changed = pairs.changed()
        remarks: list[Remark] = []
        norms: dict[fx.Node, Call] = {}
        for node in edit.graph.nodes:
            call = normalise(edit.program, node) if node.op.startswith("call_") else None
            if call is None or call.key != "batch_norm" or call.input not in changed:
                continue
            reason = _why_not(edit, call)
            if reason:
                remarks.append(Remark(RemarkKind.MISSED, self.name, call.owner or node.name, reason))
            else:
                norms[node] = call
        if not norms:
            nothing = Remark(RemarkKind.MISSED, self.name, "", "no batch norm stands behind pruned channels")
            return PassResult(program, changed=False, stats={"norms": 0}, remarks=(*remarks, nothing))

        def measure(node: fx.Node) -> None:
            call = norms.get(node)
            if call is None:
                return
            mean, variance, count = channel_statistics(both.now.take(call.input), 1)
            unbiased = variance * (count / max(count - 1, 1))
            set_tensors(edit, call.owner, {"running_mean": mean, "running_var": unbiased})

        self.progress(f"measuring {len(norms)} batch norms")
        both = Sequential(edit, compared, batches, [call.input for call in norms.values()], (), measure)
        stats = {"norms": len(norms), **both.run(program)}
        return PassResult(edit.finish(), changed=True, stats=stats, remarks=tuple(remarks))


def _why_not(edit: Edit, call: Call) -> str:
    if call.module is None or call["running_mean"] is None:
        return "not measured: it keeps no running statistics of its own"
    return "not measured: it is called more than once, or shares its tensors" if edit.is_shared(call) else ""
