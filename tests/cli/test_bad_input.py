"""Bad input, kind by kind: one line that says what is wrong, exit code 2, and nothing left behind."""

import io
import sys

import pytest

from .broken import fill


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_folder):
    """A folder with a model and a text, and others that are broken."""
    return fill(tmp_path_factory.mktemp("place"), model_folder)


def wrong(message, *arguments):
    return pytest.param([*map(str, arguments)], message, id=" ".join(map(str, arguments))[-60:])


def each(before, kinds, after=()):
    """A case for each (message, arguments) between others."""
    return [wrong(message, *before, *arguments, *after) for message, *arguments in kinds]


LONG = "n" * 300
NOT_A_NUMBER = "Input should be a valid"

COMMAND_LINE = each((), [
    ("No such command 'shw'. Did you mean 'show'?", "shw"),
    ("No such option: --foo", "--foo"),
    ("Missing argument 'spec' (hf-masking show --help)", "show"),
    ("Missing argument 'model'", "eval"),
    ("Missing option '--output'", "finetune", "model"),
    ("Option '--length' requires an argument", "show", "causal", "--length"),
    ("unexpected extra argument", "show", "causal", "window:3"),
    ("No such option: --lenght (Possible options: --length", "show", "causal", "--lenght", "3"),
    ("Option '--bos' does not take a value", "eval", "model", "--bos=yes"),
])  # fmt: skip

SPECS = each(("show",), [
    ("expected a mask such as 'window:256', got 'the end'", ""),
    ("window: missing a required argument", "window"),
    ("expected an unsigned number or a word, got 'the end'", "window:"),
    ("`window` must be an integer from 1", "window:0"),
    ("expected an unsigned number or a word, got '-'", "window:-3"),
    ("`window` must be an integer from 1 to 2147483647, got 1.5", "window:1.5"),
    ("numbers must be at most 2147483647", "window:99999999999999999999"),
    ("`window` must be an integer from 1 to 2147483647, got 'a'", "window:a"),
    ("too many positional arguments", "window:1,2"),
    ("'window' is given twice", "window:window=1,window=2"),
    ("unknown mask 'windw'; did you mean 'window'?", "windw:3"),
    ("specs are written in lowercase", "Window:3"),
    ("expected a mask such as 'window:256', got 'the end'", "causal|"),
    ("expected a mask such as 'window:256', got '|'", "causal||causal"),
    ("expected ')'", "(causal"),
    ("expected '|', '&', '-' or the end, got ')'", "causal)"),
    ("unexpected character '~'", "~causal"),
    ("expected ';' or ']'", "heads[causal"),
    ("masks for heads may not nest", "heads[causal; heads[causal; causal]]"),
    ("parentheses nest more than 64 deep", "(" * 100 + "causal" + ")" * 100),
    ("unexpected character 'í'", "wíndow:3"),
    (r"unexpected character '\n'", "causal\n|"),
    (r"unexpected character '\x1b'", "\x1b[31mcausal"),
    ("only a static mask can be subtracted, got relevance", "causal-relevance"),
    ("cannot be computed", "relevance|relevance"),
    ("depends on the content; say in which model", "relevance"),
    ("`k` must be an integer from 1", "top_blocks:block=2,k=0"),
    ("expected pairs of a first position", "spans:3"),
    ("`stride` must be an integer from 1", "strided:0"),
    ("'prefix' needs to be told where its tokens are", "prefix|causal"),
    ("'prompt' needs to be told how many tokens", "prompt|window:4"),
])  # fmt: skip

