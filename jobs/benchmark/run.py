"""Decoding speed as a job: decoders answer the same prompts in turn, on this machine."""

from backend.decoding.target_model import TargetModel
from jobs.benchmark.config import BenchmarkJob
from jobs.benchmark.estimate import flops_by_phase
from jobs.benchmark.report import VANILLA, decoder_reports, verdicts
from jobs.benchmark.timing import DecodingBenchmark
from jobs.fields.drafters import drafters_named
from jobs.metrics import BYTES_PER_TOKEN, SPEED_UP, TOKENS_PER_SECOND
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_model


def run(config: BenchmarkJob, context: JobContext) -> None:
    """The whole job. The answers to a prompt are a checkpoint, so a killed job goes on."""
    device = prepare(config, context)
    loaded = load_model(config.model, device, config.precision, context)
    target = TargetModel(loaded.model)
    context.log(f"Decoder: {target.decoder}.")
    context.environment(decoder=target.decoder)
    if target.native:
        context.result(VANILLA, BYTES_PER_TOKEN, target.native.layout.size)
    benchmark = DecodingBenchmark(config, loaded, target, context)
    benchmark.compare()
    if config.try_sizes:
        benchmark.try_sizes()
    drafters = len(drafters_named(config.drafters, config.model, "drafters"))
    context.outcome(flops=sum(flops_by_phase(config, loaded.facts, drafters).values()))
    reports = decoder_reports(context.run)
    for sentence in verdicts(reports):
        context.log(sentence)
    # the figures of the fastest of our decoders stand for the run, beside others
    ours = [report for report in reports if not report.peer]
    fastest = max(ours, key=lambda report: report.speed)
    context.result("run", TOKENS_PER_SECOND, fastest.speed, of=fastest.label)
    if len(ours) > 1:
        context.result("run", SPEED_UP, fastest.speed_up, of=fastest.label)
