//! The activations and gradients of a batch, and the passes that go through them an operation a kernel.

use super::super::batch::{Rows, gather};
use super::super::buffer::{DeviceVec, Ids, View, ViewMut};
use super::super::context::Context;
use super::super::cross_entropy::{self, Losses};
use super::super::half::{FLAGS, Scaling, Stored};
use super::super::lstm_sequence::{self, Plan, Trace, Weights};
use super::super::path::PathChoice;
use super::super::{adam, dense, embedding, fill, fused};
use super::places::Places;
use crate::backend::{CrossEntropyDims, DenseDims, EmbeddingDims, Precision, SequenceDims};
use crate::error::{Error, Result};
use crate::model::{Cell, ModelConfig};

/// An array that grows to the largest batch seen.
#[derive(Debug)]
pub(super) struct Growing<T>(Option<DeviceVec<T>>);

impl<T> Default for Growing<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: bytemuck::Pod> Growing<T> {
    pub(super) fn fits(&self, n: usize) -> bool {
        self.0.as_ref().is_some_and(|array| array.len() >= n)
    }

    /// Makes room for `n` elements. The old array goes first, so that both need not fit.
    pub(super) fn fit(&mut self, ctx: &Context, what: &str, n: usize) -> Result<()> {
        if !self.fits(n) {
            self.0 = None;
            self.0 = Some(DeviceVec::new(ctx, what, n)?);
        }
        Ok(())
    }

    fn missing() -> Error {
        Error::Failed("a training step without room for its batch; please report this".into())
    }

    pub(super) fn front(&self, n: usize) -> Result<View<'_, T>> {
        self.0.as_ref().ok_or_else(Self::missing)?.front(n)
    }

    pub(super) fn front_mut(&mut self, n: usize) -> Result<ViewMut<'_, T>> {
        self.0.as_mut().ok_or_else(Self::missing)?.front_mut(n)
    }
}

/// The activations and gradients of a batch; of a smaller one, the front of each array is used.
#[derive(Debug, Default)]
pub(super) struct Workspace<S> {
    /// What the layer's kernels are chosen by.
    pub(super) path: PathChoice,
    /// `[T,B]`
    pub(super) ids: Growing<u32>,
    /// `[B]`
    pub(super) labels: Growing<u32>,
    /// `[T,B,E]`
    pub(super) embedded: Growing<S>,
    /// `[T,B,4H]`, where gates are stored in 16 bits: what they are computed from.
    pub(super) pre: Growing<f32>,
    /// `[T,B,4H]`
    pub(super) gates: Growing<S>,
    /// `[T+1,B,H]`
    pub(super) h: Growing<S>,
    /// `[T+1,B,H]`
    pub(super) c: Growing<f32>,
    /// `[B,C]`
    pub(super) logits: Growing<f32>,
    /// `[B,C]`
    pub(super) probs: Growing<f32>,
    /// `[B]`
    pub(super) loss: Growing<f32>,
    /// `[B]`
    pub(super) hits: Growing<f32>,
    /// `[B,C]`
    pub(super) dlogits: Growing<f32>,
    /// `[B,H]`
    pub(super) dh_last: Growing<f32>,
    /// `[T,B,4H]`
    pub(super) dpre: Growing<S>,
    /// `[T,B,E]`
    pub(super) dembedded: Growing<f32>,
    /// `[B,H]`
    pub(super) dc0: Growing<f32>,
    /// The plan's.
    pub(super) partials: Growing<f32>,
    /// `[B,H]`, of the fused path.
    pub(super) h_last: Growing<S>,
    /// `[B,warps]` of the fused path, `[FLAGS]` of the others, in f16.
    pub(super) finite: Growing<u32>,
}

/// The numbers that every array's size is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dims {
    pub(super) rows: usize,
    pub(super) t: usize,
    pub(super) config: ModelConfig,
}

