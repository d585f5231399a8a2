//! Launches the kernels that take a batch row through everything: `fused_step` and `fused_forward`.

use super::buffer::{Ids, View, ViewMut};
use super::context::Context;
use super::half::{Scaling, Stored};
use super::kernels::{Kernel, Typed};
use super::launch::{Call, size};
use super::steps::{CURSORS, Step};
use super::tokens::Pair;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::tuning::SEQUENCE_PARTIALS;
use std::fmt;

/// Most hidden units of the fused kernels.
const MOST_HIDDEN: usize = 64;
/// Most warps of a block of the training step: eight threads a unit.
pub(super) const MOST_WARPS: usize = 8 * MOST_HIDDEN / 32;

/// Shared memory of a block that every GPU has which the kernels run on (compute capability 7.5 has the least).
const LEAST_SHARED: usize = 64 << 10;

/// A fused kernel's widths, and the shared memory that a block of it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fused {
    /// Hidden units that the kernels are compiled for.
    pub padded: u32,
    /// Inputs that they are compiled for.
    pub inputs: u32,
    /// Bytes of shared memory of a block of the training step.
    pub step_bytes: usize,
    /// Bytes of shared memory of a block of the forward pass alone.
    pub forward_bytes: usize,
}

/// Why a shape has no fused kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfused {
    /// The weights and the sums of their gradients do not fit the registers.
    Registers,
    /// The activations of a row do not fit a block's shared memory: asked, available.
    Shared(usize, usize),
    /// A batch of more rows than there are partial sums.
    Batch(usize),
    /// It was asked for ([`super::PathChoice`]).
    Forbidden,
}

impl fmt::Display for Unfused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfused::Registers => {
                f.write_str("not fused: H > 64, or E > 64 (> 32 where H > 32), does not fit the registers")
            }
            Unfused::Shared(asked, available) => {
                write!(f, "not fused: a row asks for {asked} bytes of shared memory, a block has {available}")
            }
            Unfused::Batch(rows) => {
                write!(f, "not fused: {rows} rows a batch, more than {SEQUENCE_PARTIALS}")
            }
            Unfused::Forbidden => f.write_str("not fused: RECURVE_CUDA_PATH asks for another path"),
        }
    }
}

