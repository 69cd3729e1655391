"""Search for an order of steps with a low peak; the entry is :mod:`graphopt.memory.schedule`."""
