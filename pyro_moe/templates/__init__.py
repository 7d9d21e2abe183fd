"""The stories as files to be edited: what ``pyro-moe new`` writes, each whole in itself."""
