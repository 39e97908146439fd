"""Which image region each word of a vision-language model's answer attends to."""
