//! Metrics on their way to the host, while the device goes on.

use super::super::buffer::{View, pinned_to_read};
use super::super::context::Context;
use super::super::cross_entropy::MetricSums;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use cudarc::driver::{CudaEvent, PinnedHostSlice, result};
use std::collections::VecDeque;

/// Reports that may be on their way.
const REPORTS: usize = 4;

/// Metrics on their way to the host.
#[derive(Debug)]
pub(super) struct Reports {
    /// Room for [`REPORTS`] of them.
    memory: PinnedHostSlice<u8>,
    /// One for each place: after it, the report has arrived.
    arrived: Vec<CudaEvent>,
    /// Places whose reports have been asked for and not been read, oldest first.
    pending: VecDeque<usize>,
    next: usize,
    /// The newest report read.
    latest: Metrics,
}

impl Reports {
    pub(super) fn new(ctx: &Context) -> Result<Self> {
        let memory = pinned_to_read(ctx, REPORTS * size_of::<MetricSums>())?;
        let event = |_| ctx.cuda.new_event(None).map_err(|e| ctx.error("making an event", e));
        let arrived = (0..REPORTS).map(event).collect::<Result<_>>()?;
        Ok(Self { memory, arrived, pending: VecDeque::new(), next: 0, latest: Metrics::default() })
    }

    /// Forgets what is on its way and starts from `metrics`.
    pub(super) fn restart(&mut self, metrics: Metrics) {
        self.pending.clear();
        self.latest = metrics;
    }

    /// Asks for a report of `sums` as they will be once everything asked for so far is done.
    pub(super) fn ask(&mut self, ctx: &Context, sums: View<'_, MetricSums>) -> Result<()> {
        let fail = |error| ctx.error("asking for metrics", error);
        let place = self.next;
        self.next = (place + 1) % REPORTS;
        // A report that is overwritten before it was read is an older one than this.
        self.pending.retain(|&p| p != place);
        let size = size_of::<MetricSums>();
        let to = &mut self.memory.as_mut_slice().map_err(fail)?[place * size..(place + 1) * size];
        let Some(from) = sums.address(ctx, 1) else {
            return Err(Error::Failed("metrics on another device; please report this".into()));
        };
        ctx.cuda.bind_to_thread().map_err(fail)?;
        // SAFETY: `from` holds one `MetricSums`; the place it goes to is not read before its event has come, and
        // lives as long as the event.
        unsafe { result::memcpy_dtoh_async(to, from, ctx.stream.cu_stream()) }.map_err(fail)?;
        self.arrived[place].record(&ctx.stream).map_err(fail)?;
        self.pending.push_back(place);
        Ok(())
    }

    /// The newest report that has arrived; with `wait`, the newest that was asked for.
    pub(super) fn read(&mut self, ctx: &Context, doing: &str, wait: bool) -> Result<Metrics> {
        let fail = |error| ctx.error(doing, error);
        while let Some(&place) = self.pending.front() {
            if wait {
                self.arrived[place].synchronize().map_err(fail)?;
            } else if !self.arrived[place].try_is_complete().map_err(fail)? {
                break;
            }
            self.pending.pop_front();
            let size = size_of::<MetricSums>();
            let bytes = &self.memory.as_slice().map_err(fail)?[place * size..(place + 1) * size];
            self.latest = bytemuck::pod_read_unaligned::<MetricSums>(bytes).into();
        }
        Ok(self.latest)
    }
}
