//! The CUDA back end: hand-written kernels, driven from here.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `context` | the driver, a device |
//! | `kernels` | the kernels' images, and each kernel on the device, loaded when it is first launched |
//! | `buffer` | memory on the device and the pinned memory on the way there |
//! | `launch` | a kernel's arguments, checked as they are pushed |
//! | one for each kernel file | one typed function for each kernel |
//! | `graph`, `engine` | training: steps recorded once and replayed for every batch |
//!
//! A training step takes one of four paths: [`fused`] (a batch row's whole step in one block, then one Adam), or one kernel an
//! operation, of which the LSTM's is one for a batch row's whole sequence, one for the whole batch's, or one for each time step
//! ([`path`]). What they share stands in `engine`; `recurve info` says what a shape takes and why, and `RECURVE_CUDA_PATH` or
//! [`PathChoice`] takes another.
//!
//! The driver is looked for when it is needed: without one, everything here is an error that says so.
//!
//! Everything happens in order on one stream of the [`Cuda`] that was opened. Buffers belong to it, and are refused by
//! another.

mod activation;
mod adam;
mod batch;
mod buffer;
mod context;
mod cross_entropy;
mod dense;
mod embedding;
mod engine;
mod fill;
pub mod fused;
mod fused_steps;
mod gemm;
mod graph;
mod half;
pub mod image;
mod kernels;
mod launch;
mod lstm_cell;
mod lstm_persistent;
mod lstm_sequence;
pub mod path;
mod steps;
mod tokens;

pub use activation::Activation;
pub use buffer::{CudaBuffer, CudaIds};
pub use context::{Missing, devices};
pub use engine::CudaEngine;
pub use fused::{Fused, Unfused};
pub use fused_steps::{LEAST_UPDATERS, MOST_STEPS};
pub use kernels::{ImageChoice, LoadedImage, staged_rows};
pub use path::PathChoice;

use super::*;
use crate::error::Result;
use buffer::{DeviceVec, clear, download};
use context::Context;
use cudarc::driver::sys::CUevent_flags;
use gemm::Slices;
use lstm_cell::{Input, StateGradient};
use lstm_sequence::Plan;
use std::sync::Arc;

/// A CUDA device with its kernels, and a stream of its own. It cannot be cloned: an engine that records its steps
/// from the stream has to be the only one to use it.
#[derive(Debug)]
pub struct Cuda {
    ctx: Arc<Context>,
    path: PathChoice,
}

/// The engine that `--device auto` takes: the first device, if there is one that can be used. `Err(None)` is a machine
/// without a driver; `Err(Some(reason))` one whose driver or device cannot be used, in one line.
pub(super) fn auto() -> Result<CudaEngine, Option<String>> {
    match devices() {
        Err(Missing::Driver) => Err(None),
        Err(Missing::Unusable(why)) => Err(Some(why)),
        Ok(_) => Cuda::new(0).map(CudaEngine::new).map_err(|error| Some(error.to_string())),
    }
}

impl Cuda {
    /// Opens device `ordinal`, with kernels from the image that `RECURVE_CUDA_IMAGE` asks for (see [`ImageChoice`]). Each
    /// is loaded when it is first launched.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no driver, no such device, or no image of the kernels loads on it.
    pub fn new(ordinal: u32) -> Result<Self> {
        Self::with_image(ordinal, ImageChoice::from_env()?)
    }

    /// [`new`](Self::new), with a choice of image.
    ///
    /// # Errors
    /// As for [`new`](Self::new), and if this build does not hold that image.
    pub fn with_image(ordinal: u32, choice: ImageChoice) -> Result<Self> {
        let path = PathChoice::from_env()?;
        Ok(Self { ctx: Arc::new(Context::open(ordinal, choice)?), path })
    }

    /// The device's own name, e.g. `NVIDIA H100 80GB HBM3`.
    pub fn device_name(&self) -> &str {
        &self.ctx.name
    }

    /// The most hidden units of the persistent kernels that this device has all blocks of at once: 0 if it cannot launch
    /// blocks together.
    pub fn persistent_units(&self) -> usize {
        lstm_persistent::most_units(&self.ctx)
    }

    /// Whether this device has a multiprocessor for each block of many steps in one launch, of batches of so many rows.
    pub fn steps_fit(&self, rows: usize) -> bool {
        self.ctx.cooperative && fused_steps::updaters(self.ctx.multiprocessors as usize, rows).is_some()
    }

    /// True if this is the software device of the tests and no GPU.
    pub fn is_software(&self) -> bool {
        self.ctx.name.starts_with("softcuda")
    }

    /// The image of the kernels that was loaded.
    pub fn image(&self) -> &LoadedImage {
        &self.ctx.loader.image
    }

