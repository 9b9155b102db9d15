"""Fine-tune LoRA adapters under a mask with TRL's `SFTTrainer`; packed documents do not see each other.

python examples/finetune_trl.py              # a tiny LLaMA, no network, under a minute
python examples/finetune_trl.py --model meta-llama/Llama-3.2-1B --data trl-lib/Capybara
"""

import argparse
import inspect

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig
from trl import SFTConfig, SFTTrainer

from hf_masking import from_pretrained, patch_model

parser = argparse.ArgumentParser(description="Fine-tune LoRA adapters under a mask with TRL's SFTTrainer.")
parser.add_argument("--model", help="hub id or folder; default: a tiny LLaMA with random weights that reads bytes")
parser.add_argument("--data", help="hub data set; default: functions of Python's standard library")
parser.add_argument("--mask", default="window:64|sinks:4")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--output", default="runs/trl")
args = parser.parse_args()

torch.manual_seed(0)
if args.model:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
else:
    tokenizer = ByT5Tokenizer(extra_ids=0)  # one token per byte
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"initializer_range": 0.05, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=259, **shape, **special))
if args.data:
    dataset = load_dataset(args.data, split="train")
else:
    functions = [value for _, value in inspect.getmembers(inspect, inspect.isfunction)]
    dataset = Dataset.from_dict({"text": [inspect.getsource(function) for function in functions]})

patch_model(model, args.mask)
config = SFTConfig(
    args.output, max_steps=args.steps, per_device_train_batch_size=4, learning_rate=5e-3, max_length=512, packing=True,
    logging_steps=10, save_strategy="no", report_to=[], bf16=torch.cuda.is_available(),
    dataloader_pin_memory=torch.cuda.is_available(),
)  # fmt: skip
trainer = SFTTrainer(
    model,
    config,
    train_dataset=dataset,
    processing_class=tokenizer,
    peft_config=LoraConfig(r=16, target_modules="all-linear"),
)
trainer.train()

# The adapters are merged: the saved model is an ordinary checkpoint that carries its mask.
trainer.model.merge_and_unload().save_pretrained(args.output)
tokenizer.save_pretrained(args.output)
model = from_pretrained(args.output).eval()
prompt = tokenizer("def ", add_special_tokens=False, return_tensors="pt")
written = model.generate(**prompt, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(written[0]))
