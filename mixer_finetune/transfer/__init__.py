"""How it is trained: optimizers, schedules and drop path."""