SHOWN = each(("show", "causal"), [
    (NOT_A_NUMBER, "--length", "x"),
    (NOT_A_NUMBER, "--length", "1.5"),
    (NOT_A_NUMBER, "--length", ""),
    ("--length must be at least 1, got -5", "--length", "-5"),
    ("--length must be at most 1,048,576", "--length", "99999999999999999999"),
    ("folder is a folder; name a file", "--png", "folder"),
    ("--png writes a PNG, got a.jpg; name it a.png", "--png", "a.jpg"),
    ("a picture goes into a file", "--png", "-"),
    ("is a file, not a folder", "--png", "text.txt/x.png"),
    ("a symbolic link that leads to itself", "--png", "loop"),
    (f"{LONG}: File name too long", "--png", LONG),
    ("/proc/x.png cannot be written", "--png", "/proc/x.png"),
    ("socket is a socket", "--png", "socket"),
    ("/dev/full: No space left on device", "--png", "/dev/full"),
    ("--png draws at most 4096 positions", "--png", "x.png", "--length", "5000"),
    ("name it: --model MODEL", "--show-layer", "1"),
    ("--show-layer must be from 0 to 1, or -1 for the last, got 2", "--model", "model", "--show-layer", "2"),
    ("--head must be from 0 to 1, got -1", "--model", "model", "--head", "-1"),
    ("the text has no tokens", "--model", "model", "--text", ""),
    ("no tokenizer can be loaded from 'nowhere/model'", "--model", "nowhere/model"),
    ("--length must be at most 4,096", "--model", "model", "--length", "5000"),
    ("takes 40 positions, and the model has 32", "--model", "positions", "--length", "40"),
])  # fmt: skip

EVAL = ("--data", "text.txt", "--context", "16")
MODELS = each(("eval",), [
    ("no tokenizer can be loaded from ''", ""),
    ("no tokenizer can be loaded from 'nowhere/model'", "nowhere/model"),
    ("no tokenizer can be loaded from 'a b/c'", "a b/c"),
    ("no tokenizer can be loaded from '[/red]'", "[/red]"),
    (r"no tokenizer can be loaded from 'a\nb'", "a\nb"),
    ("no tokenizer can be loaded from 'text.txt'", "text.txt"),
    ("no tokenizer can be loaded from 'void'", "void"),
    ("no tokenizer can be loaded from 'loop'", "loop"),
    (f"{LONG}/config.json: File name too long", LONG),
    ("no tokenizer can be loaded from 'no_tokenizer'", "no_tokenizer"),
    ("no tokenizer can be loaded from 'cut_tokenizer'", "cut_tokenizer"),
    ("'empty_config/config.json' is not a valid JSON file", "empty_config"),
    ("can be loaded from 'list_config'", "list_config"),
    ("'binary_config/config.json' is not a valid JSON file", "binary_config"),
    ("no model can be loaded from 'no_config'", "no_config"),
    ("no model can be loaded from 'unknown_type'", "unknown_type"),
    ("its weights have other shapes than its config.json says", "other_shape"),
    ("the model has no layers", "no_layers"),
    ("the model has no layers", "less_layers"),
    ("the weights of LlamaForCausalLM are not finite: model.layers.0.self_attn.q_proj.weight", "nan"),
    ("only decoders can be patched", "bert"),
    ("can be loaded from 'words'", "words"),
    ("unknown mask 'windw'", "wrong_mask"),
    ("no model can be loaded from 'no_weights'", "no_weights"),
    ("no model can be loaded from 'empty_weights'", "empty_weights"),
    ("no model can be loaded from 'cut_weights'", "cut_weights"),
    ("no model can be loaded from 'other_weights'", "other_weights"),
    ("lacks weights of LlamaForCausalLM", "classes"),
    ("no model can be loaded from 'encoder'", "encoder"),
    ("does not use Transformers' attention interface", "alibi"),
    ("the tokenizer has 256 tokens, and the model has embeddings for 100", "vocabulary"),
], EVAL)  # fmt: skip

DATA = each(("eval", "model", "--context", "16", "--data"), [
    ("the name of the text is empty", ""),
    ("standard input is empty", "-"),
    ("no such file or folder: gone.txt", "gone.txt"),
    ("no such file or folder: loop", "loop"),
    ("no such file or folder: [/red].txt", "[/red].txt"),
    (r"no such file or folder: a\nb.txt", "a\nb.txt"),
    ("no such file or folder: /dev/fd/77", "/dev/fd/77"),
    ("no text files in void", "void"),
    ("no text files in folder", "folder"),
    ("empty.txt is empty", "empty.txt"),
    ("blank.txt is empty", "blank.txt"),
    ("binary.txt is not UTF-8 text (byte 128)", "binary.txt"),
    ("latin1.txt is not UTF-8 text (byte 2)", "latin1.txt"),
    ("socket is a device; name a text file or a pipe", "socket"),
    ("/dev/zero is a device", "/dev/zero"),
    ("cannot be loaded from the hub", "someone/some-data"),
    ("the text has 9 tokens, and one context of 16 needs 17", "short.txt"),
])  # fmt: skip

