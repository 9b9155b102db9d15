"""Fine-tune LLaMA under sparse masks that differ by layer, with gradient accumulation.

The first and the last layer keep full attention; the others get --mask. Prints the perplexity before and after.

python examples/finetune_llama.py            # a tiny LLaMA, no network, under a minute
python examples/finetune_llama.py --model meta-llama/Llama-3.2-1B --data Salesforce/wikitext:wikitext-2-raw-v1
accelerate launch --mixed_precision bf16 examples/finetune_llama.py --model meta-llama/Llama-3.2-1B --data my-text.txt
"""

import argparse
import inspect
import itertools
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig

from hf_masking import from_pretrained, patch_model, perplexity

parser = argparse.ArgumentParser(description="Fine-tune LLaMA under sparse masks.")
parser.add_argument("--model", help="hub id or folder; default: a tiny LLaMA with random weights that reads bytes")
parser.add_argument("--data", default="", help="text file or hub data set, NAME:CONFIG; default: some Python source")
parser.add_argument("--mask", default="window:64|sinks:4")
parser.add_argument("--context", type=int, default=256, help="tokens in a context")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--batch-size", type=int, default=4, help="contexts in a forward pass; 2 passes make a step")
parser.add_argument("--learning-rate", type=float, default=3e-3, help="for a pretrained model about 2e-5")
parser.add_argument("--output", default="runs/llama-window")
args = parser.parse_args()

# The model and its tokenizer.
torch.manual_seed(0)
if args.model:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
else:
    tokenizer = ByT5Tokenizer(extra_ids=0)  # one token per byte
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {"initializer_range": 0.05, "bos_token_id": None, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=259, **shape, **special))

# The text, as contexts [number, tokens]; the last tenth is held out.
if Path(args.data).is_file():
    text = Path(args.data).read_text()
elif args.data:
    text = "\n".join(load_dataset(*args.data.split(":"), split="train")["text"])
else:
    text = inspect.getsource(argparse) + inspect.getsource(inspect)
ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
split = len(ids) * 9 // 10
contexts, held_out = torch.stack(ids[:split].split(args.context)[:-1]), ids[split:][:16384]

# The masks. patch_model also checks the model on tiny batches, which takes a few seconds.
print(f"perplexity under full attention: {perplexity(model, held_out, context=args.context).perplexity:.2f}")
patch_model(model, args.mask, layers={0: "causal", -1: "causal"})
print(f"under {args.mask}, before training: {perplexity(model, held_out, context=args.context).perplexity:.2f}")

# Training.
accelerator = Accelerator(gradient_accumulation_steps=2)
loader = DataLoader(TensorDataset(contexts), batch_size=args.batch_size, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
model.train()
batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
for number, (batch,) in enumerate(itertools.islice(batches, 2 * args.steps), start=1):
    with accelerator.accumulate(model):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    if number % 40 == 0:
        accelerator.print(f"step {number // 2}: loss {loss.item():.3f}")

# The model is saved with its mask, and loaded with it.
if accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"after training: {perplexity(from_pretrained(args.output), held_out, context=args.context).perplexity:.2f}")
