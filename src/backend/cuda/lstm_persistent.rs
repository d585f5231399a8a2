//! Launches the persistent kernels: a whole sequence in one launch, by blocks that wait for each other.

use super::buffer::{View, ViewMut, set_bytes};
use super::context::Context;
use super::half::Stored;
use super::kernels::{Kernel, Typed};
use super::launch::Call;
use super::lstm_sequence::{Backward, with_sums};
use super::path::Path;
use crate::backend::SequenceDims;
use crate::error::Result;
use crate::tuning::PERSISTENT_UNITS;

/// Every byte of a number that has not been written, as the kernels know it.
const UNWRITTEN: u8 = 0xff;

/// How a batch is divided among blocks that a device has all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    padded: u32,
    /// Blocks of a group.
    blocks: u32,
    /// Rows of a group.
    rows: u32,
    groups: u32,
}

impl Groups {
    /// The groups for this path and shape; None if the path is another, or the device too small or not able to launch blocks
    /// together.
    pub(super) fn of(ctx: &Context, path: Path, d: SequenceDims) -> Option<Self> {
        let Path::Persistent { padded } = path else { return None };
        if ctx.cooperative { Self::within(ctx.multiprocessors, padded, d) } else { None }
    }

    /// With a block on each of so many multiprocessors: a block of these kernels fits every multiprocessor there is (by their
    /// launch bounds, and less than 48 KiB of shared memory).
    fn within(multiprocessors: u32, padded: u32, d: SequenceDims) -> Option<Self> {
        let blocks = u32::try_from(d.h.div_ceil(PERSISTENT_UNITS as usize)).ok()?;
        let batch = u32::try_from(d.b).ok()?;
        let most = multiprocessors.checked_div(blocks)?;
        // A tile has a row for every four threads a unit; groups of less than a tile would leave threads idle.
        let tile = warps(padded) * 32 / (4 * PERSISTENT_UNITS);
        let wanted = batch.div_ceil(tile);
        let groups = most.min(wanted);
        if groups == 0 {
            return None;
        }
        let rows = batch.div_ceil(groups);
        Some(Self { padded, blocks, rows, groups: batch.div_ceil(rows) })
    }

    fn kernel<'k>(&self, k: &'k Typed, forward: bool) -> &'k Kernel {
        match (self.padded, forward) {
            (128, true) => &k.lstm_persistent_forward_h128,
            (256, true) => &k.lstm_persistent_forward_h256,
            (_, true) => &k.lstm_persistent_forward_h512,
            (128, false) => &k.lstm_persistent_backward_h128,
            (256, false) => &k.lstm_persistent_backward_h256,
            (_, false) => &k.lstm_persistent_backward_h512,
        }
    }

    fn grid(&self) -> [u32; 3] {
        [self.blocks, self.groups, 1]
    }
}

/// Warps of a block: one for every 32 units.
const fn warps(padded: u32) -> u32 {
    padded / 32
}

/// The most hidden units of a device's persistent kernels.
pub(super) fn most_units(ctx: &Context) -> usize {
    if ctx.cooperative {
        (ctx.multiprocessors as usize).saturating_mul(PERSISTENT_UNITS as usize).min(512)
    } else {
        0
    }
}

/// Assigns `gates` `[T,B,4H]`, `h` and `c` `[T+1,B,H]` but for their first rows, the initial state. `pre` `[T,B,4H]` is
/// `x·W + b`; in f32 None: what `gates` holds.
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn forward<S: Stored>(
    ctx: &Context,
    groups: Groups,
    d: SequenceDims,
    u: View<'_, S>,
    pre: Option<ViewMut<'_, f32>>,
    mut gates: ViewMut<'_, S>,
    mut h: ViewMut<'_, S>,
    mut c: ViewMut<'_, f32>,
) -> Result<()> {
    let SequenceDims { t, b: batch, h: hidden, .. } = d;
    let (columns, rows, states) = (hidden.saturating_mul(4), t.saturating_mul(batch), t.saturating_add(1));
    let state = batch.saturating_mul(hidden);
    set_bytes(ctx, "h", h.again().part(state..state.saturating_mul(states))?, UNWRITTEN)?;
    let call =
        Call::new(ctx, groups.kernel(S::of(&ctx.kernels), true)).input("u [H,4H]", u, &[hidden, columns])?;
    let call = with_sums(call, pre.as_ref(), &mut gates, &[rows, columns])?
        .output("gates [T,B,4H]", &mut gates, &[rows, columns])?
        .output("h [T+1,B,H]", &mut h, &[states, batch, hidden])?
        .output("c [T+1,B,H]", &mut c, &[states, batch, hidden])?
        .size("T", t)?
        .size("B", batch)?
        .size("H", hidden)?
        .u32(groups.rows);
    // SAFETY: the parameters are `u, pre, gates, h, c, t, batch, hidden, rows`, each array of the size that was checked;
    // `pre` may be `gates`: an element is read before the same thread writes it; the kernel touches rows below B and units
    // below H, which it is wide enough for (`path`).
    unsafe { call.launch_together(groups.grid(), 32 * warps(groups.padded), 0) }
}

