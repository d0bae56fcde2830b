"""Writes the quantised model file as float32 weights with its tokenizer, as vLLM reads them: model.py FILE FOLDER."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

source, target = Path(sys.argv[1]), Path(sys.argv[2])
found = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
tokenizer = AutoTokenizer.from_pretrained(**found)
packed = AutoModelForCausalLM.from_pretrained(**found, dtype=torch.float32)
# The same weights in a model that was never quantised: the other cannot be written.
config = packed.config
if hasattr(config, "quantization_config"):
    del config.quantization_config
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
model.load_state_dict(packed.state_dict())
partial = target.with_suffix(".partial")
model.save_pretrained(partial)
tokenizer.save_pretrained(partial)
partial.rename(target)
