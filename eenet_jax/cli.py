"""The command line: parses, and calls.

One dataclass a verb; its docstring is the verb's help. The libraries behind a verb are imported
when it runs.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from eenet_jax.arguments import listed, parse, setting
from eenet_jax.config import ExperimentConfig, find_config
from eenet_jax.errors import InputError, told_in_one_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """List the data sets, or prepare one: `eenet data list`, `eenet data prepare cifar10`."""

    action: Positional[Literal["list", "prepare"]]
    """What to do."""
    name: Positional[str | None] = None
    """The data set to prepare."""
    source: Annotated[Path | None, arg(name="from")] = None
    """The publisher's archive or files, or the folder that holds them; without it CIFAR's archive
    is downloaded, the others ask for it."""
    data_dir: str = "data"
    """Where prepared data sets lie."""

    def __call__(self) -> None:
        """Run the verb."""
        from eenet_jax.data import datasets

        if self.action == "list":
            for name in datasets.names():
                spec = datasets.get(name)
                print(f"{name:<13} {spec.describe()}")
            return
        if self.name is None:
            raise InputError(f"no data set named: give one of {', '.join(datasets.names())}")
        folder = datasets.prepare(self.name, data_dir=self.data_dir, source=self.source)
        print(f"{self.name} is ready" + (f" in {folder}" if folder else "; it is embedded"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a multi-exit network, or continue a run that was cut off.

    Every setting of the config can be changed, e.g. `--training.epochs 20 --seed 1`;
    `eenet train CONFIG --settings` lists them all.
    """

    config: Positional[str]
    """A config file, or the name of one in experiments/configs/."""
    out: Path | None = None
    """The run's folder; runs/NAME by default."""
    data_dir: str = "data"
    """Where prepared data sets lie."""
    build: tuple[str, ...] = ()
    """Settings of the network's builder, as NAME=VALUE, e.g. width=8 stage_blocks=3,3,3."""
    settings: bool = False
    """List the config's settings, and stop."""
    fsdp: int = 1
    """Over how many devices the weights are cut; 1 keeps them whole on each."""
    distributed: bool = False
    """One of several processes, as the cluster tells: Cloud TPU, Slurm, Open MPI, Kubernetes."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no cluster tells; with the two that follow."""
    num_processes: int | None = None
    """How many processes train together."""
    process_id: int | None = None
    """This one's number, from 0."""

    def __call__(self, overrides: Sequence[str]) -> None:
        """Run the verb, with further options for the config."""
        from eenet_jax.training import processes
        from eenet_jax.training.loop import train

        shown = ["--help"] if self.settings else list(overrides)
        preset = _preset(self.config, self.build)
        program = f"eenet train {self.config}"
        told_by = f"{program} --settings"
        config = parse(ExperimentConfig, shown, program, told_by, default=preset)
        out = self.out or Path("runs") / config.name
        others = (self.coordinator, self.num_processes, self.process_id)
        with processes.joined(self.distributed, *others):
            train(config, out, self.data_dir, fsdp=self.fsdp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compile:
    """Say what a run would take on a TPU slice that one hasn't got, by compiling it for that.

    The exit status is 3 where it does not fit.

    The config's settings can be changed as for `eenet train`, e.g. --training.micro-batches 4;
    `eenet train CONFIG --settings` lists them.
    """

    config: Positional[str]
    """A config file, or the name of one in experiments/configs/."""
    topology: str
    """A chip and a slice, such as v5e:4x4 or v5e:16x16."""
    batch: str | None = None
    """Samples of a training step, all chips together; "largest" finds the largest power of two
    a chip that fits; the config's by default."""
    fsdp: int = 1
    """Over how many chips the weights are cut; 1 keeps them whole on each."""
    build: tuple[str, ...] = ()
    """Settings of the network's builder, as for `eenet train`."""
    out: Path | None = None
    """A JSON file for all of it."""

    def __call__(self, overrides: Sequence[str]) -> None:
        """Run the verb, with further options for the config."""
        from eenet_jax.artifacts import check_folder
        from eenet_jax.scale.compile import (
            TOO_LARGE_STATUS,
            compile_run,
            describe,
            write_report,
        )

        if self.out:
            check_folder(self.out.parent)
            if self.out.is_dir():
                raise InputError(f"--out '{self.out}' is a folder: give a file in it")
        preset = _preset(self.config, self.build)
        program, told_by = f"eenet compile {self.config}", f"eenet train {self.config} --settings"
        config = parse(ExperimentConfig, list(overrides), program, told_by, default=preset)
        report = compile_run(config, self.topology, batch=self.batch, fsdp=self.fsdp)
        print("\n".join(describe(report)))
        if self.out:
            write_report(report, self.out)
        if not report.fits:
            sys.exit(TOO_LARGE_STATUS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Write RUN/predictions/SPLIT.npz: what every exit says of every sample."""

    run: Positional[Path]
    """A training run's folder."""
    splits: str = "val,test"
    """Separated by commas."""
    data_dir: str | None = None
    """Where prepared data sets lie; the training's own by default."""

    def __call__(self) -> None:
        """Run the verb."""
        from eenet_jax.predictions import predict

        for path in predict(self.run, splits=listed(self.splits), data_dir=self.data_dir):
            print(f"wrote {path}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Write RUN/costs.json: multiply-accumulates to each exit, in millions; latency on demand."""

    run: Positional[Path]
    """A training run's folder."""
    latency: bool = False
    """Measure milliseconds to each exit too, into RUN/latency.json."""
    batch_size: int = 1
    """Samples in a batch of the latency measurement."""
    repeats: int = 21
    """Timed runs of each stage; their median counts."""

    def __call__(self) -> None:
        """Run the verb."""
        from eenet_jax.costs import write_costs

        for path, table in write_costs(
            self.run, latency=self.latency, batch_size=self.batch_size, repeats=self.repeats
        ):
            print(f"wrote {path}: {', '.join(f'{cost:.6g}' for cost in table.costs)} {table.unit}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit policies to predictions of any framework, and write OUT/frontier.csv."""

    predictions: Path
    """Validation predictions, .npz with probs [exits, samples, classes] and labels [samples]."""
    costs: tuple[str, ...]
    """A cost table (.json), or the cost of each exit, e.g. 1,2,4,8."""
    out: Path
    """Folder to write frontier.csv and policies/ into."""
    budgets: tuple[str, ...] = ()
    """Average costs per sample, in the cost table's unit, e.g. 2,3.5."""
    max_accuracy_drop: float | None = None
    """Fit the cheapest policy that loses no more accuracy than this fraction against the full
    network, e.g. 0.005; with budgets or without."""
    confidence: float | None = None
    """Of what is asked for holding on samples to come, e.g. 0.95; by default budgets hold on the
    validation samples, and a loss of accuracy at 0.95."""
    test: Path | None = None
    """Test predictions; without them there are no test rows."""
    policies: tuple[str, ...] = ("eenet,max_prob,entropy,patience,vote",)
    """Some of eenet, eenet_paper, max_prob, entropy, patience, vote; static and the oracle's bound
    are always there."""
    seed: int = 0
    """Of everything random in the fit."""
    set: tuple[str, ...] = ()
    """Settings of the learned policies, as NAME=VALUE, e.g. folds=10."""

    def __call__(self) -> None:
        """Run the verb."""
        from eenet_jax.frontier import fit_frontier
        from eenet_jax.report.report import print_table

        fit_frontier(
            self.predictions,
            self.test,
            ",".join(self.costs),
            listed(",".join(self.budgets)) if self.budgets else (),
            listed(",".join(self.policies)),
            self.seed,
            self.out,
            confidence=self.confidence,
            max_accuracy_drop=self.max_accuracy_drop,
            **dict(map(setting, self.set)),
        )
        print_table([self.out])
        print(f"wrote {self.out / 'frontier.csv'} and {self.out / 'policies'}/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Adaptive inference on a run's test samples, timed beside the full network; or of a bundle.

    `eenet run RUN` measures a run; `eenet run --bundle DIR --inputs FILE` answers samples.
    """

    run: Positional[Path | None] = None
    """A training run's folder."""
    fit: Path | None = None
    """Folder of the fitted policies; the run's own by default."""
    policy: str = "eenet"
    """Which policy."""
    budgets: str | None = None
    """As typed for `eenet fit`, separated by commas; all that were fitted by default."""
    strategies: Annotated[str, tyro.conf.arg(aliases=("--strategy",))] = (
        "masked,compacted,host_compacted,streaming,auto"
    )
    """Separated by commas; auto picks one, and says why. The full network is always measured."""
    batch_size: int = 256
    """Samples in a batch."""
    samples: int | None = None
    """Test samples to use; all by default."""
    repeats: int = 7
    """Timed passes of everything; their median counts."""
    data_dir: str | None = None
    """Where prepared data sets lie; the training's own by default."""
    bundle: Path | None = None
    """A folder that `eenet export` wrote, in place of RUN."""
    inputs: Path | None = None
    """Samples for the bundle: .npz with images, or with input_ids and attention_mask, and with
    labels where there are some; or .txt, a text a line."""
    out: Path | None = None
    """Where the bundle's answers go, as CSV."""

    def __call__(self) -> None:
        """Run the verb."""
        if self.run is None:
            self._run_bundle()
            return
        self._refuse("RUN", ("bundle", "inputs", "out"))
        from eenet_jax.execution.adaptive import print_measurements, run_adaptive

        print_measurements(
            run_adaptive(
                self.run,
                fit=self.fit,
                policy=self.policy,
                budgets=None if self.budgets is None else listed(self.budgets),
                strategies=listed(self.strategies),
                batch_size=self.batch_size,
                samples=self.samples,
                repeats=self.repeats,
                data_dir=self.data_dir,
            )
        )

    def _run_bundle(self) -> None:
        if self.bundle is None or self.inputs is None:
            raise InputError("nothing to run: give a run's folder, or --bundle with --inputs")
        others = ("fit", "policy", "budgets", "strategies", "samples", "repeats", "data_dir")
        self._refuse("--bundle", others)
        from eenet_jax.execution.run_bundle import print_answered, run_bundle

        print_answered(
            run_bundle(self.bundle, self.inputs, out=self.out, batch_size=self.batch_size)
        )

    def _refuse(self, given: str, others: Sequence[str]) -> None:
        """Raise InputError where an option is there that means nothing beside what is given."""
        for field in dataclasses.fields(self):
            if field.name in others and getattr(self, field.name) != field.default:
                option = field.name.replace("_", "-")
                raise InputError(f"--{option} means nothing with {given}: leave one of them out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run's network and one fitted policy as a bundle, which runs without their code."""

    run: Positional[Path]
    """A training run's folder."""
    out: Path
    """Folder to write; a bundle that is there is replaced."""
    fit: Path | None = None
    """Folder of the fitted policies; the run's own by default."""
    policy: str = "eenet"
    """Which policy."""
    budget: str | None = None
    """As typed for `eenet fit`; may be left out where one was fitted."""
    platforms: str = "cpu,cuda,tpu"
    """To export for, separated by commas: of cpu, cuda, rocm, tpu."""

    def __call__(self) -> None:
        """Run the verb."""
        from eenet_jax.execution.export_run import export_run

        export_run(
            self.run,
            fit=self.fit,
            policy=self.policy,
            budget=self.budget,
            out=self.out,
            platforms=listed(self.platforms),
        )
        print(f"wrote {self.out}; next: eenet run --bundle {self.out} --inputs FILE.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.md and its figures from runs and fits; several fits are several seeds."""

    folders: Positional[tuple[Path, ...]]
    """Folders of `eenet train` and `eenet fit`."""
    out: Path | None = None
    """Folder to write into; the first folder by default."""
    title: str | None = None
    """The report's first line; data set and network by default."""
    readme: Path | None = None
    """A markdown file whose section gets the tables too."""
    section: str | None = None
    """Name of that section, between `begin` and `end` marks."""

    def __call__(self) -> None:
        """Run the verb."""
        from eenet_jax.report.report import print_table, write_report

        if not self.folders:
            raise InputError("no folders given: name those of `eenet train` and `eenet fit`")
        written = write_report(
            self.folders,
            self.out or self.folders[0],
            title=self.title,
            readme=self.readme,
            section=self.section,
        )
        print_table(self.folders)
        print(f"wrote {written}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Make a run's folder from published weights: .pth, .pth.tar (torch extra), .safetensors, .npz.

    What comes out is as good as a trained run for `predict`, `costs` and `run`.
    """

    file: Positional[Path]
    """The weights."""
    network: str
    """A family or a preset, e.g. resnet56_3, densenet121_4, msdnet35_5, bert_4, hrnet_4."""
    out: Path | None = None
    """The run's folder; runs/NETWORK by default."""
    dataset: str | None = None
    """What the network classifies; what the paper trained its family on by default."""
    build: tuple[str, ...] = ()
    """Settings of the network's builder, as NAME=VALUE, e.g. exit_after=3,6."""
    tokenizer: str = ""
    """For texts: the encoder's tokenizer.json, or the folder with it."""
    data_dir: str = "data"
    """Where prepared data sets lie."""

    def __call__(self) -> None:
        """Run the verb."""
        from eenet_jax.training.converted import convert_weights

        out = self.out or Path("runs") / self.network
        skipped = convert_weights(
            self.file,
            self.network,
            out=out,
            dataset=self.dataset,
            overrides=dict(map(setting, self.build)),
            tokenizer=self.tokenizer,
            data_dir=self.data_dir,
        )
        if skipped:
            print(f"note: skipped, for they never enter the logits: {', '.join(skipped)}")
        print(f"wrote {out}; next: eenet predict {out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Everything on handwritten digits: train, predict, fit, run, report; minutes on a CPU."""

    out: Path = Path("runs/demo")
    """Folder to write into."""

    def __call__(self) -> None:
        """Run the verb."""
        from eenet_jax.demo import run_demo

        run_demo(self.out)


VERBS: dict[str, Callable[..., Any]] = {
    "data": Data,
    "train": Train,
    "compile": Compile,
    "predict": Predict,
    "costs": Costs,
    "fit": Fit,
    "run": Run,
    "export": Export,
    "report": Report,
    "convert": Convert,
    "demo": Demo,
}

# Verbs that hand the options they don't know to a config.
WITH_SETTINGS = (Train, Compile)


def _preset(name: str, build: Sequence[str]) -> ExperimentConfig:
    """A config with settings of its network's builder changed."""
    preset = find_config(name)
    changed = {**preset.network.overrides, **dict(map(setting, build))}
    network = dataclasses.replace(preset.network, overrides=changed)
    return dataclasses.replace(preset, network=network)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `eenet VERB …`; bad input ends with one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with told_in_one_line("eenet"):
        _dispatch(arguments)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    verb, *rest = arguments
    if verb not in VERBS:
        raise InputError(f"unknown verb '{verb}': choose one of {', '.join(VERBS)}")
    kind = VERBS[verb]
    if kind in WITH_SETTINGS:
        call, settings = parse(kind, rest, f"eenet {verb}", return_unknown_args=True)
        call(settings)
    else:
        parse(kind, rest, f"eenet {verb}")()


def _overview() -> str:
    verbs = [f"  {verb:<9} {(kind.__doc__ or '').splitlines()[0]}" for verb, kind in VERBS.items()]
    about = "Multi-exit networks with a learned, budgeted early-exit scheduler."
    return "\n".join(
        ["usage: eenet VERB …", "", about, "", *verbs, "", "`eenet VERB --help` tells more."]
    )


if __name__ == "__main__":
    main()
