"""The line between the engine and the programs that run its virtual machines."""
