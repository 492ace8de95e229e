"""How it is trained: the LightningModule, its task, optimization, checkpoints and progress."""
