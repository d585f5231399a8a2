//! The register tiles that all products are made of. A tile of the result stays in registers while the summed
//! dimension runs; each step of it loads a few vectors of one operand and broadcasts a few elements of the other. Every
//! element of a result is one sum in the order of that dimension, whatever tile held it.
//!
//! Weights are packed in *panels*. A cell panel holds what [`LANES`](Simd::LANES) hidden units need: for each input `k`
//! the four gates' weights side by side, `[k][gate][lane]`, [`cell`] and [`rank`] work on it. A back panel holds two or
//! three vectors of outputs for each summed index, `[k][vector][lane]`; [`back`] works on it.
//!
//! With 32 registers a tile is 6 rows by 4 vectors or 8 by 3, with 16 it is 6 by 2 or 4 by 2: two gates at a time. (3 by
//! 4 needs every one of 16 registers, which the compiler does not manage.)

#![allow(clippy::needless_range_loop)] // tiles are indexed as the equations are

use super::simd::Simd;

/// Gates of a cell, and vectors of a cell panel's row.
pub(super) const GATES: usize = 4;
/// Most rows of a tile of [`cell`] or [`rank`].
pub(super) const ROWS: usize = 6;

/// `n` cut into pieces of at most `most`, as even as can be: the first element and the length of each.
#[derive(Clone, Copy)]
pub(super) struct Evenly {
    first: usize,
    n: usize,
    pieces: usize,
}

impl Evenly {
    #[inline(always)]
    pub(super) fn new(n: usize, most: usize) -> Self {
        Self { first: 0, n, pieces: n.div_ceil(most) }
    }
}

impl Iterator for Evenly {
    type Item = (usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        if self.pieces == 0 {
            return None;
        }
        let (first, length) = (self.first, (self.n - self.first).div_ceil(self.pieces));
        self.first += length;
        self.pieces -= 1;
        Some((first, length))
    }
}

/// N vectors in a row.
///
/// # Safety
/// `from` must be valid for reading them.
#[inline(always)]
pub(super) unsafe fn load_row<S: Simd, const N: usize>(s: S, from: *const f32) -> [S::V; N] {
    // Not `array::from_fn`, which is not always inlined.
    let mut row = [s.splat(0.0); N];
    for (v, vector) in row.iter_mut().enumerate() {
        // SAFETY: as the caller promised.
        *vector = unsafe { s.load(from.add(v * S::LANES)) };
    }
    row
}

/// Adds `a[R,k] · panel` to the sums, where row `r` of `a` starts at `a + r·lda` and rows of the panel are `width`
/// elements apart.
///
/// # Safety
/// `a + r·lda` for r < R must be valid for reading `k` elements, `panel` for reading the first N vectors of `k` rows.
#[inline(always)]
pub(super) unsafe fn cell<S: Simd, const R: usize, const N: usize>(
    s: S,
    sums: &mut [[S::V; N]; R],
    a: *const f32,
    lda: usize,
    panel: *const f32,
    width: usize,
    k: usize,
) {
    for k in 0..k {
        // SAFETY: row k of the panel and element k of each row of a, as the caller promised.
        unsafe {
            let w: [S::V; N] = load_row(s, panel.add(k * width));
            for r in 0..R {
                let x = s.splat(*a.add(r * lda + k));
                for v in 0..N {
                    sums[r][v] = s.mul_add(x, w[v], sums[r][v]);
                }
            }
        }
    }
}

/// Adds `a · panel` to the sums. Element `k` of row `r` of `a` stands at `a + (k / piece)·stride + r·piece + k % piece`
/// with `piece` = four vectors: the gradients by pre-activations lie like this.
///
/// # Safety
/// These elements must be valid for reading for r < R and k < `pieces`·`piece`, and `panel` for reading as many rows of
/// N vectors.
#[inline(always)]
pub(super) unsafe fn back<S: Simd, const R: usize, const N: usize>(
    s: S,
    sums: &mut [[S::V; N]; R],
    a: *const f32,
    stride: usize,
    pieces: usize,
    panel: *const f32,
    width: usize,
) {
    let length = GATES * S::LANES;
    for piece in 0..pieces {
        for k in 0..length {
            // SAFETY: row k of the panel's piece and element k of each row's piece, as the caller promised.
            unsafe {
                let a = a.add(piece * stride + k);
                let w: [S::V; N] = load_row(s, panel.add((piece * length + k) * width));
                for r in 0..R {
                    let x = s.splat(*a.add(r * length));
                    for v in 0..N {
                        sums[r][v] = s.mul_add(x, w[v], sums[r][v]);
                    }
                }
            }
        }
    }
}

/// Adds `aᵀ · b` over `n` rows to the sums: row `n` of `a` starts at `a + n·lda` and gives R elements, row `n` of `b`
/// starts at `b + n·4·LANES` and gives N vectors.
///
/// # Safety
/// These must be valid for reading.
#[inline(always)]
pub(super) unsafe fn rank<S: Simd, const R: usize, const N: usize>(
    s: S,
    sums: &mut [[S::V; N]; R],
    a: *const f32,
    lda: usize,
    b: *const f32,
    n: usize,
) {
    for n in 0..n {
        // SAFETY: row n of a and of b, as the caller promised.
        unsafe {
            let b: [S::V; N] = load_row(s, b.add(n * GATES * S::LANES));
            let a = a.add(n * lda);
            for r in 0..R {
                let x = s.splat(*a.add(r));
                for v in 0..N {
                    sums[r][v] = s.mul_add(x, b[v], sums[r][v]);
                }
            }
        }
    }
}

/// Runs a block with `R` set to the number of rows and `N` to the vectors of a tile, which are all gates or half of
/// them.
macro_rules! with_tile {
    ($s:ty, $rows:expr, $r:ident, $n:ident => $call:expr) => {
        if <$s as $crate::backend::cpu::simd::Simd>::WIDE {
            const $n: usize = 4;
            $crate::backend::cpu::tile::with_rows!($rows, $r => $call)
        } else {
            const $n: usize = 2;
            $crate::backend::cpu::tile::with_rows!($rows, $r => $call)
        }
    };
}

/// Runs a block with `R` set to the number of rows, 1 to [`ROWS`].
macro_rules! with_rows {
    ($rows:expr, $name:ident => $call:expr) => {
        match $rows {
            1 => {
                const $name: usize = 1;
                $call
            }
            2 => {
                const $name: usize = 2;
                $call
            }
            3 => {
                const $name: usize = 3;
                $call
            }
            4 => {
                const $name: usize = 4;
                $call
            }
            5 => {
                const $name: usize = 5;
                $call
            }
            6 => {
                const $name: usize = 6;
                $call
            }
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use {with_rows, with_tile};