WINDOWS = each(("eval", "model", *EVAL), [
    ("--stride must be from 1 to the context, which is 16, got 0", "--stride", "0"),
    ("--stride must be from 1 to the context, which is 16, got 17", "--stride", "17"),
    ("--context must be at least 1, got 0", "--context", "0"),
    ("the text has 3280 tokens, and one context of 99999 needs 100000", "--context", "99999"),
    ("--batch-size must be at least 1, got -1", "--batch-size", "-1"),
    ("--max-tokens must be at least 1, got 0", "--max-tokens", "0"),
    (NOT_A_NUMBER, "--max-tokens", "many"),
    ("the text has 5 tokens", "--max-tokens", "5"),
    ("the tokenizer has no BOS token", "--bos"),
    ("unknown mask 'windw'", "--mask", "causal", "--mask", "windw:3"),
    ("looks 3 tokens ahead", "--mask", "block_causal:4"),
    ("mask prefix|causal needs marked tokens, and a plain text", "--mask", "prefix|causal"),
    ("do not divide the model's 2 query heads", "--mask", "heads[causal; causal; causal]"),
    ("--layer takes INDEX=MASK such as 0=causal, got '0:causal'", "--layer", "0:causal"),
    ("--layer takes INDEX=MASK such as 0=causal, got '1.0=causal'", "--layer", "1.0=causal"),
    ("--layer takes INDEX=MASK such as 0=causal, got '0='", "--layer", "0="),
    ("unknown layer 5: the model has 2 layers", "--layer", "5=causal"),
    ("--layer 0 is given twice", "--layer", "0=causal", "--layer", "0=window:3"),
    ("layer 0 is given twice", "--layer", "0=causal", "--layer", "-2=window:3"),
    ("looks 3 tokens ahead", "--layer", "0=block_causal:4"),
    ("folder is a folder; name a file", "--output", "folder"),
    (". is a folder; name a file", "--output", ""),
    ("leads to itself", "--output", "loop"),
    ("File name too long", "--output", "n" * 250),
    ("text.txt is a file, not a folder", "--output", "text.txt/x.json"),
    ("/dev/fd/77 cannot be written: Bad file descriptor", "--output", "/dev/fd/77"),
    ("socket is a socket; name a file or a pipe", "--output", "socket"),
])  # fmt: skip

CHECK = each(("check", "model"), [
    ("--mask is missing, and the model carries none",),
    ("--new-tokens must be at least 1, got 0", "--mask", "causal", "--new-tokens", "0"),
    ("--length must be at least 2, got 1", "--mask", "causal", "--length", "1"),
    ("prompts of [99999] tokens", "--mask", "causal", "--length", "99999"),
    ("unknown layer 9", "--mask", "causal", "--layer", "9=causal"),
    ("unknown mask 'windw'", "--mask", "causal", "--mask", "windw"),
    ("folder is a folder; name a file", "--mask", "causal", "--output", "folder"),
])  # fmt: skip

