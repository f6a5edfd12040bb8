"""`batchgen serve`: files and batches of OpenAI's API on this machine. What runs a batch is passed
in, so nothing here knows a model."""
