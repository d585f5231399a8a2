//! `out (+)= op(a) · op(b)`, and the register-blocked product that the operations one by one are made of.
//!
//! The right operand is packed into panels two vectors wide; one tile of the result (up to [`ROWS`] rows of a panel)
//! lives in registers while the summed dimension runs. Each element of a result is the sum over [`DEPTH`]-long
//! pieces of that dimension, in order: it depends on the shapes alone, not on the tile that held it or the thread.

use super::Cpu;
use super::simd::{Kernel, Simd};
use super::tile::{self, Evenly, ROWS, with_rows};
use crate::backend::{Matmul, MatmulDims};
use crate::error::Result;

/// Vectors of a panel's row.
const VECTORS: usize = 2;
/// Longest piece of the summed dimension between two visits of the result: a piece of a panel stays in the first
/// cache, and long sums gain accuracy from being summed in pieces.
const DEPTH: usize = 256;
/// Rows of the result that one parallel task computes.
const TASK_ROWS: usize = 32;

/// A `[k,n]` matrix cut into panels of some columns, each `[k,width]`; the last is filled up with zeros.
#[derive(Default)]
pub(super) struct Panels {
    k: usize,
    n: usize,
    width: usize,
    rows: Vec<f32>,
}

impl Panels {
    /// Panels of a `[k,n]` matrix of zeros.
    pub(super) fn zeros(cpu: &Cpu, k: usize, n: usize) -> Self {
        let width = VECTORS * cpu.isa().lanes();
        Self { k, n, width, rows: vec![0.0; k * n.next_multiple_of(width)] }
    }

    /// Packs `b [k,n]`.
    pub(super) fn pack(cpu: &Cpu, b: &[f32], k: usize, n: usize) -> Self {
        let mut panels = Self::zeros(cpu, k, n);
        panels.set_rows(0, b);
        panels
    }

    /// Packs the transpose of `b [n,k]`.
    pub(super) fn pack_transposed(cpu: &Cpu, b: &[f32], k: usize, n: usize) -> Self {
        let mut panels = Self::zeros(cpu, k, n);
        panels.set_columns(0, b);
        panels
    }

    /// Replaces rows from `first` on by the rows of `b [_,n]`.
    pub(super) fn set_rows(&mut self, first: usize, b: &[f32]) {
        if self.n == 0 {
            return;
        }
        for (row, values) in b.chunks_exact(self.n).enumerate() {
            for (panel, piece) in values.chunks(self.width).enumerate() {
                let at = (panel * self.k + first + row) * self.width;
                self.rows[at..at + piece.len()].copy_from_slice(piece);
            }
        }
    }

    /// Replaces columns from `first` on by the rows of `b [_,k]`.
    pub(super) fn set_columns(&mut self, first: usize, b: &[f32]) {
        if self.k == 0 {
            return;
        }
        for (column, values) in b.chunks_exact(self.k).enumerate() {
            let (panel, lane) = ((first + column) / self.width, (first + column) % self.width);
            let panel = &mut self.rows[panel * self.k * self.width..][..self.k * self.width];
            for (row, &value) in panel.chunks_exact_mut(self.width).zip(values) {
                row[lane] = value;
            }
        }
    }

    /// `out[m,n] += a[m,k] · self[..k]`, where `k ≤ self.k` is the length of a row of `a` that counts and `lda` the
    /// distance between rows.
    #[inline(always)]
    pub(super) fn product<S: Simd>(&self, s: S, a: &[f32], lda: usize, k: usize, m: usize, out: &mut [f32]) {
        if m == 0 || self.n == 0 {
            return;
        }
        assert!(self.width == VECTORS * S::LANES && k <= self.k);
        assert!(out.len() == m * self.n && a.len() >= (m - 1) * lda + k);
        for start in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - start);
            for column in (0..self.n).step_by(self.width) {
                let panel = &self.rows[column * self.k + start * self.width..][..depth * self.width];
                for (row, count) in Evenly::new(m, ROWS) {
                    with_rows!(count, R => {
                        let mut sums = [[s.splat(0.0); VECTORS]; R];
                        // SAFETY: elements `start..start + depth` of rows `row..row + R` of `a`, whose length was
                        // checked, and as many rows of the panel.
                        unsafe {
                            let a = a.as_ptr().add(row * lda + start);
                            tile::cell(s, &mut sums, a, lda, panel.as_ptr(), self.width, depth);
                        }
                        for (r, sums) in sums.iter().enumerate() {
                            let line = &mut out[(row + r) * self.n..][..self.n];
                            // Without the columns that only fill up the last panel.
                            for (piece, &sum) in line[column..].chunks_mut(S::LANES).zip(sums) {
                                let total = s.add(s.get_part(piece), sum);
                                s.put_part(piece, total);
                            }
                        }
                    });
                }
            }
        }
    }
}

/// [`Panels::product`] of whole rows.
struct AddProduct<'a> {
    a: &'a [f32],
    b: &'a Panels,
    out: &'a mut [f32],
}

impl Kernel for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let k = self.b.k;
        self.b.product(s, self.a, k, k, self.a.len() / k, self.out);
    }
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
    cpu.each(m * b.k * b.n, tasks, |(a, out)| cpu.isa().run(AddProduct { a, b, out }));
}

/// See [`Matmul`].
pub(super) fn matmul(cpu: &Cpu, d: MatmulDims, a: Matmul<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let MatmulDims { m, k, n, ta, tb } = d;
    if !a.accumulate {
        a.out.fill(0.0);
    }
    let panels = if tb { Panels::pack_transposed(cpu, a.b, k, n) } else { Panels::pack(cpu, a.b, k, n) };
    if ta {
        add_product(cpu, &transpose(a.a, k, m), &panels, m, a.out);
    } else {
        add_product(cpu, a.a, &panels, m, a.out);
    }
    Ok(())
}