GENERATE = each(("generate", "model", "--prompt", "abc"), [
    ("--mask is missing, and the model carries none",),
    ("generate takes one mask, got 2; join masks with '|' or '&'", "--mask", "causal", "--mask", "causal"),
    ("generate takes one mask, got 2; leave --mask or", "--mask", "causal", "--mask-config", "x.json"),
    ("block_causal:4 looks 3 tokens ahead: no generation", "--mask", "block_causal:4"),
    ("the prompt has no tokens", "--mask", "causal", "--prompt", ""),
    ("--max-new-tokens must be at least 1, got -1", "--mask", "causal", "--max-new-tokens", "-1"),
    ("--temperature must be at least 0 and finite, got nan", "--mask", "causal", "--temperature", "nan"),
    ("--temperature must be at least 0 and finite, got inf", "--mask", "causal", "--temperature", "inf"),
    ("--temperature must be 0, which takes the likeliest token, or at least 1e-06, got 1e-320", "--mask", "causal",
     "--temperature", "1e-320"),
    ("--top-p must be above 0 and at most 1, got 0.0", "--mask", "causal", "--top-p", "0"),
    ("--top-p must be above 0 and at most 1, got nan", "--mask", "causal", "--top-p", "nan"),
    ("--seed must fit into 64 bits", "--mask", "causal", "--seed", "99999999999999999999"),
]) + each(("generate",), [
    ("takes 102 positions, and the model has 32", "positions", "--mask", "causal", "--prompt", "abc",
     "--max-new-tokens", "100"),
    ("embeddings for 100", "vocabulary", "--mask", "causal", "--prompt", "abc"),
])  # fmt: skip

RUN = ("--data", "text.txt", "--context", "16", "--steps", "2", "--warmup-steps", "0", "--eval-tokens", "65")
FINETUNE = each(("finetune", "model", *RUN, "--output"), [
    ("folder is not an empty folder and holds no run", "folder"),
    ("text.txt is not an empty folder", "text.txt"),
    ("is a file, not a folder", "text.txt/run"),
    ("/proc/run cannot be written", "/proc/run"),
    ("leads to itself", "loop"),
]) + each(("finetune", "model", *RUN, "--output", "out"), [
    ("finetune takes one mask, got 2; join masks with '|' or '&'", "--mask", "causal", "--mask", "causal"),
    ("finetune takes one mask, got 2; leave --mask or", "--mask", "causal", "--mask-config", "x.json"),
    *((f"--{name} must be", f"--{name}", "-1") for name in (
        "context", "steps", "batch-size", "micro-batch-size", "lora", "eval-every", "checkpoint-every",
        "keep-checkpoints", "shuffle-buffer", "eval-tokens", "seed", "warmup-steps", "learning-rate",
        "mask-learning-rate", "max-gradient-norm", "weight-decay", "mask-penalty", "sequence-parallel",
    )),
    ("--sequence-parallel must divide the number of processes, got 2 for 1 process", "--sequence-parallel", "2"),
    *((f"--{name} must be", f"--{name}", "nan") for name in ("learning-rate", "weight-decay", "max-gradient-norm")),
    ("--learning-rate must be", "--learning-rate", "inf"),
    ("--seed must be from 0 to", "--seed", "99999999999999999999"),
    ("--shuffle-buffer must be at most 1,048,576", "--shuffle-buffer", "100000000000"),
    ("--lora-alpha goes with", "--lora-alpha", "3"),
    ("--max-shard-size must be a number of bytes", "--max-shard-size", "much"),
    ("--max-shard-size must be a number of bytes", "--max-shard-size", "infGB"),
    ("unknown tracker 'abacus'", "--tracker", "abacus"),
    ("unknown tracker 'all'; expected one of aim, clearml", "--tracker", "all"),
    ("a stream has no last tenth", "--stream"),
    ("stdlib is read as a whole", "--stream", "--data", "stdlib", "--eval-data", "text.txt"),
    ("- can be read only once", "--stream", "--data", "-", "--eval-data", "text.txt"),
    ("no such file or folder: gone.txt", "--stream", "--data", "gone.txt", "--eval-data", "text.txt"),
    ("is not UTF-8 text", "--stream", "--data", "binary.txt", "--eval-data", "text.txt"),
    ("the stream to train on has", "--stream", "--data", "empty.txt", "--eval-data", "text.txt"),
    ("no such file or folder: gone.txt", "--eval-data", "gone.txt"),
    ("the held-out text has 9 tokens", "--eval-data", "short.txt"),
    ("needs 10000", "--context", "9999"),
    ("the held-out text has 5 tokens", "--eval-tokens", "5"),
    ("looks 3 tokens ahead, so training", "--mask", "block_causal:4"),
    ("mask prompt|window:4 needs marked tokens, and a plain text", "--mask", "prompt|window:4"),
    ("unknown layer 9", "--layer", "9=causal"),
]) + each(("finetune",), [
    ("takes 64 positions, and the model has 32", "positions", *RUN, "--context", "64", "--output", "out"),
    ("embeddings for 100", "vocabulary", *RUN, "--output", "out"),
    ("no model can be loaded from 'cut_weights'", "cut_weights", *RUN, "--output", "out"),
    ("weights of LlamaForCausalLM are not finite", "nan", *RUN, "--output", "out"),
])  # fmt: skip

