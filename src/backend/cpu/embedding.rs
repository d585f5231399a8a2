//! The embedding: rows gathered from a table, and gradients added to them.

use super::{Cpu, check_ids};
use crate::backend::{EmbeddingBackward, EmbeddingDims, EmbeddingForward};
use crate::error::Result;

/// Tokens that one parallel task gathers.
const TASK_TOKENS: usize = 4096;
/// Parts of the table in backward; each task reads all ids and adds to the rows of its own part, in the order of
/// the tokens.
const TABLE_PARTS: usize = 8;

/// See [`EmbeddingForward`].
pub(super) fn forward(cpu: &Cpu, d: EmbeddingDims, a: EmbeddingForward<'_, [f32], [u32]>) -> Result<()> {
    a.check(d)?;
    check_ids("embedding_forward", "ids [n]", "V", d.v, a.ids)?;
    let e = d.e;
    if a.out.is_empty() {
        return Ok(());
    }
    let tasks: Vec<_> = a.ids.chunks(TASK_TOKENS).zip(a.out.chunks_mut(TASK_TOKENS * e)).collect();
    cpu.each(d.n * e, tasks, |(ids, out)| {
        for (&id, row) in ids.iter().zip(out.chunks_exact_mut(e)) {
            row.copy_from_slice(&a.table[id as usize * e..][..e]);
        }
    });
    Ok(())
}

/// See [`EmbeddingBackward`].
pub(super) fn backward(cpu: &Cpu, d: EmbeddingDims, a: EmbeddingBackward<'_, [f32], [u32]>) -> Result<()> {
    a.check(d)?;
    check_ids("embedding_backward", "ids [n]", "V", d.v, a.ids)?;
    let e = d.e;
    if a.dtable.is_empty() {
        return Ok(());
    }
    let part_rows = d.v.div_ceil(TABLE_PARTS);
    let tasks: Vec<_> = a.dtable.chunks_mut(part_rows * e).enumerate().collect();
    cpu.each(d.n * e, tasks, |(part, table)| {
        let first = part * part_rows;
        for (&id, grad) in a.ids.iter().zip(a.dout.chunks_exact(e)) {
            let row = (id as usize).wrapping_sub(first);
            if let Some(sums) = table.get_mut(row.saturating_mul(e)..row.saturating_add(1).saturating_mul(e))
            {
                for (sum, add) in sums.iter_mut().zip(grad) {
                    *sum += add;
                }
            }
        }
    });
    Ok(())
}
