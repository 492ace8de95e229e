"""The smallest DataModule of one's own. In this folder:

    mixer-finetune fit --recipe own_recipe.yaml --data own_data.Shades

It is a LightningDataModule as any other. `label_names` is all that the classifier asks of it.
"""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Shades(pl.LightningDataModule):
    """Noise that is dark, grey or bright.

    Args:
        images_per_class: How many of each there are.
        batch_size: Images of a step.
    """

    label_names = ["dark", "grey", "bright"]

    def __init__(self, images_per_class: int = 40, batch_size: int = 20):
        super().__init__()
        self.images_per_class, self.batch_size = images_per_class, batch_size

    def _loader(self, seed: int, shuffle: bool = False) -> DataLoader:
        labels = torch.arange(3).repeat(self.images_per_class)  # (n,)
        noise = torch.randn(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        images = 0.3 * noise + (labels - 1)[:, None, None, None]  # (n, 3, 32, 32), as normalised
        return DataLoader(TensorDataset(images, labels), self.batch_size, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self._loader(seed=0, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(seed=1)

    def test_dataloader(self) -> DataLoader:
        return self._loader(seed=2)
