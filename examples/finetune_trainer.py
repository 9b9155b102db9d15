"""Fine-tune a patched model with Transformers' `Trainer`, and let each head learn how far it looks.

`MaskPenaltyTrainer` is `Trainer` plus the penalty that adaptive masks need; for other masks use `Trainer` itself.

python examples/finetune_trainer.py          # a tiny LLaMA, no network, under a minute
python examples/finetune_trainer.py --model meta-llama/Llama-3.2-1B --data my-text.txt
"""

import argparse
import inspect
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, TrainingArguments

from hf_masking import MaskPenaltyTrainer, from_pretrained, patch_model, perplexity

parser = argparse.ArgumentParser(description="Fine-tune a patched model with Transformers' Trainer.")
parser.add_argument("--model", help="hub id or folder; default: a tiny LLaMA with random weights that reads bytes")
parser.add_argument("--data", help="text file; default: the source of a module of Python's standard library")
parser.add_argument("--mask", default="adaptive_span:max=256|sinks:4")
parser.add_argument("--mask-penalty", type=float, default=0.3)
parser.add_argument("--context", type=int, default=256, help="tokens in a context")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--output", default="runs/trainer")
args = parser.parse_args()

torch.manual_seed(0)
if args.model:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
else:
    tokenizer = ByT5Tokenizer(extra_ids=0)  # one token per byte
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"initializer_range": 0.05, "bos_token_id": None, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=259, **shape, **special))
text = Path(args.data).read_text() if args.data else inspect.getsource(argparse)
ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
split = len(ids) * 9 // 10
contexts, held_out = ids[:split].split(args.context)[:-1], ids[split:][:16384]
dataset = [{"input_ids": context, "labels": context} for context in contexts]

patch_model(model, args.mask)
print(f"perplexity before training: {perplexity(model, held_out, context=args.context).perplexity:.2f}")

# Parameters of the mask learn faster than weights, and do not decay.
ours = [parameter for name, parameter in model.named_parameters() if ".hf_masking." in name]
others = [parameter for name, parameter in model.named_parameters() if ".hf_masking." not in name]
rate = 2e-5 if args.model else 3e-3
optimizer = torch.optim.AdamW([{"params": others, "lr": rate}, {"params": ours, "lr": 1e-2, "weight_decay": 0.0}])
arguments = TrainingArguments(
    args.output, max_steps=args.steps, per_device_train_batch_size=4, logging_steps=20, save_strategy="no",
    lr_scheduler_type="cosine", report_to=[], dataloader_pin_memory=torch.cuda.is_available(),
)  # fmt: skip
trainer = MaskPenaltyTrainer(
    model, arguments, train_dataset=dataset, optimizers=(optimizer, None), mask_penalty=args.mask_penalty
)
trainer.train()
for name, share in model.named_parameters():
    if name.endswith("span.share"):
        print(f"keys that each head looks back, {name}: {(share.clamp(0, 1) * 256).round().int().tolist()}")

trainer.save_model(args.output)
tokenizer.save_pretrained(args.output)
print(f"after training: {perplexity(from_pretrained(args.output), held_out, context=args.context).perplexity:.2f}")
