//! The register tiles that all products are made of. A tile of the result stays in registers while the summed
//! dimension runs; each step of it loads a few vectors of one operand and broadcasts a few elements of the other. Every
//! element of a result is one sum in the order of that dimension, whatever tile held it.
//!
//! Weights are packed in *panels*. A cell panel holds what [`LANES`](Simd::LANES) hidden units need: for each input `k`
//! the four gates' weights side by side, `[k][gate][lane]`, [`cell`] and [`rank`] work on it. A back panel holds up to
//! [`BACK`] vectors of outputs for each summed index, `[k][vector][lane]`; [`back`] works on it.

use super::simd::Simd;

/// Gates of a cell, and vectors of a cell panel's row.
pub(super) const GATES: usize = 4;
/// Most vectors of a back panel's row.
pub(super) const BACK: usize = 3;
/// Most rows of a tile of [`back`].
pub(super) const BACK_ROWS: usize = 8;

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

/// Adds `a[R,k] · panel` to the sums, where row `r` of `a` starts at `a + r·lda`.
///
/// # Safety
/// `a + r·lda` for r < R must be valid for reading `k` elements, `panel` for reading `k` rows of four vectors.
#[inline(always)]
pub(super) unsafe fn cell<S: Simd, const R: usize>(
    s: S,
    sums: &mut [[S::V; GATES]; R],
    a: *const f32,
    lda: usize,
    panel: *const f32,
    k: usize,
) {
    for k in 0..k {
        // SAFETY: row k of the panel and element k of each row of a, as the caller promised.
        unsafe {
            let w: [S::V; GATES] = load_row(s, panel.add(k * GATES * S::LANES));
            for r in 0..R {
                let x = s.splat(*a.add(r * lda + k));
                for g in 0..GATES {
                    sums[r][g] = s.mul_add(x, w[g], sums[r][g]);
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
/// is four vectors at `b + n·4·LANES`.
///
/// # Safety
/// These must be valid for reading.
#[inline(always)]
pub(super) unsafe fn rank<S: Simd, const R: usize>(
    s: S,
    sums: &mut [[S::V; GATES]; R],
    a: *const f32,
    lda: usize,
    b: *const f32,
    n: usize,
) {
    for n in 0..n {
        // SAFETY: row n of a and of b, as the caller promised.
        unsafe {
            let b = b.add(n * GATES * S::LANES);
            let a = a.add(n * lda);
            let b: [S::V; GATES] = load_row(s, b);
            for r in 0..R {
                let x = s.splat(*a.add(r));
                for g in 0..GATES {
                    sums[r][g] = s.mul_add(x, b[g], sums[r][g]);
                }
            }
        }
    }
}

/// Calls a block with `R` set to the number of rows, 1 to 6, of which only the first `ROWS` of the instruction set are
/// compiled.
macro_rules! with_rows {
    ($s:ty, $rows:expr, $name:ident => $call:expr) => {
        match $rows {
            1 => { const $name: usize = 1; $call }
            2 if <$s as $crate::backend::cpu::simd::Simd>::ROWS >= 2 => { const $name: usize = 2; $call }
            3 if <$s as $crate::backend::cpu::simd::Simd>::ROWS >= 3 => { const $name: usize = 3; $call }
            4 if <$s as $crate::backend::cpu::simd::Simd>::ROWS >= 4 => { const $name: usize = 4; $call }
            5 if <$s as $crate::backend::cpu::simd::Simd>::ROWS >= 5 => { const $name: usize = 5; $call }
            6 if <$s as $crate::backend::cpu::simd::Simd>::ROWS >= 6 => { const $name: usize = 6; $call }
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use with_rows;
