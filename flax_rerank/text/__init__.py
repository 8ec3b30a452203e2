"""From texts to token ids: the tokenizer, what is put around query and passage, and how both are cut."""
