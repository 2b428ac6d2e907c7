"""Quickstart; `python examples/render.py` writes it with its output, docs/quickstart.md."""

# %% [markdown]
# # Quickstart
#
# Everything below ran as it stands, in the root of a clone after `pip install .`, on one CPU core
# in a few seconds. `python examples/render.py` writes this page from `examples/quickstart.py`; a
# test runs it again.
#
# ## A base, and a text longer than its window
#
# `data/base` is a small GPT-NeoX (3.4M parameters) that is committed to Git. The text is President
# Madison's message of 1810, which the base was not trained on.

# %%
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import infini

tokenizer = AutoTokenizer.from_pretrained("data/base")
text = Path("examples/message.txt").read_text()
ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids
print(f"{ids.shape[1]:,} tokens")

# %% [markdown]
# ## Retrofit: a window, sinks and retained pairs
#
# Every layer attends to the first 4 tokens (sinks), to the last 64, and to 32 key-value pairs per
# head that the retention policy chose among all that left the window. Nothing is trained yet:
# `update="none"` leaves the matrix memory out. A fair comparison is at equal
# state bytes, so the second row is a longer window of as many bytes. One text shows how to measure;
# [results](results.md) has sixteen, with standard errors.


# %%
@torch.no_grad()
def measure(**options) -> None:
    """Print nats per token of the text and the bytes of the state after it."""
    model = AutoModelForCausalLM.from_pretrained("data/base").eval()
    infini.retrofit(model, "window", sinks=4, **options)
    output = model(ids)
    nats = cross_entropy(output.logits[0, :-1], ids[0, 1:])
    print(f"{options}: {nats:.3f} nats per token, {output.cache.nbytes:,} bytes")


measure(window=64, layers=[])  # a window alone
measure(window=132, layers=[])
measure(window=64, update="none", retained=32)

# %% [markdown]
# ## The state has one size
#
# A forward pass takes text of any length and returns the state as `cache` (`past_key_values`
# before transformers 5.24). Its size does not grow.

# %%
model = AutoModelForCausalLM.from_pretrained("data/base").eval()
infini.retrofit(model, "window", window=64, sinks=4, update="gated_delta", retained=32)
with torch.no_grad():
    for tokens in (500, 1000, 3412):
        print(f"{tokens:,} tokens: {model(ids[:, :tokens]).cache.nbytes:,} bytes")

# %% [markdown]
# ## Generate after the text
#
# The state can be saved to a file; a later prompt continues from it and does not read the text
# again.

# %%
with torch.no_grad():
    infini.save_memory(model(ids).cache, "book.safetensors")

memory = infini.load_memory("book.safetensors", model)
prompt = tokenizer("The army of the United States", return_tensors="pt").input_ids
answer = model.generate(prompt, cache=memory, max_new_tokens=16, do_sample=False)
print(tokenizer.decode(answer[0]))

# %% [markdown]
# ## What is trainable
#
# `retrofit` freezes the base; only the tensors that it added can be trained, by any loop or by
# [Trainer](hugging_face.md#trainer). Before training they do not change the output.

# %%
trainable = [p for p in model.parameters() if p.requires_grad]
print(f"{sum(p.numel() for p in trainable):,} parameters in {len(trainable)} tensors")

# %% [markdown]
# ## Save, load, remove
#
# A saved model holds the added tensors, the settings and a model card, never the base. `remove`
# gives the untouched base back.

# %%
model.save_pretrained("my-model")
loaded = infini.load("my-model")
with torch.no_grad():
    print("same logits:", torch.equal(model(ids).logits, loaded(ids).logits))

base = infini.remove(model)
print("a plain model again:", type(base).__name__)
