//! Where a model's parameters lie on the device.

use super::super::adam;
use super::super::buffer::{DeviceVec, View, ViewMut, clear, download, upload};
use super::super::context::Context;
use super::super::fused;
use super::super::half::Stored;
use crate::error::{Error, Result};
use crate::model::Model;
use std::ops::Range;

/// Where each parameter lies in an arena.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) embeddings: Range<usize>,
    pub(super) w: Range<usize>,
    pub(super) u: Range<usize>,
    pub(super) b: Range<usize>,
    pub(super) dense_w: Range<usize>,
    pub(super) dense_b: Range<usize>,
    /// `w`, `u` and `b`: the range whose gradients are partial sums. It begins at a multiple of 4, so that kernels read by
    /// fours; up to three numbers between it and the embeddings are 0 in every arena.
    pub(super) layer: Range<usize>,
    /// Length of an arena.
    pub(super) len: usize,
}

impl Places {
    pub(super) fn new(model: &Model) -> Result<Self> {
        let find = |name: &str| {
            let spec = model.table.find(name).map(|spec| spec.range());
            spec.ok_or_else(|| Error::Failed(format!("the model has no parameter {name}")))
        };
        let (w, u, b) = (find("lstm/kernel")?, find("lstm/recurrent_kernel")?, find("lstm/bias")?);
        let (dense_w, dense_b) = (find("dense/kernel")?, find("dense/bias")?);
        // The kernels' partial sums of the layer are one run of numbers.
        if w.end != u.start || u.end != b.start || dense_w.end != dense_b.start {
            return Err(Error::Failed(format!(
                "the CUDA back end needs the layers' parameters one after the other in the arena, found kernel {w:?}, \
                 recurrent_kernel {u:?}, bias {b:?}, dense/kernel {dense_w:?}, dense/bias {dense_b:?}"
            )));
        }
        let embeddings = find("embedding/embeddings")?;
        if embeddings.start != 0 || embeddings.end != w.start || b.end != dense_w.start {
            return Err(Error::Failed(format!(
                "the CUDA back end needs the embeddings first and the dense layer last in the arena, found {embeddings:?}, \
                 kernel {w:?}, bias {b:?}, dense/kernel {dense_w:?}"
            )));
        }
        let gap = embeddings.end.next_multiple_of(4) - embeddings.end;
        let [w, u, b, dense_w, dense_b] = [w, u, b, dense_w, dense_b].map(|r| r.start + gap..r.end + gap);
        let layer = w.start..b.end;
        let len = dense_b.end;
        Ok(Self { embeddings, w, u, b, dense_w, dense_b, layer, len })
    }

    pub(super) fn arena(&self) -> adam::Arena {
        adam::Arena { layer: self.layer.start, dense: self.dense_w.start }
    }

    /// All parameters; those that are multiplied as they are `stored`, if not in f32.
    pub(super) fn weights<'a, S: Stored>(
        &self,
        params: &'a DeviceVec<f32>,
        stored: Option<&'a DeviceVec<S>>,
    ) -> Result<fused::Weights<'a, S>> {
        let params = params.view();
        let stored = S::weights(params, stored)?;
        Ok(fused::Weights {
            table: stored.part(self.embeddings.clone())?,
            w: stored.part(self.w.clone())?,
            u: stored.part(self.u.clone())?,
            b: params.part(self.b.clone())?,
            dense_w: stored.part(self.dense_w.clone())?,
            dense_b: params.part(self.dense_b.clone())?,
        })
    }

    /// Copies a host's arena, which has no gap, into `arena`.
    pub(super) fn upload(
        &self,
        ctx: &Context,
        what: &str,
        arena: ViewMut<'_, f32>,
        values: &[f32],
    ) -> Result<()> {
        let (table, rest) = arena.split(self.layer.start)?;
        let Some((table_values, rest_values)) = values.split_at_checked(self.embeddings.end) else {
            return Err(Error::Failed(format!("{what}: {} values; please report this", values.len())));
        };
        upload(ctx, what, table, table_values)?;
        upload(ctx, what, rest, rest_values)
    }

    /// An arena with these values.
    pub(super) fn upload_new(&self, ctx: &Context, what: &str, values: &[f32]) -> Result<DeviceVec<f32>> {
        let mut arena = DeviceVec::new(ctx, what, self.len)?;
        clear(ctx, what, arena.view_mut())?;
        self.upload(ctx, what, arena.view_mut(), values)?;
        Ok(arena)
    }

    /// The arena as the host has it.
    pub(super) fn download(&self, ctx: &Context, what: &str, arena: View<'_, f32>) -> Result<Vec<f32>> {
        let mut values = download(ctx, what, arena)?;
        values.drain(self.embeddings.end..self.layer.start);
        Ok(values)
    }
}
