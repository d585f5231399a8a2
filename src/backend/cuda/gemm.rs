//! Launches the matrix products and `column_sums`, whole or cut into slices of the dimension summed over.

use super::buffer::{View, ViewMut};
use super::context::Context;
use super::half::Stored;
use super::launch::{Call, blocks};
use crate::backend::{MatmulDims, Precision};
use crate::error::{Error, Result};
use crate::tuning::{COLUMN_THREADS, GEMM_K, GEMM_NARROW, GEMM_TALL, GEMM_THREADS, GEMM_TILE};

/// The most tiles along the rows of a result: the limit of a grid's second side.
const MOST_ROW_TILES: u32 = 65_535;

/// Tiles from which on they are tall ones: as many as the GPUs have multiprocessors, more or less. No bit depends on it.
const MANY_TILES: usize = 96;

/// How the dimension summed over is cut. Slice `z` writes its own result, `stride` elements after the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slices {
    /// Slices.
    pub(super) count: u32,
    /// Elements from a slice's result to the next one's.
    pub(super) stride: usize,
}

impl Slices {
    /// One sum.
    pub(super) const WHOLE: Slices = Slices { count: 1, stride: 0 };

    /// The length of a slice of `k`: equal but for the last ones, and whole steps of the kernel.
    fn length(self, k: usize) -> usize {
        match self.count {
            0 | 1 => k.max(1),
            count => k.div_ceil(count as usize).next_multiple_of(GEMM_K as usize).max(1),
        }
    }

    /// Elements of all slices' results of `n` each.
    fn extent(self, n: usize) -> Option<usize> {
        (self.count as usize).saturating_sub(1).checked_mul(self.stride)?.checked_add(n)
    }
}

/// What a block computes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    Square,
    Tall,
    Narrow,
}

impl Tile {
    fn of(d: MatmulDims, slices: u32) -> Self {
        let MatmulDims { m, n, ta, tb, .. } = d;
        let (tall_rows, tall_columns) = Tile::Tall.sides();
        let tall = m.div_ceil(tall_rows as usize).saturating_mul(n.div_ceil(tall_columns as usize));
        if n <= GEMM_NARROW as usize {
            Tile::Narrow
        } else if tall.saturating_mul(slices as usize) >= MANY_TILES && !(ta && tb) {
            Tile::Tall
        } else {
            Tile::Square
        }
    }

    /// Rows and columns.
    const fn sides(self) -> (u32, u32) {
        match self {
            Tile::Square => (GEMM_TILE, GEMM_TILE),
            Tile::Tall => (GEMM_TALL, GEMM_TILE),
            Tile::Narrow => (GEMM_TILE, GEMM_NARROW),
        }
    }
}

