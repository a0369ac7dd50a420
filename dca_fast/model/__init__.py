"""The float model: readable, trainable, the source of the integer program."""
