"""What is wrong with prompts, in words. Raised by this room, said by the commands."""


class DataError(ValueError):
    """A data file, a row of it, or the tokenizer doesn't fit. The message gives place, reason and remedy."""
