"""Evaluate a masked model with lm-evaluation-harness, on a task that is defined here and needs no download.

The task repeats a word far back in the prompt; the model ranks it against another word. Under a window the first
mention is out of sight. For published tasks give their names: --tasks hellaswag lambada_openai.

pip install 'lm_eval[hf]'
python examples/lm_evaluation_harness.py     # a tiny LLaMA with random weights, no network
python examples/lm_evaluation_harness.py --model meta-llama/Llama-3.2-1B --mask 'window:512|sinks:4'
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig

from hf_masking import patched

WORDS = ["apple", "river", "stone", "cloud", "tiger", "music"]

parser = argparse.ArgumentParser(description="Evaluate a masked model with lm-evaluation-harness.")
parser.add_argument("--model", help="hub id or folder; default: a tiny LLaMA with random weights that reads bytes")
parser.add_argument("--mask", default="window:64|sinks:4")
parser.add_argument("--tasks", nargs="+", help="names of tasks of the harness, in place of the one defined here")
args = parser.parse_args()


def recall_task(folder: Path) -> dict[str, Any]:
    """Write the questions to a file, and return the task: the keys are those of the harness's YAML files."""
    rows = [
        {"prompt": f"The word is {word}." + " Nothing happens." * 20 + " The word is", "choices": [word, other]}
        for word in WORDS
        for other in WORDS
        if word != other
    ]
    path = folder / "recall.json"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {
        "task": "recall", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "prompt", "doc_to_choice": "choices",
        "doc_to_target": 0, "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip


torch.manual_seed(0)
if args.model:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
else:
    tokenizer = ByT5Tokenizer(extra_ids=0)  # one token per byte
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=259, **shape, bos_token_id=None, eos_token_id=1))

with tempfile.TemporaryDirectory() as folder:
    tasks = args.tasks or [recall_task(Path(folder))]
    for mask in ("causal", args.mask):
        with patched(model.eval(), mask):
            harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=1024)
            results = simple_evaluate(harness, tasks=tasks, bootstrap_iters=0)["results"]
        for task, metrics in results.items():
            print(f"{mask:>20}  {task}: accuracy {metrics['acc,none']:.2f}", flush=True)