impl Dims {
    /// A product that must fit memory.
    pub(super) fn product(&self, what: &str, dims: &[usize]) -> Result<usize> {
        dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d)).ok_or_else(|| {
            Error::Failed(format!(
                "{what} of a batch, {dims:?} numbers, does not fit into memory; use a smaller batch"
            ))
        })
    }

    pub(super) fn tokens(&self) -> usize {
        self.rows.saturating_mul(self.t)
    }

    /// Pairs of a step's tokens: of each row its ids, and its label.
    pub(super) fn pairs(&self) -> usize {
        self.rows.saturating_mul(self.t.saturating_add(1))
    }

    pub(super) fn states(&self) -> usize {
        self.t.saturating_add(1).saturating_mul(self.rows).saturating_mul(self.config.hidden)
    }

    pub(super) fn embedding(&self) -> EmbeddingDims {
        EmbeddingDims { n: self.tokens(), v: self.config.vocab, e: self.config.embed }
    }

    pub(super) fn sequence(&self) -> SequenceDims {
        SequenceDims { t: self.t, b: self.rows, e: self.config.embed, h: self.config.hidden }
    }

    pub(super) fn dense(&self) -> DenseDims {
        DenseDims { b: self.rows, inputs: self.config.hidden, outputs: self.config.classes }
    }

    pub(super) fn cross_entropy(&self) -> CrossEntropyDims {
        CrossEntropyDims { b: self.rows, c: self.config.classes }
    }

    /// Numbers of activations a row: in f32 four gates, h and c of a unit; else twice the gates, half as wide the second time.
    pub(super) fn numbers_a_row<S: Stored>(&self) -> usize {
        let ModelConfig { embed, hidden, .. } = self.config;
        let of_a_unit = if S::PRECISION == Precision::F32 { 6 } else { 8 };
        self.t.saturating_add(1).saturating_mul(embed.saturating_add(hidden.saturating_mul(of_a_unit)))
    }
}

/// What is wanted of a forward pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want<'a> {
    /// Probabilities alone; there are no labels.
    Probabilities,
    /// Probabilities, and each row's loss, times its class' weight of `[C]`, and hit.
    Losses { class_weights: Option<View<'a, f32>> },
}

impl<S: Stored> Workspace<S> {
    pub(super) fn new(path: PathChoice) -> Self {
        Self { path, ..Self::default() }
    }

    /// Whether what gates are computed from has an array of its own.
    const APART: bool = !matches!(S::PRECISION, Precision::F32);