    /// Images that were tried before [`image`](Self::image), each with why it would not load.
    pub fn refused_images(&self) -> &[String] {
        &self.ctx.loader.refused
    }

    /// Compute capability, major and minor.
    pub fn compute_capability(&self) -> (i32, i32) {
        self.ctx.capability
    }

    /// Bytes of device memory.
    pub fn memory(&self) -> usize {
        self.ctx.memory
    }

    /// The CUDA version of the driver, e.g. `12.4`.
    pub fn driver_version(&self) -> String {
        self.ctx.driver_version()
    }

    /// The files of kernels/ that have been loaded so far: each when one of its kernels was first launched.
    pub fn loaded(&self) -> Vec<&'static str> {
        self.ctx.loader.loaded()
    }

    /// Rows of the recurrent matrix that the f32 sequence kernels of 128 units keep in shared memory, of the
    /// [`SEQUENCE_STREAMED`](crate::tuning::SEQUENCE_STREAMED) that are not in registers. It changes their speed and no bit of
    /// their results.
    ///
    /// # Errors
    /// If the kernels cannot be loaded, which tells it.
    pub fn staged_rows(&self) -> Result<u32> {
        let k = &self.ctx.kernels.f32;
        let forward = self.ctx.staged_rows(&k.lstm_sequence_forward_h128)?;
        Ok(forward.min(self.ctx.staged_rows(&k.lstm_sequence_backward_h128)?))
    }

    /// Bytes of shared memory that a block of the fused kernels can have.
    pub fn fused_bytes(&self) -> usize {
        self.ctx.fused_bytes
    }

    /// What ran, for reports.
    pub fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device: self.ctx.label.clone(),
            name: self.ctx.name.clone(),
            executed: self.ctx.executed(),
            threads: 1,
        }
    }

    /// Microseconds that the device took for what `f` asks of it, by the device's own clock.
    ///
    /// # Errors
    /// What `f` returns, or the driver.
    pub fn time_us(&self, f: impl FnOnce() -> Result<()>) -> Result<f64> {
        let fail = |error| self.ctx.error("timing", error);
        let record = || self.ctx.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(fail);
        let begun = record()?;
        f()?;
        let ended = record()?;
        Ok(f64::from(begun.elapsed_ms(&ended).map_err(fail)?) * 1e3)
    }

    /// `out = activation(x)` element by element: what the kernels' own `exp`, `sigmoid`, `tanh` and `log` give.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the buffers differ in length.
    pub fn activate(&self, activation: Activation, x: &CudaBuffer, out: &mut CudaBuffer) -> Result<()> {
        if x.len() != out.len() {
            return Err(crate::Error::Shape {
                op: "activate",
                what: "out [n]",
                expected: x.len().to_string(),
                found: out.len().to_string(),
            });
        }
        activation::activate(&self.ctx, activation, x.view(), out.view_mut())
    }

    fn scratch(&self, what: &str, len: usize) -> Result<DeviceVec<f32>> {
        DeviceVec::new(&self.ctx, what, len)
    }
}

impl Ops for Cuda {
    type Buf = CudaBuffer;
    type Ids = CudaIds;
    type OwnedBuf = CudaBuffer;
    type OwnedIds = CudaIds;

    fn name(&self) -> String {
        format!("{} {} ({})", self.ctx.label, self.ctx.name, self.ctx.executed())
    }

    fn upload(&self, values: &[f64]) -> Result<CudaBuffer> {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        Ok(CudaBuffer(DeviceVec::from_slice(&self.ctx, "a buffer", &values)?))
    }

    fn upload_ids(&self, ids: &[u32]) -> Result<CudaIds> {
        CudaIds::new(&self.ctx, ids)
    }

    fn download(&self, buf: &CudaBuffer) -> Result<Vec<f64>> {
        Ok(download(&self.ctx, "a buffer", buf.view())?.into_iter().map(f64::from).collect())
    }

    fn synchronize(&self) -> Result<()> {
        self.ctx.wait("waiting for the device")
    }

    fn fill(&self, buf: &mut CudaBuffer, value: f64) -> Result<()> {
        fill::fill(&self.ctx, buf.view_mut(), value as f32)
    }

    fn matmul(&self, d: MatmulDims, a: Matmul<'_, CudaBuffer>) -> Result<()> {
        a.check(d)?;
        gemm::gemm(&self.ctx, d, a.a.view(), a.b.view(), None, a.out.view_mut(), Slices::WHOLE, a.accumulate)
    }

    fn embedding_forward(
        &self,
        d: EmbeddingDims,
        a: EmbeddingForward<'_, CudaBuffer, CudaIds>,
    ) -> Result<()> {
        a.check(d)?;
        let ids = a.ids.below("embedding_forward", "ids [n]", d.v)?;
        embedding::forward(&self.ctx, d, a.table.view(), ids, a.out.view_mut())
    }