impl Fused {
    /// The kernels for sequences of `t` steps, whatever shared memory there is.
    ///
    /// # Errors
    /// [`Unfused::Registers`] if there are none.
    pub fn new(config: &ModelConfig, t: usize) -> Result<Self, Unfused> {
        let ModelConfig { embed, hidden, classes, .. } = *config;
        let padded: usize = match hidden {
            1..=32 => 32,
            33..=MOST_HIDDEN => 64,
            _ => return Err(Unfused::Registers),
        };
        let inputs: usize = match (padded, embed) {
            (_, 1..=16) => 16,
            (_, 17..=32) => 32,
            (32, 33..=64) => 64,
            _ => return Err(Unfused::Registers),
        };
        if t == 0 {
            return Err(Unfused::Registers);
        }
        // As `Kept` of fused.cuh lays them out: of each time step gates by rows of 4·(HP + 8) + 4, h, two more numbers a unit,
        // x and a place; h of one step more, a gap of 8 numbers, 16 rows of W, two columns of dense W, two biases and
        // four numbers of the row's loss; the logits and their gradients.
        let of_a_step = 4 * (padded + 8) + 4 + 3 * padded + inputs + 1;
        let tile = 16 * (4 * padded + 4);
        let head = 2 * (padded + 1) + 4;
        let classes = classes.saturating_mul(2);
        let step =
            t.saturating_mul(of_a_step).saturating_add(padded + 8 + tile + head).saturating_add(classes);
        let forward = t.saturating_mul(inputs).saturating_add(2 * padded).saturating_add(classes);
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Self {
            padded: narrow(padded),
            inputs: narrow(inputs),
            step_bytes: step.saturating_mul(4),
            forward_bytes: forward.saturating_mul(4),
        })
    }

    /// This, if a block's training step fits `available` bytes of shared memory; where the sequence's path sums W's
    /// gradient in another order, if it fits what every GPU has: then the path does not depend on the device, nor do the
    /// bits.
    ///
    /// # Errors
    /// [`Unfused::Shared`] if it does not.
    pub fn within(self, available: usize) -> Result<Self, Unfused> {
        let available = if self.inputs > 32 { available.min(LEAST_SHARED) } else { available };
        if self.step_bytes <= available { Ok(self) } else { Err(Unfused::Shared(self.step_bytes, available)) }
    }

    /// This, if a block's forward pass alone fits `available` bytes of shared memory.
    pub(super) fn forward_within(self, available: usize) -> Option<Self> {
        (self.forward_bytes <= available).then_some(self)
    }

    /// Warps of a block of the training step.
    pub(super) fn warps(&self) -> usize {
        self.step_threads() as usize / 32
    }

    /// Threads of a block of the training step: one half walks through time, the other helps.
    pub(super) fn step_threads(&self) -> u32 {
        8 * self.padded
    }

    /// Threads of a block of the forward pass alone.
    fn forward_threads(&self) -> u32 {
        4 * self.padded
    }

    /// The training step and the forward pass alone.
    fn kernels<'k>(&self, k: &'k Typed) -> (&'k Kernel, &'k Kernel) {
        match (self.padded, self.inputs) {
            (32, 16) => (&k.fused_step_h32_e16, &k.fused_forward_h32_e16),
            (32, 32) => (&k.fused_step_h32_e32, &k.fused_forward_h32_e32),
            (32, _) => (&k.fused_step_h32_e64, &k.fused_forward_h32_e64),
            (_, 16) => (&k.fused_step_h64_e16, &k.fused_forward_h64_e16),
            _ => (&k.fused_step_h64_e32, &k.fused_forward_h64_e32),
        }
    }
}

impl fmt::Display for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fused: a row's whole step in one block, {} units and {} inputs wide, {} bytes of shared memory",
            self.padded, self.inputs, self.step_bytes
        )
    }
}

/// All parameters, those that are multiplied stored as `S`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights<'a, S> {
    /// `[V,E]`
    pub(super) table: View<'a, S>,
    /// `[E,4H]`
    pub(super) w: View<'a, S>,
    /// `[H,4H]`
    pub(super) u: View<'a, S>,
    /// `[4H]`
    pub(super) b: View<'a, f32>,
    /// `[H,C]`
    pub(super) dense_w: View<'a, S>,
    /// `[C]`
    pub(super) dense_b: View<'a, f32>,
}

fn push<'c, S>(call: Call<'c>, c: &ModelConfig, a: &Weights<'_, S>) -> Result<Call<'c>> {
    let columns = c.hidden.saturating_mul(4);
    call.input_fours("table [V,E]", a.table, &[c.vocab, c.embed])?
        .input_fours("w [E,4H]", a.w, &[c.embed, columns])?
        .input_fours("u [H,4H]", a.u, &[c.hidden, columns])?
        .input("b [4H]", a.b, &[columns])?
        .input("dense_w [H,C]", a.dense_w, &[c.hidden, c.classes])?
        .input("dense_b [C]", a.dense_b, &[c.classes])
}

/// What a training step writes, for `adam_step`; all of it is assigned for the rows that the step has.
pub(super) struct Gradients<'a, S> {
    /// `[T,B,E]`
    pub(super) dx: ViewMut<'a, f32>,
    /// `[B,stride]`
    pub(super) partials: ViewMut<'a, f32>,
    /// `[B,H]`
    pub(super) h_last: ViewMut<'a, S>,
    /// `[B,C]`
    pub(super) dlogits: ViewMut<'a, f32>,
    /// `[B]`
    pub(super) loss: ViewMut<'a, f32>,
    /// `[B]`
    pub(super) hits: ViewMut<'a, f32>,
}