/// Assigns `dpre` `[T,B,4H]` and `dc0` `[B,H]`.
pub(super) fn backward<S: Stored>(
    ctx: &Context,
    groups: Groups,
    d: SequenceDims,
    a: Backward<'_, S>,
    mut dpre: ViewMut<'_, S>,
    mut dc0: ViewMut<'_, f32>,
) -> Result<()> {
    let SequenceDims { t, b: batch, h: hidden, .. } = d;
    let (columns, rows, states) = (hidden.saturating_mul(4), t.saturating_mul(batch), t.saturating_add(1));
    set_bytes(ctx, "dpre", dpre.again().part(0..rows.saturating_mul(columns))?, UNWRITTEN)?;
    let call = Call::new(ctx, groups.kernel(S::of(&ctx.kernels), false))
        .input_fours("u [H,4H]", a.u, &[hidden, columns])?
        .input("gates [T,B,4H]", a.gates, &[rows, columns])?
        .input("c [T+1,B,H]", a.c, &[states, batch, hidden])?
        .input_or_null("dh [T,B,H]", a.dh, &[rows, hidden])?
        .input_or_null("dh_last [B,H]", a.dh_last, &[batch, hidden])?
        .input_or_null("dc_last [B,H]", a.dc_last, &[batch, hidden])?
        .output_fours("dpre [T,B,4H]", &mut dpre, &[rows, columns])?
        .output("dc0 [B,H]", &mut dc0, &[batch, hidden])?
        .size("T", t)?
        .size("B", batch)?
        .size("H", hidden)?
        .u32(groups.rows);
    // SAFETY: the parameters are `u, gates, c, dh, dh_last, dc_last, dpre, dc0, t, batch, hidden, rows`, each array of the
    // size that was checked; the kernel touches rows below B and units below H, which it is wide enough for (`path`), and
    // reads `u` and `dpre` by fours, which 4H is a multiple of.
    unsafe { call.launch_together(groups.grid(), 32 * warps(groups.padded), 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(multiprocessors: u32, padded: u32, b: usize, h: usize) -> Option<(u32, u32, u32)> {
        let d = SequenceDims { t: 1, b, e: 1, h };
        Groups::within(multiprocessors, padded, d).map(|g| (g.blocks, g.groups, g.rows))
    }

    #[test]
    fn every_row_has_a_group_and_every_block_a_multiprocessor() {
        assert_eq!(groups(132, 256, 32, 256), Some((16, 8, 4)));
        assert_eq!(groups(132, 128, 32, 128), Some((8, 16, 2)));
        assert_eq!(groups(132, 512, 32, 512), Some((32, 4, 8)));
        assert_eq!(groups(132, 256, 1024, 256), Some((16, 8, 128)));
        assert_eq!(groups(132, 256, 1, 129), Some((9, 1, 1)));
        assert_eq!(groups(15, 256, 32, 256), None);
        for multiprocessors in 1..150 {
            for b in 1..70 {
                for (padded, h) in [(128, 1), (128, 128), (256, 129), (256, 256), (512, 257), (512, 512)] {
                    let Some((blocks, groups, rows)) = groups(multiprocessors, padded, b, h) else {
                        assert!(multiprocessors < (h as u32).div_ceil(PERSISTENT_UNITS));
                        continue;
                    };
                    assert!(blocks * groups <= multiprocessors);
                    assert!(groups * rows >= b as u32 && (groups - 1) * rows < b as u32);
                }
            }
        }
    }
}
