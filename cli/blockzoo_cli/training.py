"""The demo's models: a small Llama-style base and five tenants of it, one for each way of tuning.

All are trained on the standard library's documentation (`corpus`) and saved as Hugging Face
folders, as a user's would be. Each tenant has a job of its own, so that one prompt gets five
recognisably different answers. Training stops by the clock on slow machines: the demo must end
in time on two cores.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from blockzoo_cli.corpus import Corpus, Function, read_corpus
from blockzoo_cli.fitting import Batches, Schedule, best_threads, fit

#: told the stage's name, how much of it is done (0 to 1), and a remark such as the loss
Progress = Callable[[str, float, str], None]

END = "<|end|>"
_IGNORED = -100  # transformers' label for positions without a loss


@dataclass(frozen=True)
class Settings:
    """How large and how long; seconds cap what the steps would take on a slow machine."""

    modules: int | None = None
    vocabulary: int = 2048
    width: int = 128
    layers: int = 6
    heads: int = 4
    context: int = 128
    batch: int = 6
    base_steps: int = 900
    base_seconds: float = 62.0
    tenant_steps: int = 240
    tenant_seconds: float = 9.0


FULL = Settings()
QUICK = Settings(
    modules=24, vocabulary=320, width=32, layers=3, heads=2, context=64, batch=4,
    base_steps=4, tenant_steps=2,
)  # fmt: skip


@dataclass(frozen=True)
class Tenant:
    """A fine-tune of the base.

    Parameters
    ----------
    name : str
        Its folder's name, and its name in the zoo.
    how : str
        Which tensors tuning may change, for people.
    job : str
        What it answers to a function's summary, for people.
    answer : callable
        The answer it learns; empty where a function gives none.
    tune : callable
        Turns the base into what is trained: freezes parameters or adds adapters.
    rate : float
        Peak learning rate.
    merge : bool
        Whether an adapter is merged into the weights before it is saved.
    """

    name: str
    how: str
    job: str
    answer: Callable[[Function], str]
    tune: Callable[[LlamaForCausalLM], Any]
    rate: float
    merge: bool = False


@dataclass(frozen=True)
class Trained:
    """A checkpoint on disk; ``seconds`` is 0 where an earlier run had left it."""

    name: str
    how: str
    job: str
    path: Path
    seconds: float


def _everything(model: LlamaForCausalLM) -> Any:
    return model


def _last_layers(model: LlamaForCausalLM) -> Any:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layers = model.model.layers
    for layer in layers[-(len(layers) // 3) :]:
        layer.requires_grad_(True)
    return model


def _norms(model: LlamaForCausalLM) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    return model


def _lora(*modules: str) -> Callable[[LlamaForCausalLM], Any]:
    def tune(model: LlamaForCausalLM) -> Any:
        config = LoraConfig(r=8, lora_alpha=16, target_modules=list(modules), task_type="CAUSAL_LM")
        return get_peft_model(model, config)

    return tune


TENANTS = (
    Tenant("signatures", "full fine-tune", "writes the def line",
           lambda f: f.signature, _everything, 2e-3),
    Tenant("tests", "last layers only", "names a test",
           lambda f: f.test, _last_layers, 4e-3),
    Tenant("errors", "LoRA adapter", "raises the error",
           lambda f: f.error, _lora("q_proj", "v_proj", "up_proj", "down_proj"), 1e-2),
    Tenant("imports", "merged LoRA", "imports the module",
           lambda f: f.importing, _lora("q_proj", "v_proj"), 1e-2, merge=True),
    Tenant("returns", "norms only", "writes the return line",
           lambda f: f.result, _norms, 3e-2),
)  # fmt: skip


def train(folder: Path, settings: Settings, progress: Progress) -> list[Trained]:
    """Train what is not there yet; the base comes first.

    Parameters
    ----------
    folder : Path
        Gets one folder a model. A model is written beside its place and renamed, so one that
        is there is whole; all are trained again where they had been made with other settings.
    settings : Settings
    progress : callable

    Returns
    -------
    list of Trained
        The base and the tenants, in the order of :data:`TENANTS`.
    """
    transformers_logging.disable_progress_bar()  # `progress` is the one that counts
    transformers_logging.set_verbosity_error()
    _start(folder, settings)
    plan = {"base": ("trained from nothing", "continues documentation")}
    plan |= {tenant.name: (tenant.how, tenant.job) for tenant in TENANTS}
    missing = [name for name in plan if not (folder / name).is_dir()]
    seconds = dict.fromkeys(plan, 0.0)
    if missing:
        progress("read the standard library", 0.0, "")
        corpus = read_corpus(settings.modules)
        progress("read the standard library", 1.0, f"{len(corpus.texts):,} texts")
    with _ready(settings) if missing else nullcontext():
        for name in missing:
            started = time.monotonic()
            torch.manual_seed(0)
            if name == "base":
                _train_base(folder, corpus, settings, progress)
            else:
                tenant = next(t for t in TENANTS if t.name == name)
                _train_tenant(folder, tenant, corpus, settings, progress)
            seconds[name] = time.monotonic() - started
    return [Trained(n, how, job, folder / n, seconds[n]) for n, (how, job) in plan.items()]


def _start(folder: Path, settings: Settings) -> None:
    """Make the folder; throw away what had been trained with other settings or another base."""
    made_with = folder / "settings.json"
    wanted = json.dumps(asdict(settings))
    same = made_with.exists() and made_with.read_text() == wanted
    if not same or not (folder / "base").is_dir():
        for name in ["base", *(tenant.name for tenant in TENANTS)]:
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    made_with.write_text(wanted)


def _config(settings: Settings, end: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.width * 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads // 2,
        max_position_embeddings=4 * settings.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )


@contextmanager
def _ready(settings: Settings) -> Iterator[None]:
    """Within, training is as fast as it gets here, and PEFT keeps its remarks to itself."""
    model = LlamaForCausalLM(_config(settings, 0))
    ids = torch.zeros(settings.batch, settings.context, dtype=torch.int64)
    with best_threads(model, ids), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _train_base(folder: Path, corpus: Corpus, settings: Settings, progress: Progress) -> None:
    progress("base", 0.0, "tokenizer")
    tokenizer = _tokenizer(corpus.texts, settings)
    model = LlamaForCausalLM(_config(settings, tokenizer.eos_token_id))
    encoded = tokenizer(list(corpus.texts))["input_ids"]
    stream = torch.tensor([i for ids in encoded for i in [*ids, tokenizer.eos_token_id]])
    windows = _windows(stream, settings)
    schedule = Schedule(4e-3, settings.base_steps, settings.base_seconds)
    fit(model, windows, schedule, partial(progress, "base"))
    _save(model.to(torch.bfloat16), tokenizer, folder / "base")


def _train_tenant(
    folder: Path, tenant: Tenant, corpus: Corpus, settings: Settings, progress: Progress
) -> None:
    progress(tenant.name, 0.0, "")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base")
    base = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = tenant.tune(base)
    pairs = [(f.summary, answer) for f in corpus.functions if (answer := tenant.answer(f))]
    examples = _examples(pairs, tokenizer, settings)
    schedule = Schedule(tenant.rate, settings.tenant_steps, settings.tenant_seconds)
    fit(model, examples, schedule, partial(progress, tenant.name))
    if tenant.merge:
        model = model.merge_and_unload()
    adapter = hasattr(model, "peft_config")
    if not adapter:
        # what tuning left alone rounds back to the base's very bits
        model = model.to(torch.bfloat16)
    _save(model, None if adapter else tokenizer, folder / tenant.name)


def _save(model: Any, tokenizer: Any, path: Path) -> None:
    """Write a model's folder beside its place, then rename it there."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    if tokenizer is not None:
        tokenizer.save_pretrained(unfinished)
    unfinished.rename(path)