/// The steps' rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// `[steps,capacity]` of [`sort_tokens`](super::tokens::sort_tokens): ids below V, labels below C.
    pub(super) tokens: View<'a, Pair>,
    /// At least the rows of the largest batch times T + 1.
    pub(super) capacity: usize,
    /// `[C]`: what a row of each class counts; None is 1 for all.
    pub(super) class_weights: Option<View<'a, f32>>,
}

/// Forward and backward of the step at the cursor, which has at most `rows` rows; also tells the step's last kernel which
/// step this is. `scaling`: of f16, the loss' scale, and where to say of each warp of each row whether its gradients are finite.
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn step<S: Stored>(
    ctx: &Context,
    fused: &Fused,
    config: &ModelConfig,
    (rows, t): (usize, usize),
    steps: View<'_, Step>,
    mut cursor: ViewMut<'_, u32>,
    from: Source<'_>,
    weights: Weights<'_, S>,
    to: Gradients<'_, S>,
    scaling: Option<(View<'_, Scaling>, ViewMut<'_, u32>)>,
) -> Result<()> {
    let Gradients { mut dx, mut partials, mut h_last, mut dlogits, mut loss, mut hits } = to;
    let ModelConfig { embed: e, hidden: h, classes: c, .. } = *config;
    let stride = stride(config);
    let call = Call::new(ctx, fused.kernels(S::of(&ctx.kernels)).0)
        .input("steps", steps, &[1])?
        .output("cursor", &mut cursor, &[CURSORS])?
        .input("tokens [steps,capacity]", from.tokens, &[steps.len(), from.capacity])?
        .input_or_null("class_weights [C]", from.class_weights, &[c])?;
    let mut call = push(call, config, &weights)?
        .output("dx [T,B,E]", &mut dx, &[t, rows, e])?
        .output("partials [B,stride]", &mut partials, &[rows, stride])?
        .output("h_last [B,H]", &mut h_last, &[rows, h])?
        .output("dlogits [B,C]", &mut dlogits, &[rows, c])?
        .output("loss [B]", &mut loss, &[rows])?
        .output("hits [B]", &mut hits, &[rows])?
        .size("T", t)?
        .size("E", e)?
        .size("H", h)?
        .size("C", c)?
        .u64(stride as u64)
        .u64(from.capacity as u64);
    if let Some((scaling, mut finite)) = scaling {
        call = call.input("scaling", scaling, &[1])?.output(
            "finite [B,warps]",
            &mut finite,
            &[rows, fused.warps()],
        )?;
    }
    let grid = size("fused_step", "rows", rows)?;
    // SAFETY: the parameters are `steps, cursor, tokens, class_weights, table, w, u, b, dense_w, dense_b, dx, partials, h_last,
    // dlogits, loss, hits, t, e, hidden, classes, stride, capacity`, and of f16 `scaling, finite`. A block below the step's
    // rows, of which there are at most `rows`, has one row of every array: all were checked; the others read their row of the
    // step's tokens, for which there is room. The tokens are those that `sort_tokens` wrote for these steps: ids below V and
    // labels below C, which the engine compared, and places below rows·T. The kernel is wide enough for H and E, and its shared
    // memory is what `Fused::new` counts, allowed when the kernel was loaded.
    unsafe {
        call.launch([grid, 1, 1], fused.step_threads(), size("fused_step", "shared bytes", fused.step_bytes)?)
    }
}

/// Elements of a row's partial sums.
pub(super) fn stride(config: &ModelConfig) -> usize {
    (config.embed + config.hidden + 1).saturating_mul(4).saturating_mul(config.hidden)
}

/// Where the results of a forward pass go.
pub(super) struct Results<'a> {
    /// `[rows,C]`
    pub(super) probs: Option<ViewMut<'a, f32>>,
    /// Labels `[rows]`, losses and hits `[rows]`.
    pub(super) losses: Option<super::cross_entropy::Losses<'a>>,
}

