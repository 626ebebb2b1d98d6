"""The two passes that prune.

First pass, on the hidden states of the sparse model so far:

    H  = grams of the dense block      W_sparse  = prune(W_dense, H)
    H' = grams of the sparse block     W_redense = redense(W_sparse, W_dense, H')
    hidden <- sparse block(hidden)     W_control = adjust(W_sparse, W_dense, H'), mask fixed

Second pass, on the hidden states of the second sparse model so far:

    H  = grams of the re-dense block   W_second  = prune(W_redense, H)
    H' = grams of the second block     W_sds     = adjust(W_second, W_dense, H')
    hidden <- second block(hidden)     not the adjusted block
"""

from backend.calibration.second_moments import DenseReference, StatisticsLevel
from backend.pruning.block_work import BlockWork
from backend.pruning.config import SDSPass, SDSStage
from backend.pruning.passes.block_pass import BlockPass
from backend.pruning.redense import redense


class PruningPass(BlockPass):
    """A pass that prunes, and whose hidden states are those of the pruned blocks."""

    stage: SDSStage  # the pruned weights

    def replay(self, block: int) -> None:
        self.hidden = self.forward_stored(block, self.stage, self.hidden)


class FirstPass(PruningPass):
    """First pruning, its control, and the re-dense step."""

    name, stage = SDSPass.FIRST, SDSStage.FIRST

    def solve_block(self, block: int) -> None:
        stages = self.run.plan.stages
        whole = SDSStage.REDENSE in stages
        dense = {module: x.read() for module, x in self.run.linears(block).items()}
        work = BlockWork(self.run, self.stream, block, dense)
        for module, W in dense.items():
            work.record(SDSStage.DENSE, module, W)
        work.first = work.prune(dense, self.hidden, "First pruning")
        inputs, hidden = work.collect_inputs(self.hidden, StatisticsLevel.GRAM)
        doing = "Control" if SDSStage.CONTROL in stages else "Statistics"
        for module in work.modules("Re-dense" if whole else doing):
            sparse, target = work.first[module], DenseReference(dense[module], inputs[module])
            work.record(SDSStage.FIRST, module, sparse, target)
            if SDSStage.CONTROL in stages:
                W = work.adjust(SDSStage.CONTROL, module, sparse, target, soft=False)
                work.record(SDSStage.CONTROL, module, W, target)
            if whole:
                with work.timed(SDSStage.REDENSE):
                    W = redense(sparse, target.dense, target.inputs, self.config.redense_steps)
                work.record(SDSStage.REDENSE, module, W, target)
        self.hidden = hidden
        work.save(self.name)


class SecondPass(PruningPass):
    """Second pruning of the re-dense model, and the weight adjustment."""

    name, stage = SDSPass.SECOND, SDSStage.SECOND

    def solve_block(self, block: int) -> None:
        dense, adjust = self.stored(SDSStage.DENSE, block), self.config.adjust
        work = BlockWork(self.run, self.stream, block, dense)
        work.first = self.stored(SDSStage.FIRST, block)
        second = work.prune(self.stored(SDSStage.REDENSE, block), self.hidden, "Second pruning")
        inputs, hidden = work.collect_inputs(self.hidden, StatisticsLevel.GRAM)
        for module in work.modules("Weight adjustment"):
            target = DenseReference(dense[module], inputs[module])
            work.record(SDSStage.SECOND, module, second[module], target)
            if adjust != "off":
                W = work.adjust(SDSStage.SDS, module, second[module], target, adjust == "soft")
                work.record(SDSStage.SDS, module, W, target)
        self.hidden = hidden
        work.save(self.name)
