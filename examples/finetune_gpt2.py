"""Fine-tune GPT-2 under a sparse mask with a plain accelerate loop; print its perplexity before and after.

python examples/finetune_gpt2.py             # a tiny GPT-2, no network, under a minute
python examples/finetune_gpt2.py --model gpt2 --data Salesforce/wikitext:wikitext-2-raw-v1
accelerate launch examples/finetune_gpt2.py --model gpt2 --data my-text.txt
"""

import argparse
import inspect
import itertools
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, GPT2Config, get_cosine_schedule_with_warmup

from hf_masking import from_pretrained, patch_model, perplexity

parser = argparse.ArgumentParser(description="Fine-tune GPT-2 under a sparse mask.")
parser.add_argument("--model", help="hub id or folder; default: a tiny GPT-2 with random weights that reads bytes")
parser.add_argument("--data", default="", help="text file or hub data set, NAME:CONFIG; default: some Python source")
parser.add_argument("--mask", default="window:64|sinks:4")
parser.add_argument("--context", type=int, default=256, help="tokens in a context")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--learning-rate", type=float, default=2e-3, help="for a pretrained model about 5e-5")
parser.add_argument("--output", default="runs/gpt2-window")
args = parser.parse_args()

# The model and its tokenizer.
torch.manual_seed(0)
if args.model:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
else:
    tokenizer = ByT5Tokenizer(extra_ids=0)  # one token per byte
    shape = {"n_embd": 128, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=259, n_positions=args.context, **shape))

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

# The mask. patch_model also checks the model on tiny batches, which takes a few seconds.
print(f"perplexity under full attention: {perplexity(model, held_out, context=args.context).perplexity:.2f}")
patch_model(model, args.mask)
print(f"under {args.mask}, before training: {perplexity(model, held_out, context=args.context).perplexity:.2f}")

# Training.
accelerator = Accelerator()
loader = DataLoader(TensorDataset(contexts), batch_size=args.batch_size, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
model.train()
batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
for step, (batch,) in enumerate(itertools.islice(batches, args.steps), start=1):
    loss = model(input_ids=batch, labels=batch, use_cache=False).loss
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step % 20 == 0:
        accelerator.print(f"step {step}: loss {loss.item():.3f}")

# The model is saved with its mask, and loaded with it.
if accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"after training: {perplexity(from_pretrained(args.output), held_out, context=args.context).perplexity:.2f}")