    /// The arrays that fused steps of up to `d.rows` rows need.
    pub(super) fn fit_fused(&mut self, ctx: &Context, d: &Dims) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (b, t) = (d.rows, d.t);
        let n = |what, dims: &[usize]| d.product(what, dims);
        self.dembedded.fit(ctx, "a batch's gradients by embeddings", n("embedding", &[t, b, e])?)?;
        self.partials.fit(ctx, "the rows' gradients", n("gradients", &[b, fused::stride(&d.config)])?)?;
        self.h_last.fit(ctx, "a batch's last outputs", n("outputs", &[b, h])?)?;
        self.finite.fit(ctx, "a batch's flags", n("flags", &[b, fused::MOST_WARPS])?)?;
        self.dlogits.fit(ctx, "a batch's gradients by logits", n("logits", &[b, c])?)?;
        self.loss.fit(ctx, "a batch's losses", b)?;
        self.hits.fit(ctx, "a batch's hits", b)
    }

    /// Whether [`Self::fit_fused`] would find everything there.
    pub(super) fn fits_fused(&self, d: &Dims) -> bool {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let b = d.rows;
        self.dembedded.fits(d.tokens().saturating_mul(e))
            && self.partials.fits(b.saturating_mul(fused::stride(&d.config)))
            && self.h_last.fits(b.saturating_mul(h))
            && self.finite.fits(b.saturating_mul(fused::MOST_WARPS))
            && self.dlogits.fits(b.saturating_mul(c))
            && self.loss.fits(b)
            && self.hits.fits(b)
    }

    /// What fused steps of at most `d.rows` rows leave, and in f16 their flags; [`Self::fit_fused`] has made room.
    pub(super) fn fused_gradients(
        &mut self,
        d: &Dims,
    ) -> Result<(fused::Gradients<'_, S>, ViewMut<'_, u32>)> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let extent = d.rows.saturating_mul(fused::stride(&d.config));
        let gradients = fused::Gradients {
            dx: self.dembedded.front_mut(d.tokens().saturating_mul(e))?,
            partials: self.partials.front_mut(extent)?,
            h_last: self.h_last.front_mut(d.rows * h)?,
            dlogits: self.dlogits.front_mut(d.rows * c)?,
            loss: self.loss.front_mut(d.rows)?,
            hits: self.hits.front_mut(d.rows)?,
        };
        Ok((gradients, self.finite.front_mut(d.rows.saturating_mul(fused::MOST_WARPS))?))
    }

    /// The arrays and sizes that a pass of these dimensions needs.
    pub(super) fn fit(&mut self, ctx: &Context, d: &Dims, plan: Option<&Plan>) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (b, t) = (d.rows, d.t);
        let states = t.saturating_add(1);
        let n = |what, dims: &[usize]| d.product(what, dims);
        self.ids.fit(ctx, "a batch's ids", n("ids", &[t, b])?)?;
        self.labels.fit(ctx, "a batch's labels", b)?;
        self.embedded.fit(ctx, "a batch's embedding", n("embedding", &[t, b, e])?)?;
        if Self::APART {
            self.pre.fit(ctx, "a batch's pre-activations", n("gates", &[t, b, 4, h])?)?;
        }
        self.gates.fit(ctx, "a batch's gates", n("gates", &[t, b, 4, h])?)?;
        self.h.fit(ctx, "a batch's outputs", n("outputs", &[states, b, h])?)?;
        self.c.fit(ctx, "a batch's states", n("states", &[states, b, h])?)?;
        self.logits.fit(ctx, "a batch's logits", n("logits", &[b, c])?)?;
        self.probs.fit(ctx, "a batch's probabilities", n("probabilities", &[b, c])?)?;
        self.loss.fit(ctx, "a batch's losses", b)?;
        self.hits.fit(ctx, "a batch's hits", b)?;
        let Some(plan) = plan else { return Ok(()) };
        self.dlogits.fit(ctx, "a batch's gradients by logits", n("logits", &[b, c])?)?;
        self.dh_last.fit(ctx, "a batch's gradients by outputs", n("outputs", &[b, h])?)?;
        self.dpre.fit(ctx, "a batch's gradients by pre-activations", n("gates", &[t, b, 4, h])?)?;
        self.dembedded.fit(ctx, "a batch's gradients by embeddings", n("embedding", &[t, b, e])?)?;
        self.dc0.fit(ctx, "a batch's gradients by states", n("states", &[b, h])?)?;
        self.finite.fit(ctx, "a batch's flags", FLAGS)?;
        self.partials.fit(ctx, "partial sums of the gradients", plan.extent())
    }

    /// Whether [`Self::fit`] would find everything there.
    pub(super) fn fits(&self, d: &Dims, plan: Option<&Plan>) -> bool {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (b, n) = (d.rows, d.tokens());
        let gates = n.saturating_mul(4).saturating_mul(h);
        let forward = self.ids.fits(n)
            && self.labels.fits(b)
            && self.embedded.fits(n.saturating_mul(e))
            && (!Self::APART || self.pre.fits(gates))
            && self.gates.fits(gates)
            && self.h.fits(d.states())
            && self.c.fits(d.states())
            && self.logits.fits(b.saturating_mul(c))
            && self.probs.fits(b.saturating_mul(c))
            && self.loss.fits(b)
            && self.hits.fits(b);
        forward
            && plan.is_none_or(|plan| {
                self.dlogits.fits(b.saturating_mul(c))
                    && self.dh_last.fits(b.saturating_mul(h))
                    && self.dpre.fits(gates)
                    && self.dembedded.fits(n.saturating_mul(e))
                    && self.dc0.fits(b.saturating_mul(h))
                    && self.finite.fits(FLAGS)
                    && self.partials.fits(plan.extent())
            })
    }

    /// Gathers the rows' ids, and their labels if they are wanted.
    pub(super) fn gather(
        &mut self,
        ctx: &Context,
        d: &Dims,
        x: View<'_, u32>,
        y: Option<View<'_, u32>>,
        from: Rows<'_>,
    ) -> Result<()> {
        let x = Ids { view: x, below: d.config.vocab };
        let y = y.map(|view| Ids { view, below: d.config.classes });
        let labels = self.labels.front_mut(d.rows)?;
        gather(ctx, x, y, from, d.rows, d.t, self.ids.front_mut(d.tokens())?, Some(labels))
    }

    /// From the gathered ids to probabilities, and losses.
    pub(super) fn forward(
        &mut self,
        ctx: &Context,
        d: &Dims,
        a: &fused::Weights<'_, S>,
        want: Want<'_>,
    ) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (n, state) = (d.tokens(), d.rows * h);
        embedding::forward(
            ctx,
            d.embedding(),
            a.table,
            Ids { view: self.ids.front(n)?, below: d.config.vocab },
            self.embedded.front_mut(n * e)?,
        )?;
        let pre = if Self::APART { Some(self.pre.front_mut(n * 4 * h)?) } else { None };
        match d.config.cell {
            Cell::Lstm => lstm_sequence::forward(
                ctx,
                d.sequence(),
                self.path,
                self.embedded.front(n * e)?,
                None,
                None,
                Weights { w: a.w, u: a.u, b: a.b },
                Trace {
                    pre,
                    gates: self.gates.front_mut(n * 4 * h)?,
                    h: self.h.front_mut(d.states())?,
                    c: self.c.front_mut(d.states())?,
                },
            )?,
        }
        let last = self.h.front(d.states())?.part(d.t * state..d.states())?;
        dense::forward(ctx, d.dense(), last, a.dense_w, a.dense_b, self.logits.front_mut(d.rows * c)?)?;
        let losses = match want {
            Want::Probabilities => None,
            Want::Losses { class_weights } => Some(Losses {
                labels: Ids { view: self.labels.front(d.rows)?, below: c },
                class_weights,
                loss: self.loss.front_mut(d.rows)?,
                hits: self.hits.front_mut(d.rows)?,
            }),
        };
        let probs = self.probs.front_mut(d.rows * c)?;
        cross_entropy::forward(ctx, d.cross_entropy(), self.logits.front(d.rows * c)?, probs, losses)
    }

    /// From the losses to what the parameters' gradients are summed of: `dlogits`, `dembedded` and the plan's partial sums; with
    /// `scaling` those of the scaled loss.
    pub(super) fn backward(
        &mut self,
        ctx: &Context,
        d: &Dims,
        plan: &Plan,
        a: &fused::Weights<'_, S>,
        class_weights: Option<View<'_, f32>>,
        scaling: Option<View<'_, Scaling>>,
    ) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (n, state) = (d.tokens(), d.rows * h);
        let labels = Ids { view: self.labels.front(d.rows)?, below: c };
        let probs = self.probs.front(d.rows * c)?;
        let dlogits = self.dlogits.front_mut(d.rows * c)?;
        cross_entropy::backward(ctx, d.cross_entropy(), probs, labels, class_weights, scaling, dlogits)?;

        let dy = self.dlogits.front(d.rows * c)?;
        let dh_last = self.dh_last.front_mut(state)?;
        dense::backward_input(ctx, d.dense(), dy, a.dense_w, dh_last)?;

        match d.config.cell {
            Cell::Lstm => lstm_sequence::backward(
                ctx,
                d.sequence(),
                plan,
                lstm_sequence::Backward {
                    x: self.embedded.front(n * e)?,
                    w: a.w,
                    u: a.u,
                    gates: self.gates.front(n * 4 * h)?,
                    h: self.h.front(d.states())?,
                    c: self.c.front(d.states())?,
                    dh: None,
                    dh_last: Some(self.dh_last.front(state)?),
                    dc_last: None,
                },
                lstm_sequence::Gradients {
                    dpre: self.dpre.front_mut(n * 4 * h)?,
                    dx: self.dembedded.front_mut(n * e)?,
                    dh0: None,
                    dc0: self.dc0.front_mut(state)?,
                    partials: self.partials.front_mut(plan.extent())?,
                },
            ),
        }
    }

    /// The gradients in an arena, all of it assigned.
    pub(super) fn gradients(
        &mut self,
        ctx: &Context,
        d: &Dims,
        plan: &Plan,
        mut grads: ViewMut<'_, f32>,
        places: &Places,
    ) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (n, state) = (d.tokens(), d.rows * h);
        let dy = self.dlogits.front(d.rows * c)?;
        let last = self.h.front(d.states())?.part(d.t * state..d.states())?;
        let head = places.dense_w.start..places.dense_b.end;
        let (dw, db) = grads.again().part(head)?.split(places.dense_w.len())?;
        dense::backward_weights(ctx, d.dense(), last, dy, dw, db, false)?;
        let layer = grads.again().part(places.layer.clone())?;
        adam::reduce_partials(ctx, plan.partials(self.partials.front(plan.extent())?, 0)?, layer, false)?;
        let gap = grads.again().part(places.embeddings.end..places.layer.start)?;
        fill::fill(ctx, gap, 0.0)?;
        let dtable = grads.part(places.embeddings.clone())?;
        let dout = self.dembedded.front(n * e)?;
        let ids = Ids { view: self.ids.front(n)?, below: d.config.vocab };
        embedding::backward(ctx, d.embedding(), ids, dout, dtable, false)
    }
}