    fn embedding_backward(
        &self,
        d: EmbeddingDims,
        a: EmbeddingBackward<'_, CudaBuffer, CudaIds>,
    ) -> Result<()> {
        a.check(d)?;
        let ids = a.ids.below("embedding_backward", "ids [n]", d.v)?;
        embedding::backward(&self.ctx, d, ids, a.dout.view(), a.dtable.view_mut(), true)
    }

    fn lstm_cell_forward(&self, d: CellDims, a: CellForward<'_, CudaBuffer>) -> Result<()> {
        a.check(d)?;
        lstm_cell::forward(
            &self.ctx,
            d,
            Input::Layer { x: a.x.view(), w: a.w.view(), b: a.b.view() },
            a.h_prev.view(),
            a.c_prev.view(),
            a.u.view(),
            a.gates.view_mut(),
            a.h.view_mut(),
            a.c.view_mut(),
        )
    }

    fn lstm_cell_backward(&self, d: CellDims, a: CellBackward<'_, CudaBuffer>) -> Result<()> {
        a.check(d)?;
        let ctx = &self.ctx;
        let CellDims { b: batch, e, h: hidden } = d;
        let columns = 4 * hidden;
        let mut dpre = self.scratch("the gradient by the pre-activations", batch * columns)?;
        lstm_cell::backward(
            ctx,
            d,
            lstm_cell::Backward {
                dpre_next: None,
                u: a.u.view(),
                gates: a.gates.view(),
                c_prev: a.c_prev.view(),
                c: a.c.view(),
                dh: Some(a.dh.view()),
                dh_more: None,
            },
            StateGradient::From(a.dc.view()),
            dpre.view_mut(),
            a.dc_prev.view_mut(),
        )?;
        let dpre = dpre.view();
        let back = |n| MatmulDims { m: batch, k: columns, n, ta: false, tb: true };
        gemm::gemm(ctx, back(e), dpre, a.w.view(), None, a.dx.view_mut(), Slices::WHOLE, false)?;
        gemm::gemm(ctx, back(hidden), dpre, a.u.view(), None, a.dh_prev.view_mut(), Slices::WHOLE, false)?;
        let sum = |m| MatmulDims { m, k: batch, n: columns, ta: true, tb: false };
        gemm::gemm(ctx, sum(e), a.x.view(), dpre, None, a.dw.view_mut(), Slices::WHOLE, true)?;
        gemm::gemm(ctx, sum(hidden), a.h_prev.view(), dpre, None, a.du.view_mut(), Slices::WHOLE, true)?;
        gemm::column_sums(ctx, batch, columns, dpre, a.db.view_mut(), Slices::WHOLE, true)
    }

    fn lstm_sequence_forward(&self, d: SequenceDims, a: SequenceForward<'_, CudaBuffer>) -> Result<()> {
        a.check(d)?;
        lstm_sequence::forward(
            &self.ctx,
            d,
            self.path,
            a.x.view(),
            Some(a.h0.view()),
            Some(a.c0.view()),
            lstm_sequence::Weights { w: a.w.view(), u: a.u.view(), b: a.b.view() },
            lstm_sequence::Trace {
                pre: None,
                gates: a.gates.view_mut(),
                h: a.h.view_mut(),
                c: a.c.view_mut(),
            },
        )
    }

