"""Direct preference optimization by trl's DPOTrainer, with this package's models and recipes."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from crrelu_ext import parameter_groups

from . import activations, checkpoint, language, preferences, results
from .build import start_from
from .diagnosis import Diverged
from .loop import LOOK_EVERY, Epoch, Watch, check_metrics, learning_rate, precision
from .processes import Processes
from .recipe import Recipe
from .results import Result

CHECKPOINTS = "trainer"
"""The folder of a cell in which the trainer keeps them."""
METRICS = {
    "eval_loss": "loss",
    "eval_rewards/accuracies": "accuracy",
    "eval_rewards/margins": "margin",
}


def run(cell: Path, recipe: Recipe, processes: Processes, watch: Watch) -> Result:
    """Trains a cell, from the last checkpoint that a killed run has left whole.

    Raises:
        DataError: the pairs are not there or broken. RuntimeError: nothing can be written there.
        ValueError: there is no such model.
        ImportError: trl is not installed.
    """
    try:
        import datasets
        import transformers
        import trl
    except ImportError as error:
        raise ImportError(
            f"dataset {recipe.dataset!r} needs trl and datasets, which the extra `recipes` "
            f"installs: {error}"
        ) from error
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    train_on, test_on = preferences.load(recipe)
    model, tokenizer = _model(recipe)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = processes.world * recipe.accumulation
    if recipe.batch_size % parts or recipe.batch_size > len(train_on):
        raise ValueError(
            f"batch_size is {recipe.batch_size}; allowed are multiples of processes times "
            f"accumulation, {parts}, up to the number of pairs, {len(train_on)}"
        )
    steps = min(len(train_on) // recipe.batch_size, recipe.steps_per_epoch or len(train_on))
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay),
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(recipe, step / steps) / recipe.learning_rate
    )
    dtype = precision(recipe, processes.device)
    every = min(steps, recipe.checkpoint_every)
    folder = cell / CHECKPOINTS
    config = trl.DPOConfig(
        output_dir=str(folder),
        max_steps=recipe.epochs * steps,
        per_device_train_batch_size=recipe.batch_size // parts,
        per_device_eval_batch_size=recipe.batch_size // parts,
        gradient_accumulation_steps=recipe.accumulation,
        activation_checkpointing=False,
        max_grad_norm=recipe.clip or 0.0,
        beta=recipe.dpo_beta,
        max_length=recipe.context,
        seed=recipe.seed,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        torch_compile=recipe.compile,
        use_cpu=processes.device.type == "cpu",
        dataloader_drop_last=True,
        dataloader_num_workers=recipe.workers,
        eval_strategy="steps",
        eval_steps=steps,
        # At checkpoints and at the end of an epoch losses have just been logged, else their mean
        # would miss some.
        logging_steps=math.gcd(every, steps),
        logging_nan_inf_filter=False,
        save_steps=every,
        save_total_limit=2,
        disable_tqdm=True,
        report_to="none",
    )
    task = _trainer(trl.DPOTrainer)(
        model=model,
        ref_model=copy.deepcopy(model),
        args=config,
        train_dataset=train_on,
        eval_dataset=test_on,
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
    )
    task.remove_callback(transformers.PrinterCallback)
    task.recipe, task.processes, task.watch, task.steps_per_epoch = recipe, processes, watch, steps
    diverged = None
    try:
        last = processes.of_first(last_checkpoint(folder))
        if last is not None and _number(Path(last)) == config.max_steps:
            # Killed after the last step: the trainer would take one more.
            task._load_from_checkpoint(last)
            task.state = transformers.TrainerState.load_from_json(f"{last}/trainer_state.json")
        else:
            task.train(resume_from_checkpoint=last)
        checkpoint.save_weights(cell / "weights.pt", model, processes)
    except Diverged as error:
        diverged = str(error)
    except (OSError, RuntimeError) as error:  # as on a full disk, where torch names no file
        raise RuntimeError(f"{cell}: {error}") from error
    epochs = _epochs(task.state.log_history)
    environment = results.environment(recipe, processes)
    return Result(recipe, epochs, diverged, "pairs", parameters, environment)


def last_checkpoint(folder: Path) -> str | None:
    """The last one that is whole; those that are not are removed. The trainer writes its own state
    last of all."""
    for one in sorted(folder.glob("checkpoint-*"), key=_number, reverse=True):
        try:
            json.loads((one / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(one)
        else:
            return str(one)
    return None


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _model(recipe: Recipe) -> tuple[Any, Any]:
    """The model with the activation in place, and its tokenizer.

    ``small-gpt`` is made anew; all else is a name on the hub or a folder, as transformers reads it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    activation = activations.parse(recipe.activation)
    torch.manual_seed(recipe.seed)
    if recipe.model == "small-gpt":
        tokenizer = language.byte_tokenizer()
        model = language.build(recipe, activation, len(tokenizer))
        for config in (model.config, model.generation_config):
            config.eos_token_id = tokenizer.eos_token_id
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(recipe.model)
            model = AutoModelForCausalLM.from_pretrained(recipe.model, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model is {recipe.model!r}; allowed are small-gpt, a name on the hub, or a folder "
                f"with a model of transformers: {error}"
            ) from error
        activations.place(model, activation, torch.zeros(1, 2, dtype=torch.int64))
    start_from(recipe, model)
    return model, tokenizer


