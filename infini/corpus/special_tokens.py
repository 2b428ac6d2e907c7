"""The special token that a tokenizer begins every text with."""

from transformers import PreTrainedTokenizerBase as Tokenizer


def beginning_of_text(tokenizer: Tokenizer) -> list[int]:
    """Return the special token that a tokenizer begins every text with; empty: it adds none.

    A base that was trained with it (Gemma, Llama 3) predicts badly without it.
    """
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and begin in tokenizer.encode("") else []