/// `out (+)= op(a)·op(b) (+ bias)`: `a` `[m,k]` or `[k,m]`, `b` `[k,n]` or `[n,k]`, `bias` `[n]`, `out` `[m,n]`.
///
/// # Errors
/// With 16 bits also if both are transposed: nothing needs that product.
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn gemm<S: Stored>(
    ctx: &Context,
    d: MatmulDims,
    a: View<'_, S>,
    b: View<'_, S>,
    bias: Option<View<'_, f32>>,
    mut out: ViewMut<'_, f32>,
    slices: Slices,
    accumulate: bool,
) -> Result<()> {
    let MatmulDims { m, k, n, ta, tb } = d;
    let kernels = S::of(&ctx.kernels);
    let tile = Tile::of(d, slices.count);
    let kernel = match (ta, tb, tile) {
        (false, false, Tile::Square) => &kernels.gemm_nn,
        (false, true, Tile::Square) => &kernels.gemm_nt,
        (true, false, Tile::Square) => &kernels.gemm_tn,
        (false, false, Tile::Tall) => &kernels.gemm_nn_tall,
        (false, true, Tile::Tall) => &kernels.gemm_nt_tall,
        (true, false, Tile::Tall) => &kernels.gemm_tn_tall,
        (false, false, Tile::Narrow) => &kernels.gemm_nn_narrow,
        (false, true, Tile::Narrow) => &kernels.gemm_nt_narrow,
        (true, false, Tile::Narrow) => &kernels.gemm_tn_narrow,
        (true, true, _) if S::PRECISION != Precision::F32 => {
            return Err(Error::Failed(
                "no product of two transposed arrays of 16 bits; please report this".into(),
            ));
        }
        (true, true, Tile::Narrow) => &ctx.kernels.gemm_tt_narrow,
        (true, true, _) => &ctx.kernels.gemm_tt,
    };
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (tile_rows, tile_columns) = tile.sides();
    let columns = blocks("matmul", "out [m,n]", &[n], tile_columns)?;
    let rows = blocks("matmul", "out [m,n]", &[m], tile_rows)?;
    if rows > MOST_ROW_TILES {
        return Err(Error::Shape {
            op: "matmul",
            what: "out [m,n]",
            expected: format!("at most {} rows; use a smaller batch", MOST_ROW_TILES * tile_rows),
            found: m.to_string(),
        });
    }
    let extent = m.checked_mul(n).and_then(|mn| slices.extent(mn)).unwrap_or(usize::MAX);
    let call = Call::new(ctx, kernel)
        .input("a [m,k]", a, &[m, k])?
        .input("b [k,n]", b, &[k, n])?
        .input_or_null("bias [n]", bias, &[n])?
        .output("out [m,n]", &mut out, &[extent])?
        .size("m", m)?
        .size("n", n)?
        .size("k", k)?
        .size("k of a slice", slices.length(k))?
        .u64(slices.stride as u64)
        .u32(u32::from(accumulate));
    // SAFETY: the parameters are `a, b, bias, out, m, n, k, k_slice, slice_stride, accumulate`. A block reads `a` and
    // `b` where row, column and k are below m, n and k, `bias` below n, and writes a slice's `m·n` elements of `out`:
    // all were checked, `out` for the last slice.
    unsafe { call.launch([columns, rows, slices.count], GEMM_THREADS, 0) }
}

/// `out[col] (+)= sum over rows of a[row,col]`: `a` `[k,n]`, `out` `[n]`.
pub(super) fn column_sums<S: Stored>(
    ctx: &Context,
    k: usize,
    n: usize,
    a: View<'_, S>,
    mut out: ViewMut<'_, f32>,
    slices: Slices,
    accumulate: bool,
) -> Result<()> {
    let grid = blocks("column_sums", "out [n]", &[n], COLUMN_THREADS)?;
    let call = Call::new(ctx, &S::of(&ctx.kernels).column_sums)
        .input("a [k,n]", a, &[k, n])?
        .output("out [n]", &mut out, &[slices.extent(n).unwrap_or(usize::MAX)])?
        .size("k", k)?
        .size("n", n)?
        .size("k of a slice", slices.length(k))?
        .u64(slices.stride as u64)
        .u32(u32::from(accumulate));
    // SAFETY: the parameters are `a, out, k, n, k_slice, slice_stride, accumulate`. A thread reads column col < n of `a`
    // at rows below k and writes element col of a slice of `out`: both were checked, `out` for the last slice.
    unsafe { call.launch([grid, slices.count, 1], COLUMN_THREADS, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_tall_where_there_are_many() {
        let of = |m, n, t, slices| Tile::of(MatmulDims { m, k: 9, n, ta: t, tb: t }, slices);
        assert_eq!(of(6400, 512, false, 1), Tile::Tall);
        assert_eq!(of(6400, 512, true, 1), Tile::Square);
        assert_eq!(of(6400, 16, false, 1), Tile::Narrow);
        assert_eq!(of(128, 512, false, 16), Tile::Tall);
        assert_eq!(of(128, 512, false, 1), Tile::Square);
    }

    #[test]
    fn slices_are_whole_steps_and_cover_the_sum() {
        let slices = |count| Slices { count, stride: 0 };
        assert_eq!(slices(1).length(0), 1);
        assert_eq!(slices(1).length(100), 100);
        assert_eq!(slices(3).length(100), 48);
        assert_eq!(slices(128).length(1), 16);
        assert_eq!(slices(4).length(0), 1);
        for (count, k) in [(1, 1), (2, 31), (7, 1000), (128, 1024), (128, 99)] {
            assert!(slices(count).length(k) * count as usize >= k, "{count} slices of {k}");
        }
    }
}
