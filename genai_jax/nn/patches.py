"""Images as rows of square patches, and where on the image each patch lies.

B images, H rows, W columns, C channels; patches of P × P pixels, N of them, row by row.
"""

import functools

import numpy as np
from jaxtyping import Array, Float, Float64


def patchify(image: Float[Array, "b h w c"], size: int) -> Float[Array, "b n p p c"]:
    """Cut images into patches, row by row.

    Args:
        image: Images; P divides height and width.
        size: P, in pixels.
    """
    b, h, w, c = image.shape
    if h % size or w % size:
        raise ValueError(
            f"The size of a patch must divide height and width; got {size} and {h} × {w}."
        )
    cut = image.reshape(b, h // size, size, w // size, size, c)
    return cut.swapaxes(2, 3).reshape(b, -1, size, size, c)


def unpatchify(patches: Float[Array, "b n p p c"], columns: int) -> Float[Array, "b h w c"]:
    """Put patches together again: the inverse of `patchify`.

    Args:
        patches: All patches of the images, row by row.
        columns: Patches in a row: W / P.
    """
    b, n, size, _, c = patches.shape
    grid = patches.reshape(b, n // columns, columns, size, size, c)
    return grid.swapaxes(2, 3).reshape(b, n // columns * size, columns * size, c)


@functools.cache
def grid_sinusoids(rows: int, columns: int, dim: int) -> Float64[np.ndarray, "n dim"]:
    r"""Compute fixed positions of the patches of a grid, in float64 on the host.

    $[s(\mathrm{column}), s(\mathrm{row})]$ with $s(z) = [\sin(\omega_i z), \cos(\omega_i z)]$,
    sines first, and $\omega_i = 10000^{-i/k}$ for i = 0 ... k - 1, k = dim / 4.

    Args:
        rows: Patches from top to bottom.
        columns: Patches from left to right.
        dim: Size of the vectors, a multiple of 4.

    Reference: Vaswani et al., arXiv:1706.03762, section 3.5, once an axis; so Peebles and Xie,
        arXiv:2212.09748, section 3.2, and the ViT of He et al., arXiv:2111.06377, appendix A.1.
    """
    if dim % 4:
        raise ValueError(f"Positions on a grid need a `dim` that 4 divides; got {dim}.")
    omega = 10_000.0 ** (-np.arange(dim // 4) / (dim // 4))
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = [axis[:, None] * omega for axis in (column, row)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