def _trainer(base: Any) -> Any:
    """trl's trainer, which also looks at the loss of each step, and logs epsilons and speed."""

    class Trainer(base):  # type: ignore[misc]
        recipe: Recipe
        processes: Processes
        watch: Watch
        steps_per_epoch: int
        seconds, samples = 0.0, 0

        def training_step(self, *arguments: Any, **keywords: Any) -> Any:
            start = perf_counter()
            loss = super().training_step(*arguments, **keywords)
            step = self.state.global_step
            if loss.device.type == "cpu" or step % LOOK_EVERY == 0:
                # Of all processes, so that all of them stop where one has a loss that is no number.
                mean = self.processes.sum(loss.detach().clone()).item() / self.processes.world
                self._look(step, mean * self.recipe.accumulation)
            self.seconds += perf_counter() - start
            self.samples += self.recipe.batch_size // self.recipe.accumulation
            return loss

        def _look(self, step: int, loss: float) -> None:
            epoch, number = divmod(step, self.steps_per_epoch)
            if not math.isfinite(loss):
                raise Diverged(
                    f"The loss is {loss} at epoch {epoch + 1}, step {number + 1} of "
                    f"{self.steps_per_epoch}, learning rate "
                    f"{self.optimizer.param_groups[0]['lr']:.3g}."
                )
            rate = self.samples / self.seconds if self.seconds else 0.0
            self.watch.step(epoch, number + 1, self.steps_per_epoch, loss, rate)

        def log(self, logs: dict[str, Any], *arguments: Any) -> None:
            evaluated = "eval_loss" in logs
            if evaluated:
                logs["epsilons"] = activations.learned(self.model)
                logs["rate"] = self.samples / max(self.seconds, 1e-9)
            super().log(logs, *arguments)
            if evaluated:
                epoch = _epochs(self.state.log_history)[-1]
                number = self.state.global_step // self.steps_per_epoch - 1
                check_metrics(epoch.metrics, number)
                self.watch.epoch(number, epoch, self.optimizer.param_groups[0]["lr"])

    return Trainer


def _epochs(history: list[dict[str, Any]]) -> list[Epoch]:
    """What the trainer has logged, as every other training does."""
    epochs, losses = [], []
    for entry in history:
        if "loss" in entry:
            losses.append(entry["loss"])
        if "eval_loss" in entry:
            metrics = {name: entry[logged] for logged, name in METRICS.items()}
            loss = sum(losses) / len(losses)
            epochs.append(Epoch(loss, metrics, entry["rate"], entry["epsilons"]))
            losses = []
    return epochs
