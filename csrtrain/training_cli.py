"""LightningCLI for csrtrain: safe configs, a run directory that resumes by the same command."""

import logging
import multiprocessing
import os
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from csrtrain.cli import ALLOWED_IMPORTS
from csrtrain.files import shown
from csrtrain.quality import Head
from csrtrain.runs import checkpoints, directory, signals
from csrtrain.runs.batch_norm import SyncBatchNorms
from csrtrain.runs.loggers import CsvLogger, Wandb, require
from csrtrain.runs.monitors import KeepConfig, LabelProbe, Narrator, RepresentationMonitor
from csrtrain.runs.nonfinite import StopOnNonFinite
from csrtrain.runs.publish import Publisher

_DESCRIPTIONS = {
    "fit": "Train; the same command again goes on where the run stands. "
    "Example: csrtrain fit -c medical_simclr --data.root images/ --data.modality mri",
    "validate": "Measure the newest checkpoint of a run on its labelled images. "
    "Example: csrtrain validate -c medical_simclr --data.root images/ --data.labels labels.csv",
    "test": "Test a checkpoint; pretraining has no test. Example: csrtrain test -c CONFIG --ckpt_path CHECKPOINT",
    "predict": "Predict with a checkpoint; pretraining has no prediction. Example: csrtrain predict -c CONFIG",
}
_RESUME = "CSRTRAIN_RESUME"  # the first rank tells the ranks it starts where to resume
# What gloo, NCCL and the store say when another rank has gone.
_PEER_LOST = re.compile(
    r"gloo|NCCL|connection (was )?(closed|reset)|broken pipe|timed out|failed to (send|recv)", re.IGNORECASE
)


class _OptionError(ValueError):
    """An option or a key of a config that is not accepted."""


