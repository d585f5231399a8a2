//! The table of steps on the device: what the kernels read of each, computed on the host.

use crate::backend::{AdamConfig, StepState};

/// A [`StepState`] as the kernels read it (`Step` in common.cuh). What needs powers and roots in f64 is done here, once a
/// step and not once a block; a learning rate's schedule, weight decay and clipping reach the kernels by this table.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Step {
    /// [`AdamConfig::alpha`].
    alpha: f32,
    /// `lr·weight_decay`.
    decay: f32,
    clip_norm: f32,
    batch_start: u32,
    rows: u32,
    lr: f32,
    /// Low and high half of the step's number.
    t: [u32; 2],
}

impl Step {
    /// The row of `step`.
    pub(super) fn new(config: &AdamConfig, step: &StepState) -> Self {
        let lr = f64::from(step.lr);
        Self {
            alpha: config.alpha(lr, step.t) as f32,
            decay: (lr * f64::from(step.weight_decay)) as f32,
            clip_norm: step.clip_norm,
            batch_start: step.batch_start,
            rows: step.rows,
            lr: step.lr,
            t: [step.t as u32, (step.t >> 32) as u32],
        }
    }
}

/// Numbers of the cursor: the step that its kernels are at, and the one that its last kernel is at (see common.cuh).
pub(super) const CURSORS: usize = 2;
