//! `out (+)= op(a) · op(b)`, and the register-blocked product that every other operation here is made of.
//!
//! The right operand is packed into panels of [`WIDTH`] columns; one tile of the result ([`ROWS`] × [`WIDTH`])
//! lives in registers while the summed dimension runs. Each element of a result is the sum over [`DEPTH`]-long
//! pieces of that dimension, in order: it depends on the shapes alone, not on the tile that held it or the thread.

use super::Cpu;
use crate::backend::{Matmul, MatmulDims};
use crate::error::Result;

/// Columns of a tile.
pub(super) const WIDTH: usize = 16;
/// Rows of a tile: 2 × 16 accumulators are 8 of the 16 vector registers of baseline x86-64.
pub(super) const ROWS: usize = 2;
/// Longest piece of the summed dimension between two visits of the result: a piece of a panel stays in the first
/// cache, and long sums gain accuracy from being summed in pieces.
const DEPTH: usize = 256;
/// Rows of the result that one parallel task computes.
const TASK_ROWS: usize = 32;

/// A `[k,n]` matrix cut into panels of [`WIDTH`] columns, each `[k,WIDTH]`; the last is filled up with zeros.
#[derive(Default)]
pub(super) struct Panels {
    k: usize,
    n: usize,
    rows: Vec<[f32; WIDTH]>,
}

impl Panels {
    /// Panels of a `[k,n]` matrix of zeros.
    pub(super) fn zeros(k: usize, n: usize) -> Self {
        Self { k, n, rows: vec![[0.0; WIDTH]; k * n.div_ceil(WIDTH)] }
    }

    /// Packs `b [k,n]`.
    pub(super) fn pack(b: &[f32], k: usize, n: usize) -> Self {
        let mut panels = Self::zeros(k, n);
        panels.set_rows(0, b);
        panels
    }

    /// Packs the transpose of `b [n,k]`.
    pub(super) fn pack_transposed(b: &[f32], k: usize, n: usize) -> Self {
        let mut panels = Self::zeros(k, n);
        panels.set_columns(0, b);
        panels
    }

    /// Replaces rows from `first` on by the rows of `b [_,n]`.
    pub(super) fn set_rows(&mut self, first: usize, b: &[f32]) {
        if self.n == 0 {
            return;
        }
        for (row, values) in b.chunks_exact(self.n).enumerate() {
            for (panel, piece) in values.chunks(WIDTH).enumerate() {
                self.rows[panel * self.k + first + row][..piece.len()].copy_from_slice(piece);
            }
        }
    }

    /// Replaces columns from `first` on by the rows of `b [_,k]`.
    pub(super) fn set_columns(&mut self, first: usize, b: &[f32]) {
        if self.k == 0 {
            return;
        }
        for (column, values) in b.chunks_exact(self.k).enumerate() {
            let (panel, lane) = ((first + column) / WIDTH, (first + column) % WIDTH);
            let panel = &mut self.rows[panel * self.k..(panel + 1) * self.k];
            for (row, &value) in panel.iter_mut().zip(values) {
                row[lane] = value;
            }
        }
    }

    /// `out[m,n] += a[m,k] · self[..k]`, where `k ≤ self.k` is the length of a row of `a` that counts and `lda` the
    /// distance between rows.
    pub(super) fn product(&self, a: &[f32], lda: usize, k: usize, m: usize, out: &mut [f32]) {
        debug_assert!(k <= self.k && k <= lda && out.len() == m * self.n);
        let mut start = 0;
        while start < k {
            let end = k.min(start + DEPTH);
            for (index, panel) in self.panels().enumerate() {
                let panel = &panel[start..end];
                let column = index * WIDTH;
                let mut row = 0;
                while row + ROWS <= m {
                    let lines = [&a[row * lda + start..], &a[(row + 1) * lda + start..]];
                    self.add(tile::<ROWS>(lines, panel), row, column, out);
                    row += ROWS;
                }
                while row < m {
                    self.add(tile::<1>([&a[row * lda + start..]], panel), row, column, out);
                    row += 1;
                }
            }
            start = end;
        }
    }

    /// The panels, left to right.
    fn panels(&self) -> impl Iterator<Item = &[[f32; WIDTH]]> {
        self.rows.chunks_exact(self.k.max(1))
    }

    /// Adds a tile to `out[_,n]`, without the columns that only fill up the last panel.
    #[inline(always)]
    fn add<const R: usize>(&self, tile: [[f32; WIDTH]; R], row: usize, column: usize, out: &mut [f32]) {
        let width = WIDTH.min(self.n - column);
        for (r, sums) in tile.iter().enumerate() {
            let at = (row + r) * self.n + column;
            let line = &mut out[at..at + width];
            if let Ok(line) = <&mut [f32; WIDTH]>::try_from(&mut *line) {
                for (y, sum) in line.iter_mut().zip(sums) {
                    *y += sum;
                }
            } else {
                for (y, sum) in line.iter_mut().zip(sums) {
                    *y += sum;
                }
            }
        }
    }
}

/// The product of `R` rows and a panel.
#[inline(always)]
fn tile<const R: usize>(mut a: [&[f32]; R], panel: &[[f32; WIDTH]]) -> [[f32; WIDTH]; R] {
    // Cut to one length, so that the loop needs no bounds checks. (`array::map` is not always inlined here.)
    for row in &mut a {
        *row = &row[..panel.len()];
    }
    let mut sums = [[0.0; WIDTH]; R];
    for (k, b) in panel.iter().enumerate() {
        for r in 0..R {
            let x = a[r][k];
            for j in 0..WIDTH {
                sums[r][j] += x * b[j];
            }
        }
    }
    sums
}

/// The transpose of `a [rows,columns]`.
pub(super) fn transpose(a: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; a.len()];
    for row in 0..rows {
        for column in 0..columns {
            out[column * rows + row] = a[row * columns + column];
        }
    }
    out
}

/// `out[m,n] += a[m,k] · b`, in parallel over rows.
pub(super) fn add_product(cpu: &Cpu, a: &[f32], b: &Panels, m: usize, out: &mut [f32]) {
    if out.is_empty() || b.k == 0 {
        return;
    }
    let tasks: Vec<_> = a.chunks(TASK_ROWS * b.k).zip(out.chunks_mut(TASK_ROWS * b.n)).collect();
    cpu.each(m * b.k * b.n, tasks, |(a, out)| b.product(a, b.k, b.k, a.len() / b.k, out));
}

/// See [`Matmul`].
pub(super) fn matmul(cpu: &Cpu, d: MatmulDims, a: Matmul<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let MatmulDims { m, k, n, ta, tb } = d;
    if !a.accumulate {
        a.out.fill(0.0);
    }
    let panels = if tb { Panels::pack_transposed(a.b, k, n) } else { Panels::pack(a.b, k, n) };
    if ta {
        add_product(cpu, &transpose(a.a, k, m), &panels, m, a.out);
    } else {
        add_product(cpu, a.a, &panels, m, a.out);
    }
    Ok(())
}