/// Probabilities and losses of `rows` rows of `x` `[rows,T]`, assigned.
pub(super) fn forward<S: Stored>(
    ctx: &Context,
    fused: &Fused,
    config: &ModelConfig,
    (rows, t): (usize, usize),
    x: Ids<'_>,
    weights: Weights<'_, S>,
    to: Results<'_>,
) -> Result<()> {
    let Results { mut probs, losses } = to;
    let ModelConfig { embed: e, hidden: h, classes: c, .. } = *config;
    super::embedding::check_below("fused_forward", x, config.vocab)?;
    let (labels, mut loss, mut hits) = match losses {
        Some(losses) => {
            super::embedding::check_below("fused_forward", losses.labels, c)?;
            (Some(losses.labels.view), Some(losses.loss), Some(losses.hits))
        }
        None => (None, None, None),
    };
    let call = Call::new(ctx, fused.kernels(S::of(&ctx.kernels)).1)
        .input("x [rows,T]", x.view, &[rows, t])?
        .input_or_null("labels [rows]", labels, &[rows])?;
    let call = push(call, config, &weights)?
        .output_or_null("probs [rows,C]", probs.as_mut(), &[rows, c])?
        .output_or_null("loss [rows]", loss.as_mut(), &[rows])?
        .output_or_null("hits [rows]", hits.as_mut(), &[rows])?
        .size("rows", rows)?
        .size("T", t)?
        .size("E", e)?
        .size("H", h)?
        .size("C", c)?;
    // As many blocks as the device may hold at a time, each of which keeps its weights for many rows.
    let grid = size("fused_forward", "rows", rows)?
        .min(ctx.multiprocessors.saturating_mul(2048 / fused.forward_threads()));
    let bytes = size("fused_forward", "shared bytes", fused.forward_bytes)?;
    // SAFETY: the parameters are `data, labels, table, w, u, b, dense_w, dense_b, probs, loss, hits, rows, t, e, hidden,
    // classes`; the blocks have rows below `rows` of every array: all were checked, ids and labels compared with V and C.
    // Without labels `loss` and `hits` are null too. Widths and shared memory as in `step`.
    unsafe { call.launch([grid, 1, 1], fused.forward_threads(), bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(embed: usize, hidden: usize, classes: usize, t: usize) -> Result<Fused, Unfused> {
        Fused::new(&ModelConfig { embed, hidden, classes, ..ModelConfig::default() }, t)
    }

    #[test]
    fn the_kernel_is_the_narrowest_that_fits_the_registers() {
        for (embed, hidden, expected) in [
            (1, 1, Some((32, 16))),
            (16, 32, Some((32, 16))),
            (17, 32, Some((32, 32))),
            (33, 32, Some((32, 64))),
            (64, 7, Some((32, 64))),
            (65, 7, None),
            (16, 33, Some((64, 16))),
            (32, 64, Some((64, 32))),
            (33, 64, None),
            (16, 65, None),
        ] {
            let found = shape(embed, hidden, 2, 5).ok().map(|f| (f.padded, f.inputs));
            assert_eq!(found, expected, "{embed} inputs, {hidden} units");
        }
    }

    #[test]
    fn shared_memory_is_what_a_row_keeps() {
        let fused = shape(16, 32, 2, 32).unwrap();
        assert_eq!(fused.step_bytes, 4 * (32 * (164 + 3 * 32 + 16 + 1) + 32 + 8 + 16 * 132 + 70 + 4));
        assert_eq!(fused.within(30_000), Err(Unfused::Shared(fused.step_bytes, 30_000)));
        assert_eq!(fused.within(fused.step_bytes), Ok(fused));
        assert_eq!(
            shape(16, 32, 2, 1).unwrap().step_bytes,
            4 * (164 + 3 * 32 + 16 + 1 + 32 + 8 + 16 * 132 + 70 + 4)
        );
    }
}