TRIALS = ("--data", "text.txt", "--context", "16", "--steps", "2", "--eval-tokens", "65", "--output", "out")
COMPARE = each(("compare", "model", *TRIALS, "--mask", "causal"), [
    ("--seeds must be at least 1, got 0", "--seeds", "0"),
    ("--longest must be at least 0, got -1", "--longest", "-1"),
    ("--train-tokens must be at least 1, got 0", "--train-tokens", "0"),
    ("the text to train on has 5 tokens", "--train-tokens", "5"),
    ("the text has 5 tokens", "--eval-tokens", "5"),
    ("--steps must be at least 1, got 0", "--steps", "0"),
    ("--stride must be from 1 to the context", "--stride", "99"),
    ("--learning-rate must be", "--learning-rate", "nan"),
    ("--seed must be from 0 to", "--seed", "-1"),
    ("the text has 65 tokens, and one context of 9999 needs 10000", "--context", "9999"),
    ("unknown mask 'windw'", "--mask", "windw"),
    ("looks 3 tokens ahead", "--mask", "block_causal:4"),
    ("do not divide the model's 2 query heads", "--mask", "heads[causal; causal; causal]"),
    ("unknown layer 99", "--layer", "99=causal"),
    ("folder is not an empty folder and holds no run", "--output", "folder"),
    ("text.txt is not an empty folder", "--output", "text.txt"),
]) + each(("compare",), [
    ("takes 64 positions, and the model has 32", "positions", *TRIALS, "--context", "64"),
    ("embeddings for 100", "vocabulary", *TRIALS),
    ("no model can be loaded from 'cut_weights'", "cut_weights", *TRIALS),
    ("weights of LlamaForCausalLM are not finite", "nan", *TRIALS),
])  # fmt: skip

BENCH = each(("bench", "--length", "16", "--rounds", "1", "--mask", "causal"), [
    ("unknown mask 'windw'", "--mask", "windw"),
    ("bench measures static masks", "--mask", "relevance"),
    ("'prompt|causal' needs marked tokens", "--mask", "prompt|causal"),
    ("--heads 8 is not a multiple of the 3 masks", "--mask", "heads[causal; causal; causal]"),
    ("--length must be at least 1, got 0", "--length", "0"),
    ("--length must be at most 16,777,216", "--length", "10000000000"),
    ("--heads must be at most 65,536", "--heads", "99999999999999999999"),
    ("--head-size must be at least 1, got 0", "--head-size", "0"),
    ("--rounds must be at least 1, got 0", "--rounds", "0"),
    ("--key-heads must divide --heads 8, got 3", "--key-heads", "3"),
    ("--dtype must be one of", "--dtype", "int8"),
    ("--device must be cpu or cuda, got 'tpu'", "--device", "tpu"),
    ("--preset must be one of readme, got 'fast'", "--preset", "fast"),
    ("--preset readme has its own --mask", "--preset", "readme"),
    ("--output names the JSON file", "--output", "a.md"),
    ("folder is a folder; name a file", "--output", "folder"),
])  # fmt: skip

CASES = [*COMMAND_LINE, *SPECS, *SHOWN, *MODELS, *DATA, *WINDOWS, *CHECK, *GENERATE, *FINETUNE, *COMPARE, *BENCH]


def test_there_are_enough_kinds():
    assert len({tuple(case.values[0]) for case in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize(("arguments", "message"), CASES)
def test_one_line_and_code_2(run, place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    before = sorted(place.rglob("*"))
    code, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert (code, out) == (2, "")
    assert lines[0].startswith("error: ") and message in lines[0]
    # Under a spec there is a caret.
    assert len(lines) == 1 or (len(lines) == 3 and lines[2].strip() == "^")
    assert sorted(place.rglob("*")) == before