def _tokenizer(texts: Sequence[str], settings: Settings) -> Any:
    """A byte-level BPE: any text can be encoded, and every byte comes back."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)


def _windows(stream: torch.Tensor, settings: Settings) -> Batches:
    """Random stretches of the stream of tokens, without end."""
    while True:
        starts = torch.randint(len(stream) - settings.context, (settings.batch,))
        rows = torch.stack([stream[s : s + settings.context] for s in starts.tolist()])
        yield rows, rows


def _examples(pairs: Sequence[tuple[str, str]], tokenizer: Any, settings: Settings) -> Batches:
    """Batches of question and answer, padded on the right, with a loss on the answers only."""
    end = tokenizer.eos_token_id
    asked = tokenizer([question for question, _ in pairs])["input_ids"]
    given = tokenizer([f"\n{answer}" for _, answer in pairs])["input_ids"]
    rows = [(q, [*a, end]) for q, a in zip(asked, given, strict=True)]
    draw = random.Random(0)
    while True:
        chosen = draw.choices(rows, k=2 * settings.batch)
        longest = min(max(len(q) + len(a) for q, a in chosen), settings.context)
        ids = torch.full((len(chosen), longest), end)
        labels = torch.full_like(ids, _IGNORED)
        for row, (q, a) in enumerate(chosen):
            tokens = torch.tensor([*q, *a])[:longest]
            ids[row, : len(tokens)] = tokens
            labels[row, len(q) : len(tokens)] = tokens[len(q) :]
        yield ids, labels
