"""What the shapes of a backbone's weights depend on besides its architecture. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from mixer_finetune.errors import UserError

Grid = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Sizes of the input and of the token grid.

    Attributes:
        image_size: (height, width) of the input, in pixels.
        patch_size: Side of a square patch, in pixels.
        in_chans: Channels of the input.
        token_hidden: Hidden width of the token MLPs, where it is not the architecture's own.
        trained_grid: Grid that tokens are resampled to around the token mixing, where it is not the present one.
        image_sizes: Sizes that the weights were trained for together: at another one than `image_size` the token mixing
            is resampled in passing.
    """

    image_size: tuple[int, int]
    patch_size: int
    in_chans: int = 3
    token_hidden: int | None = None
    trained_grid: Grid | None = None
    image_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def grid(self) -> Grid:
        """Rows and columns of tokens in the input."""
        return self.grid_of(self.image_size)

    def grid_of(self, image_size: tuple[int, int]) -> Grid:
        """Rows and columns of tokens in an input of another size."""
        return image_size[0] // self.patch_size, image_size[1] // self.patch_size

    @property
    def mixing_grid(self) -> Grid:
        """Rows and columns of tokens that the token-mixing weights are for."""
        return self.trained_grid or self.grid

    @property
    def mixing_tokens(self) -> int:
        """Number of tokens that the token-mixing weights are for."""
        return self.mixing_grid[0] * self.mixing_grid[1]

    def check(self, architecture: str) -> None:
        """Refuse an image that is not cut into whole patches.

        Raises:
            UserError: The message gives the nearest sizes that work.
        """
        patch = self.patch_size
        if patch < 1:
            raise UserError(f"the patch size must be 1 or more, got {patch}", option="patch_size")
        for size in (side for sides in (self.image_size, *self.image_sizes) for side in sides):
            if size < patch or size % patch:
                below = max(size // patch, 1) * patch
                raise UserError(
                    f"image size {size} is not a multiple of {architecture}'s patch size {patch}",
                    option="image_size",
                    choices=f"{below} or {below + patch}",
                )
        if self.in_chans not in (1, 3, 4):
            raise UserError(
                f"the input has 1 (grey), 3 (RGB) or 4 (RGBA) channels, got {self.in_chans}", option="in_chans"
            )
