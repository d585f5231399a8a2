//! A training step as a CUDA graph: recorded once, replayed for every batch of its size.

use super::context::Context;
use crate::error::{Error, Result};
use cudarc::driver::{CudaGraph, sys};

/// A recorded sequence of launches. It refers to the arrays that it was recorded with by address: whoever owns it drops
/// it before them.
pub(super) struct Graph(CudaGraph);

// SAFETY: a graph is only used through `&mut` of the engine that owns it, so from one thread at a time, which is what
// the driver asks for.
unsafe impl Send for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Graph").finish_non_exhaustive()
    }
}

impl Graph {
    /// Records what `body` launches on the context's stream, without doing it: once more than there is reason to load kernels,
    /// which a recording does not allow.
    pub(super) fn record(ctx: &Context, mut body: impl FnMut() -> Result<()>) -> Result<Self> {
        loop {
            ctx.loader.begin_recording();
            let recorded = Self::capture(ctx, &mut body);
            let lacking = ctx.loader.end_recording();
            if lacking.is_empty() {
                return recorded;
            }
            drop(recorded);
            for kernel in &lacking {
                ctx.function(kernel)?;
            }
        }
    }

    fn capture(ctx: &Context, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        let fail = |error| ctx.error("recording a training step", error);
        // Other threads' calls do not end this recording.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        ctx.stream.begin_capture(mode).map_err(fail)?;
        let recorded = body();
        // Whatever happened, the stream must not stay in recording.
        let graph = ctx.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        recorded?;
        match graph.map_err(fail)? {
            Some(graph) => Ok(Self(graph)),
            None => {
                Err(Error::device(&ctx.label, "recording a training step gave no graph; try --device cpu"))
            }
        }
    }

    /// Does what was recorded, after everything asked for before.
    pub(super) fn launch(&self, ctx: &Context) -> Result<()> {
        self.0.launch().map_err(|error| ctx.error("launching a training step", error))
    }
}
