"""One block's sums, compiled.

Every sum has its order written out, nothing is contracted or reassociated, and exponentials and
logarithms are polynomials of our own. So the bits depend neither on the type of the CPU nor on
threads, libraries or a block's place in memory.

`lanes` has eight numbers as one value, `products` tiles of eight by eight, `losses` a function for
each loss, `sums` what is common to them, `columns` what a survey sums; `losses` says how to compile
another. Together with the sums of
sparse rows they are the only ones to import numba, and imported late: only who evaluates blocks
needs them. What is compiled is kept on disk, for a function and a type of CPU, until the function's
own file changes: whoever changes `lanes` or tiles has to clear the folders ``__pycache__``.
"""

from dask_dml.objective.kernels.columns import ColumnSums
from dask_dml.objective.kernels.losses import compiled_loss, row_terms
from dask_dml.objective.kernels.products import product
from dask_dml.objective.kernels.sums import Sums

__all__ = ["GRAM_COLUMNS", "ColumnSums", "Sums", "compiled_loss", "product", "row_terms"]

# Columns up to which the Gram matrix is summed here; BLAS is faster beyond.
GRAM_COLUMNS = 256