    fn lstm_sequence_backward(&self, d: SequenceDims, a: SequenceBackward<'_, CudaBuffer>) -> Result<()> {
        a.check(d)?;
        let ctx = &self.ctx;
        if d.b == 0 {
            return Ok(());
        }
        if d.h == 0 {
            // Sums of no units.
            return fill::fill(ctx, a.dx.view_mut(), 0.0);
        }
        fn last(gradient: Option<&CudaBuffer>) -> Option<buffer::View<'_, f32>> {
            gradient.map(CudaBuffer::view)
        }
        if d.t == 0 {
            let (dh0, dc0) = (a.dh0.view_mut(), a.dc0.view_mut());
            return lstm_sequence::backward_of_nothing(ctx, d, last(a.dh_last), last(a.dc_last), dh0, dc0);
        }
        let plan = Plan::new(d, self.path)?;
        let mut dpre = self.scratch("the gradient by the pre-activations", a.gates.len())?;
        let mut partials = self.scratch("partial sums of the gradients", plan.extent())?;
        let dh = last(a.dh);
        lstm_sequence::backward(
            ctx,
            d,
            &plan,
            lstm_sequence::Backward {
                x: a.x.view(),
                w: a.w.view(),
                u: a.u.view(),
                gates: a.gates.view(),
                h: a.h.view(),
                c: a.c.view(),
                dh,
                dh_last: last(a.dh_last),
                dc_last: last(a.dc_last),
            },
            lstm_sequence::Gradients {
                dpre: dpre.view_mut(),
                dx: a.dx.view_mut(),
                dh0: Some(a.dh0.view_mut()),
                dc0: a.dc0.view_mut(),
                partials: partials.view_mut(),
            },
        )?;
        let mut offset = 0;
        for out in [a.dw, a.du, a.db] {
            let n = out.len();
            adam::reduce_partials(ctx, plan.partials(partials.view(), offset)?, out.view_mut(), true)?;
            offset += n;
        }
        Ok(())
    }

    fn dense_forward(&self, d: DenseDims, a: DenseForward<'_, CudaBuffer>) -> Result<()> {
        a.check(d)?;
        dense::forward(&self.ctx, d, a.x.view(), a.w.view(), a.b.view(), a.y.view_mut())
    }

    fn dense_backward(&self, d: DenseDims, a: DenseBackward<'_, CudaBuffer>) -> Result<()> {
        a.check(d)?;
        let (x, dy) = (a.x.view(), a.dy.view());
        dense::backward_input(&self.ctx, d, dy, a.w.view(), a.dx.view_mut())?;
        dense::backward_weights(&self.ctx, d, x, dy, a.dw.view_mut(), a.db.view_mut(), true)
    }

    fn cross_entropy_forward(
        &self,
        d: CrossEntropyDims,
        a: CrossEntropyForward<'_, CudaBuffer, CudaIds>,
    ) -> Result<()> {
        a.check(d)?;
        let labels = a.labels.below("cross_entropy_forward", "labels [B]", d.c)?;
        let losses = cross_entropy::Losses {
            labels,
            class_weights: a.class_weights.map(|w| w.view()),
            loss: a.loss.view_mut(),
            hits: a.hits.view_mut(),
        };
        cross_entropy::forward(&self.ctx, d, a.logits.view(), a.probs.view_mut(), Some(losses))
    }

    fn cross_entropy_backward(
        &self,
        d: CrossEntropyDims,
        a: CrossEntropyBackward<'_, CudaBuffer, CudaIds>,
    ) -> Result<()> {
        a.check(d)?;
        let labels = a.labels.below("cross_entropy_backward", "labels [B]", d.c)?;
        cross_entropy::backward(
            &self.ctx,
            d,
            a.probs.view(),
            labels,
            a.class_weights.map(|w| w.view()),
            None,
            a.dlogits.view_mut(),
        )
    }

    fn adam(&self, config: &AdamConfig, step: &StepState, a: Adam<'_, CudaBuffer>) -> Result<()> {
        a.check(step)?;
        let ctx = &self.ctx;
        let steps = DeviceVec::from_slice(ctx, "the step", &[steps::Step::new(config, step)])?;
        let mut cursor = DeviceVec::<u32>::new(ctx, "the step's number", 1)?;
        clear(ctx, "the step's number", cursor.view_mut())?;
        let at = adam::At { steps: steps.view(), cursor: cursor.view() };
        let grads = a.grads.view();
        let clip = if step.clips() { Some(Clip::new(ctx)?) } else { None };
        let scale = match clip {
            Some(mut clip) => {
                clip.scale(ctx, grads, at, None)?;
                Some(clip)
            }
            None => None,
        };
        let scale = scale.as_ref().map(|clip| clip.scale.view());
        let state = adam::State { params: a.params.view_mut(), m: a.m.view_mut(), v: a.v.view_mut() };
        adam::adam::<f32>(ctx, config, at, scale, state, grads, None)
    }
}

/// What clipping computes on the way.
#[derive(Debug)]
struct Clip {
    /// `[NORM_BLOCKS]`
    sums: DeviceVec<f64>,
    /// One number.
    scale: DeviceVec<f64>,
}

impl Clip {
    fn new(ctx: &Context) -> Result<Self> {
        let sums = DeviceVec::new(ctx, "the gradient's norm", crate::tuning::NORM_BLOCKS as usize)?;
        Ok(Self { sums, scale: DeviceVec::new(ctx, "the gradient's scale", 1)? })
    }

    /// Computes the factor for `grads` at the step at hand; of f16 with the loss' scale.
    fn scale(
        &mut self,
        ctx: &Context,
        grads: buffer::View<'_, f32>,
        at: adam::At<'_>,
        scaling: Option<buffer::View<'_, half::Scaling>>,
    ) -> Result<()> {
        adam::gradient_norm(ctx, grads, &mut self.sums.view_mut())?;
        adam::clip_scale(ctx, self.sums.view(), at, scaling, self.scale.view_mut())
    }
}