class _Parser(LightningArgumentParser):
    """Errors are raised, and shown without the usage, which is longer than a screen."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries one type after another
            super().error(message, ex)
        lines = [shown(line.strip(" -")) for line in message.splitlines()]
        unknown = [line for line in lines if "given class_path" in line or line.endswith(" is not accepted")]
        wrong = [line for line in lines if line.startswith(("Parser key", "Expected", "Given value:"))]
        raise _OptionError(" ".join(unknown if len(unknown) == 2 else wrong if len(wrong) > 2 else lines))


class TrainingCLI(LightningCLI):
    """fit, validate, test, predict, with subclass modes for model and data."""

    def __init__(self, args: list[str], run: bool = True) -> None:
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=ALLOWED_IMPORTS,
            instantiate_subclass_spec_in_any=False,
        )
        _quiet_lightning()
        self._run = run  # without, only the classes are made, for preview
        self._lock: Any = None
        self._keep: Callback | None = None
        self._told = False  # whether another rank started this one
        self._resume: Path | None = None
        handlers = signals.handlers()
        if args[:1] == ["fit"]:
            signals.end_at_once()
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                parser_class=_Parser,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                trainer_defaults={"use_distributed_sampler": False},
                parser_kwargs={
                    "allow_abbrev": False,
                    **{verb: {"allow_abbrev": False, "description": text} for verb, text in _DESCRIPTIONS.items()},
                },
                args=args,
                run=run,
            )
        except signals.Stopped as stopped:  # the process ends, and a further signal must not disturb it
            handlers = {}
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                signals.leave(stopped)
            # Of the ranks that they started, Lightning and srun take another code for a failure, and end the first one.
            raise SystemExit(0 if self._told or signals.is_behind_another() else signals.TERMINATED) from None
        except BaseException as error:
            if "SLURM_PROCID" in os.environ:  # the SIGTERM that srun sends for another rank's error comes too late
                handlers = signals.IGNORED
            if isinstance(error, _OptionError):
                files = [shown(arg.removeprefix("--config=")) for arg in args if arg.startswith("--config=")]
                where = " or in ".join(["on the command line", *files])
                verb = args[0] if run else "preview"
                raise ValueError(
                    f"Expected options as in csrtrain {verb} --help, got another {where}: {error}. Correct it."
                ) from None
            raise
        finally:  # everything, the training too, happens in there
            signals.restore(handlers)
            for child in multiprocessing.active_children():  # loader processes that do not leave, and outlast SIGTERM
                child.kill()
            if self._lock is not None:
                self._lock.close()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, less the switch to unsafe loading."""
        return {name: skip | {"weights_only"} for name, skip in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--fresh", action="store_true", help="Move an old run of this name aside and begin anew.")
        if not self._run:
            parser.add_argument("-o", "--output", default=None, help="The PNG to write.")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.init_args.channels", "model.init_args.channels")
        parser.link_arguments("data.init_args.modality", "model.init_args.modality")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Checkpoints of csrtrain hold no constructor arguments; the config is the one source."""

    def _options(self) -> Any:
        return self.config[self.subcommand] if self.subcommand else self.config

    def before_instantiate_classes(self) -> None:
        """Choose the run directory, take it, and find where to resume."""
        options = self._options()
        run_dir = Path(options.trainer.default_root_dir or f"runs/{self._config_name()}")
        options.trainer.default_root_dir = str(run_dir)
        if self.subcommand == "fit":
            self._bind_loggers(options.trainer.logger, str(run_dir))
            self._prepare_run(run_dir)
            return
        options.trainer.logger = False  # a run's log is what its training says
        if self.subcommand:
            given = options.get("ckpt_path")
            self._resume = Path(given) if given else checkpoints.newest(run_dir)
            if self._resume is None:
                raise ValueError(f"Expected a run with a checkpoint, got {run_dir} without one. Train it first.")
        else:  # preview needs none
            options.trainer.callbacks = None

    def _config_name(self) -> str:
        paths = self._options().get("config") or []
        if not paths:
            raise ValueError("Expected a config, got none. Name one with -c, for example -c medical_simclr.")
        return Path(str(paths[0])).stem

    @staticmethod
    def _bind_loggers(loggers: Any, run_dir: str) -> None:
        """Tell wandb and TensorBoard where the run lives."""
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            name = getattr(logger, "class_path", "")
            if name == "csrtrain.runs.loggers.Wandb":
                logger.init_args.run_dir = run_dir
            elif name.startswith("lightning.") and name.endswith(".TensorBoardLogger"):
                if find_spec("tensorboardX") is None:
                    require("tensorboard", name, "csrtrain[tensorboard]")
                logger.init_args.save_dir, logger.init_args.name, logger.init_args.version = run_dir, "tensorboard", ""

    def _prepare_run(self, run_dir: Path) -> None:
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            self._told = signals.follow_parent()
            if self._told:
                self._resume = Path(os.environ[_RESUME]) if os.environ[_RESUME] else None
            return  # others are told in fit
        self._lock = directory.lock(run_dir)
        requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        if self._options().fresh and not requeued and (run_dir / "config.yaml").exists():
            print(f"Moved the old run to {directory.set_aside(run_dir)}.")
            self._lock.close()
            self._lock = directory.lock(run_dir)
        config = yaml.safe_load(
            self.parser.dump(self.config, skip_link_targets=False, skip_unset=False, format="yaml")
        )[self.subcommand]
        for key in ("config", "fresh"):
            config.pop(key, None)
        directory.check_config(run_dir, config)
        self._keep = KeepConfig(run_dir, config)
        given = self._options().get("ckpt_path")
        self._resume = checkpoints.newest(run_dir)
        if given and self._resume and not requeued:
            raise ValueError(
                f"Expected a new run for --ckpt_path, got {run_dir}, which resumes from its own. Use --fresh."
            )
        self._resume = self._resume or (Path(given) if given else None)
        os.environ[_RESUME] = str(self._resume or "")
        signals.announce_parent()
        print(f"Run directory {run_dir}" + (f", resuming from {self._resume.name}" if self._resume else "") + ".")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The config's trainer with csrtrain's checkpoints, loggers and monitors."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        if not self._run:
            return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        if str(config["precision"]) in ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16"):
            raise ValueError(f"Expected 32-true, bf16-mixed or 16-mixed, got {config['precision']}. Correct precision.")
        for key, reason in (
            ("overfit_batches", "the order of images is csrtrain's; use trainer.limit_train_batches"),
            ("barebones", "a run without checkpoints and measures is of no use; use trainer.fast_dev_run"),
        ):
            if config[key]:
                raise ValueError(f"Expected trainer.{key} off, got {config[key]}: {reason}. Leave it out.")
        run_dir = config["default_root_dir"]
        loggers = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
        config["logger"] = [logger for logger in loggers if not isinstance(logger, bool | None)]
        if self.subcommand == "fit":
            config["logger"].append(CsvLogger(run_dir))
        config["plugins"] = [*_as_list(config["plugins"]), checkpoints.AtomicCheckpointIO()]
        if config["sync_batchnorm"]:
            config["plugins"].append(SyncBatchNorms())
        if SLURMEnvironment.detect() and not any(isinstance(one, SLURMEnvironment) for one in config["plugins"]):
            config["plugins"].append(SLURMEnvironment(auto_requeue=False))  # csrtrain.runs.signals does it
        config["use_distributed_sampler"] = False  # the data module shares the positions among the ranks itself
        config["num_sanity_val_steps"] = -1  # the probe's value at step 0, of the untrained backbone
        callbacks = _as_list(config["callbacks"])
        if config["fast_dev_run"]:
            self._keep = None  # a trial leaves nothing behind
            config["enable_checkpointing"] = False
        elif config["enable_checkpointing"] is not False and not any(
            isinstance(callback, checkpoints.RunCheckpoint) for callback in callbacks
        ):
            callbacks.append(checkpoints.RunCheckpoint())
        interactive = sys.stdout.isatty() and config["enable_progress_bar"] is not False
        config["enable_progress_bar"] = interactive
        if interactive:
            callbacks.append(RichProgressBar())
        config["enable_model_summary"] = bool(config["enable_model_summary"])  # off unless asked for
        if isinstance(self._get(self.config_init, "model"), Head):
            if self.subcommand != "fit":
                raise ValueError(
                    f"Expected fit for a head on a frozen backbone, got {self.subcommand}. Its measures are in the "
                    "summary of fit and in scores.csv of the run; csrtrain score scores other images."
                )
        else:
            for key in ("max_epochs", "max_steps"):
                if self.subcommand == "fit" and config[key] == 0:
                    raise ValueError(f"Expected trainer.{key} of 1 or more, or -1 for no end, got 0. Correct it.")
            if not any(isinstance(callback, StopOnNonFinite) for callback in callbacks):
                callbacks.insert(0, StopOnNonFinite())  # before what measures a step
            callbacks += [RepresentationMonitor(run_dir), LabelProbe(), Narrator(run_dir, not interactive)]
        config["callbacks"] = [*callbacks, *_as_list(self._keep), Publisher()]
        if self.subcommand == "fit":
            config["callbacks"].append(signals.StopOnSignal())
        trainer = Trainer(**config)
        if config["sync_batchnorm"] and trainer.strategy.root_device.type != "cuda":
            raise ValueError(
                f"Expected trainer.sync_batchnorm on GPUs, got it on {trainer.strategy.root_device.type}, where "
                "PyTorch has none. Leave it out."
            )
        return trainer

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train, or say that the run is complete."""
        try:
            self._fit(model, **kwargs)
        except SystemExit as left:
            if isinstance(left.__context__, KeyboardInterrupt):  # Lightning makes exit code 1 of it
                raise KeyboardInterrupt from None
            raise
        except (RuntimeError, ConnectionError, EOFError) as error:
            if self._resume is not None and "Error(s) in loading state_dict" in str(error):
                raise ValueError(
                    f"Expected a checkpoint of the model that the config names, got another in {self._resume}: "
                    f"{shown(' '.join(str(error).split()))}. Name another."
                ) from None
            if (lost := _lost_process(error, self.trainer.world_size)) is None:
                raise
            raise lost from None

    def _fit(self, model: LightningModule, **kwargs: Any) -> None:
        environment: Any = getattr(self.trainer.strategy, "cluster_environment", None)
        if self.trainer.world_size > 1 and environment.creates_processes_externally and not self._told:
            # Ranks that srun or torchrun started see other files than the first one while it moves or passes over some.
            self.trainer.strategy.setup_environment()
            self._resume = self.trainer.strategy.broadcast(self._resume)
        step = 0
        if self._resume is not None:
            stored = checkpoints.read_run(self._resume)
            step, epoch = stored.get("global_step", 0), stored.get(type(self.datamodule).__name__, {}).get("epoch", 0)
            if isinstance(model, Head) and step > 0:
                model.check_stored(stored, self.datamodule)
                rank_zero_only(print)("This run is complete. csrtrain export makes the metric; --fresh begins anew.")
                return
            if 0 <= self.trainer.max_steps <= step or 0 <= (self.trainer.max_epochs or -1) <= epoch:
                rank_zero_only(print)(
                    f"This run is complete: {step} steps. Raise trainer.max_epochs or max_steps to train on, or begin "
                    "anew with --fresh."
                )
                return
        for logger in self.trainer.loggers:
            if isinstance(logger, CsvLogger | Wandb):
                logger.resume_from(step)
            elif isinstance(logger, TensorBoardLogger):
                logger._kwargs["purge_step"] = step  # hides what an earlier start logged beyond its checkpoint
        self.trainer.fit(model, **{**kwargs, "ckpt_path": self._resume})

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        """Measure a checkpoint on the labelled images."""
        print(f"Measuring {self._resume}.")
        checkpoints.read_run(Path(str(self._resume)))
        self.trainer.validate(model, **kwargs)
        if not self.trainer.callback_metrics:
            raise ValueError("Expected labelled images, got none. Name a CSV file with --data.labels.")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": self._resume, "weights_only": True}


def _lost_process(error: Exception, ranks: int) -> RuntimeError | None:
    """What to say when a rank or a loader process has gone, in place of what PyTorch says; None for another error."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if "DataLoader worker (pid" in reason or isinstance(error, ConnectionError | EOFError):
        what, why = "loader process", "if it said why, that is above, else memory may be short: lower data.workers"
    elif ranks > 1 and (isinstance(error, torch.distributed.DistError) or _PEER_LOST.search(reason)):
        what, why = "rank", "if it said why, that is above"
    else:
        return None
    return RuntimeError(
        f"Expected every {what} to go on, got a lost one ({reason}); {why}. The same command goes on from the newest "
        "checkpoint."
    )


def _quiet_lightning() -> None:
    """Leave out Lightning's tips and warnings that do not concern a user of csrtrain."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        "It is recommended to use `self.log\\(.*sync_dist=True",  # what is logged at epoch ends is of all ranks
        "Total length of `list` across ranks is zero",  # no labels, no validation
        "You have overridden `on_(before|after)_batch_transfer` in `LightningModule`",  # the views live there
        "The number of training batches .* is smaller than the logging interval",
        "You're resuming from a checkpoint that ended before the epoch ended",  # the data module resumes exactly
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        r"Found \d+ module.s. in eval mode at the start of training",  # frozen backbones
        "The .*_dataloader. does not have many workers",
        "The `srun` command is available on your system but is not used",  # a login node
        "This DataLoader will create .* worker processes in total",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
