//! What every operation takes: a dimension struct, a struct of named arguments, and the one shape check at the
//! boundary. Inside a back end shapes hold and nothing checks them again.
//!
//! The argument structs are generic over the buffer types, so that host slices (`S = [T]`, `I = [u32]`) and device
//! buffers (`S = CudaBuffer`, …) go through the same checks. All arrays are dense and row-major.
//!
//! | letter | dimension |
//! | --- | --- |
//! | `B` | batch rows |
//! | `T` | time steps |
//! | `E` | embedding width, or the input width of a sequence |
//! | `H` | hidden units |
//! | `V` | vocabulary rows |
//! | `C` | classes |

use crate::error::{Error, Result};

/// A buffer that knows how many elements it holds.
#[allow(clippy::len_without_is_empty)] // an extent to compare, not a collection
pub trait Extent {
    /// Elements, not bytes.
    fn len(&self) -> usize;
}

impl<T> Extent for [T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
}

impl<T> Extent for Vec<T> {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
}

/// Checks `found` elements against the product of `dims`, which must not overflow.
fn check(op: &'static str, what: &'static str, dims: &[usize], found: usize) -> Result<()> {
    let expected = dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
    if expected == Some(found) {
        return Ok(());
    }
    let expected = match expected {
        Some(n) => format!("{n} elements"),
        None => "a size that fits memory".to_string(),
    };
    Err(Error::Shape {
        op,
        what,
        expected: format!("{expected} (dimensions {dims:?})"),
        found: found.to_string(),
    })
}

macro_rules! checks {
    ($op:literal, $self:ident; $($field:ident: $what:literal = [$($dim:expr),*]),* $(,)?) => {{
        $( check($op, concat!(stringify!($field), " ", $what), &[$($dim),*], $self.$field.len())?; )*
        Ok(())
    }};
}

/// Checks an optional buffer: absent is fine.
macro_rules! check_optional {
    ($op:literal, $self:ident; $($field:ident: $what:literal = [$($dim:expr),*]),* $(,)?) => {
        $( if let Some(buffer) = &$self.$field {
            check($op, concat!(stringify!($field), " ", $what), &[$($dim),*], buffer.len())?;
        } )*
    };
}

// ---------------------------------------------------------------- matrix product

/// `m × k` times `k × n`; `ta`/`tb` say that an operand is stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulDims {
    /// Rows of the result.
    pub m: usize,
    /// The dimension summed over.
    pub k: usize,
    /// Columns of the result.
    pub n: usize,
    /// `a` is stored `[k,m]` instead of `[m,k]`.
    pub ta: bool,
    /// `b` is stored `[n,k]` instead of `[k,n]`.
    pub tb: bool,
}

/// `out (+)= op(a) · op(b)`. `out` must not alias the inputs.
pub struct Matmul<'a, S: ?Sized> {
    /// `[m,k]`, or `[k,m]` if transposed.
    pub a: &'a S,
    /// `[k,n]`, or `[n,k]` if transposed.
    pub b: &'a S,
    /// `[m,n]`; assigned, or added to if `accumulate`.
    pub out: &'a mut S,
    /// Add to `out` instead of assigning it.
    pub accumulate: bool,
}

impl<S: Extent + ?Sized> Matmul<'_, S> {
    /// The boundary check.
    pub fn check(&self, d: MatmulDims) -> Result<()> {
        checks!("matmul", self; a: "[m,k]" = [d.m, d.k], b: "[k,n]" = [d.k, d.n], out: "[m,n]" = [d.m, d.n])
    }
}

// ---------------------------------------------------------------- embedding

/// A gather of `n` rows out of a `[v,e]` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingDims {
    /// Tokens gathered, e.g. `T·B`.
    pub n: usize,
    /// Rows of the table.
    pub v: usize,
    /// Width of a row.
    pub e: usize,
}

/// `out[i] = table[ids[i]]`. An id ≥ `v` is an error on host back ends; device back ends check ids when a data set is loaded.
pub struct EmbeddingForward<'a, S: ?Sized, I: ?Sized> {
    /// `[v,e]`
    pub table: &'a S,
    /// `[n]`
    pub ids: &'a I,
    /// `[n,e]`, assigned.
    pub out: &'a mut S,
}

/// `dtable[ids[i]] += dout[i]`, duplicates summed in the order of `i`.
pub struct EmbeddingBackward<'a, S: ?Sized, I: ?Sized> {
    /// `[n]`
    pub ids: &'a I,
    /// `[n,e]`
    pub dout: &'a S,
    /// `[v,e]`, accumulated.
    pub dtable: &'a mut S,
}

impl<S: Extent + ?Sized, I: Extent + ?Sized> EmbeddingForward<'_, S, I> {
    /// The boundary check.
    pub fn check(&self, d: EmbeddingDims) -> Result<()> {
        checks!("embedding_forward", self; table: "[V,E]" = [d.v, d.e], ids: "[n]" = [d.n], out: "[n,E]" = [d.n, d.e])
    }
}
impl<S: Extent + ?Sized, I: Extent + ?Sized> EmbeddingBackward<'_, S, I> {
    /// The boundary check.
    pub fn check(&self, d: EmbeddingDims) -> Result<()> {
        checks!("embedding_backward", self; ids: "[n]" = [d.n], dout: "[n,E]" = [d.n, d.e], dtable: "[V,E]" = [d.v, d.e])
    }
}

// ---------------------------------------------------------------- LSTM, one time step

/// Index of each gate in the `4H` axis, Keras' and PyTorch's order: `i, f, g, o`.
pub mod gate {
    /// Input gate.
    pub const I: usize = 0;
    /// Forget gate.
    pub const F: usize = 1;
    /// Cell candidate (Keras writes `c`).
    pub const G: usize = 2;
    /// Output gate.
    pub const O: usize = 3;
}

/// One time step of an LSTM layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellDims {
    /// Batch rows.
    pub b: usize,
    /// Input width.
    pub e: usize,
    /// Hidden units.
    pub h: usize,
}

/// `pre = x·W + h_prev·U + b`; `gates = σ(i), σ(f), tanh(g), σ(o)`; `c = f∘c_prev + i∘g`; `h = o∘tanh(c)`.
pub struct CellForward<'a, S: ?Sized> {
    /// `[B,E]`
    pub x: &'a S,
    /// `[B,H]`
    pub h_prev: &'a S,
    /// `[B,H]`
    pub c_prev: &'a S,
    /// `[E,4H]`
    pub w: &'a S,
    /// `[H,4H]`
    pub u: &'a S,
    /// `[4H]`
    pub b: &'a S,
    /// `[B,4H]`, assigned: the activated gates, kept for backward.
    pub gates: &'a mut S,
    /// `[B,H]`, assigned.
    pub h: &'a mut S,
    /// `[B,H]`, assigned.
    pub c: &'a mut S,
}

/// The derivative of [`CellForward`]. Parameter gradients accumulate, the others are assigned.
pub struct CellBackward<'a, S: ?Sized> {
    /// `[B,E]`
    pub x: &'a S,
    /// `[B,H]`
    pub h_prev: &'a S,
    /// `[B,H]`
    pub c_prev: &'a S,
    /// `[E,4H]`
    pub w: &'a S,
    /// `[H,4H]`
    pub u: &'a S,
    /// `[B,4H]` as forward left it.
    pub gates: &'a S,
    /// `[B,H]` as forward left it.
    pub c: &'a S,
    /// `[B,H]`: gradient of the loss by `h`.
    pub dh: &'a S,
    /// `[B,H]`: gradient of the loss by `c`, from later time steps.
    pub dc: &'a S,
    /// `[B,E]`, assigned.
    pub dx: &'a mut S,
    /// `[B,H]`, assigned.
    pub dh_prev: &'a mut S,
    /// `[B,H]`, assigned.
    pub dc_prev: &'a mut S,
    /// `[E,4H]`, accumulated.
    pub dw: &'a mut S,
    /// `[H,4H]`, accumulated.
    pub du: &'a mut S,
    /// `[4H]`, accumulated.
    pub db: &'a mut S,
}

impl<S: Extent + ?Sized> CellForward<'_, S> {
    /// The boundary check.
    pub fn check(&self, d: CellDims) -> Result<()> {
        let CellDims { b, e, h } = d;
        checks!("lstm_cell_forward", self;
            x: "[B,E]" = [b, e], h_prev: "[B,H]" = [b, h], c_prev: "[B,H]" = [b, h],
            w: "[E,4H]" = [e, 4, h], u: "[H,4H]" = [h, 4, h], b: "[4H]" = [4, h],
            gates: "[B,4H]" = [b, 4, h], h: "[B,H]" = [b, h], c: "[B,H]" = [b, h])
    }
}
impl<S: Extent + ?Sized> CellBackward<'_, S> {
    /// The boundary check.
    pub fn check(&self, d: CellDims) -> Result<()> {
        let CellDims { b, e, h } = d;
        checks!("lstm_cell_backward", self;
            x: "[B,E]" = [b, e], h_prev: "[B,H]" = [b, h], c_prev: "[B,H]" = [b, h],
            w: "[E,4H]" = [e, 4, h], u: "[H,4H]" = [h, 4, h], gates: "[B,4H]" = [b, 4, h], c: "[B,H]" = [b, h],
            dh: "[B,H]" = [b, h], dc: "[B,H]" = [b, h],
            dx: "[B,E]" = [b, e], dh_prev: "[B,H]" = [b, h], dc_prev: "[B,H]" = [b, h],
            dw: "[E,4H]" = [e, 4, h], du: "[H,4H]" = [h, 4, h], db: "[4H]" = [4, h])
    }
}

// ---------------------------------------------------------------- LSTM, a whole sequence

/// An LSTM layer over `t` time steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceDims {
    /// Time steps; 0 is allowed and leaves the state as it is.
    pub t: usize,
    /// Batch rows.
    pub b: usize,
    /// Input width.
    pub e: usize,
    /// Hidden units.
    pub h: usize,
}

/// `t` cells in a row. Row 0 of `h` and `c` is the initial state, row `s+1` the state after time step `s`; so the
/// last `h` and `c` are rows `T`.
pub struct SequenceForward<'a, S: ?Sized> {
    /// `[T,B,E]`
    pub x: &'a S,
    /// `[B,H]`: initial output, zeros for a fresh sequence.
    pub h0: &'a S,
    /// `[B,H]`: initial cell state.
    pub c0: &'a S,
    /// `[E,4H]`
    pub w: &'a S,
    /// `[H,4H]`
    pub u: &'a S,
    /// `[4H]`
    pub b: &'a S,
    /// `[T,B,4H]`, assigned: the activated gates, kept for backward.
    pub gates: &'a mut S,
    /// `[T+1,B,H]`, assigned; row 0 becomes `h0`.
    pub h: &'a mut S,
    /// `[T+1,B,H]`, assigned; row 0 becomes `c0`.
    pub c: &'a mut S,
}

/// The derivative of [`SequenceForward`] (backpropagation through time). Parameter gradients accumulate, the
/// others are assigned. Absent output gradients count as zero.
pub struct SequenceBackward<'a, S: ?Sized> {
    /// `[T,B,E]`
    pub x: &'a S,
    /// `[E,4H]`
    pub w: &'a S,
    /// `[H,4H]`
    pub u: &'a S,
    /// `[T,B,4H]` as forward left it.
    pub gates: &'a S,
    /// `[T+1,B,H]` as forward left it.
    pub h: &'a S,
    /// `[T+1,B,H]` as forward left it.
    pub c: &'a S,
    /// `[T,B,H]`: gradient by each time step's output (rows 1 to T of `h`).
    pub dh: Option<&'a S>,
    /// `[B,H]`: gradient by the last output, added to `dh`'s last row.
    pub dh_last: Option<&'a S>,
    /// `[B,H]`: gradient by the last cell state.
    pub dc_last: Option<&'a S>,
    /// `[T,B,E]`, assigned.
    pub dx: &'a mut S,
    /// `[B,H]`, assigned.
    pub dh0: &'a mut S,
    /// `[B,H]`, assigned.
    pub dc0: &'a mut S,
    /// `[E,4H]`, accumulated.
    pub dw: &'a mut S,
    /// `[H,4H]`, accumulated.
    pub du: &'a mut S,
    /// `[4H]`, accumulated.
    pub db: &'a mut S,
}

impl<S: Extent + ?Sized> SequenceForward<'_, S> {
    /// The boundary check.
    pub fn check(&self, d: SequenceDims) -> Result<()> {
        let SequenceDims { t, b, e, h } = d;
        checks!("lstm_sequence_forward", self;
            x: "[T,B,E]" = [t, b, e], h0: "[B,H]" = [b, h], c0: "[B,H]" = [b, h],
            w: "[E,4H]" = [e, 4, h], u: "[H,4H]" = [h, 4, h], b: "[4H]" = [4, h],
            gates: "[T,B,4H]" = [t, b, 4, h], h: "[T+1,B,H]" = [t.saturating_add(1), b, h], c: "[T+1,B,H]" = [t.saturating_add(1), b, h])
    }
}
impl<S: Extent + ?Sized> SequenceBackward<'_, S> {
    /// The boundary check.
    pub fn check(&self, d: SequenceDims) -> Result<()> {
        let SequenceDims { t, b, e, h } = d;
        check_optional!("lstm_sequence_backward", self;
            dh: "[T,B,H]" = [t, b, h], dh_last: "[B,H]" = [b, h], dc_last: "[B,H]" = [b, h]);
        checks!("lstm_sequence_backward", self;
            x: "[T,B,E]" = [t, b, e], w: "[E,4H]" = [e, 4, h], u: "[H,4H]" = [h, 4, h],
            gates: "[T,B,4H]" = [t, b, 4, h], h: "[T+1,B,H]" = [t.saturating_add(1), b, h], c: "[T+1,B,H]" = [t.saturating_add(1), b, h],
            dx: "[T,B,E]" = [t, b, e], dh0: "[B,H]" = [b, h], dc0: "[B,H]" = [b, h],
            dw: "[E,4H]" = [e, 4, h], du: "[H,4H]" = [h, 4, h], db: "[4H]" = [4, h])
    }
}

// ---------------------------------------------------------------- dense

/// A dense layer of `inputs` to `outputs` units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseDims {
    /// Batch rows.
    pub b: usize,
    /// Input width (`H` in the classifier).
    pub inputs: usize,
    /// Output width (`C` in the classifier).
    pub outputs: usize,
}

/// `y = x·W + b`.
pub struct DenseForward<'a, S: ?Sized> {
    /// `[B,inputs]`
    pub x: &'a S,
    /// `[inputs,outputs]`
    pub w: &'a S,
    /// `[outputs]`
    pub b: &'a S,
    /// `[B,outputs]`, assigned.
    pub y: &'a mut S,
}

/// The derivative of [`DenseForward`]. Parameter gradients accumulate, `dx` is assigned.
pub struct DenseBackward<'a, S: ?Sized> {
    /// `[B,inputs]`
    pub x: &'a S,
    /// `[inputs,outputs]`
    pub w: &'a S,
    /// `[B,outputs]`
    pub dy: &'a S,
    /// `[B,inputs]`, assigned.
    pub dx: &'a mut S,
    /// `[inputs,outputs]`, accumulated.
    pub dw: &'a mut S,
    /// `[outputs]`, accumulated.
    pub db: &'a mut S,
}

impl<S: Extent + ?Sized> DenseForward<'_, S> {
    /// The boundary check.
    pub fn check(&self, d: DenseDims) -> Result<()> {
        checks!("dense_forward", self; x: "[B,inputs]" = [d.b, d.inputs], w: "[inputs,outputs]" = [d.inputs, d.outputs],
            b: "[outputs]" = [d.outputs], y: "[B,outputs]" = [d.b, d.outputs])
    }
}
impl<S: Extent + ?Sized> DenseBackward<'_, S> {
    /// The boundary check.
    pub fn check(&self, d: DenseDims) -> Result<()> {
        checks!("dense_backward", self; x: "[B,inputs]" = [d.b, d.inputs], w: "[inputs,outputs]" = [d.inputs, d.outputs],
            dy: "[B,outputs]" = [d.b, d.outputs], dx: "[B,inputs]" = [d.b, d.inputs],
            dw: "[inputs,outputs]" = [d.inputs, d.outputs], db: "[outputs]" = [d.outputs])
    }
}

// ---------------------------------------------------------------- softmax cross entropy

/// Softmax and sparse cross entropy over `c` classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossEntropyDims {
    /// Batch rows.
    pub b: usize,
    /// Classes.
    pub c: usize,
}

/// `probs = softmax(logits)`, `loss[row] = −class_weights[label]·log softmax(logits)[label]` through log-softmax, unclipped;
/// `hits[row]` is 1 where the first largest logit is the label's, else 0.
pub struct CrossEntropyForward<'a, S: ?Sized, I: ?Sized> {
    /// `[B,C]`
    pub logits: &'a S,
    /// `[B]`; a label ≥ `C` is an error on host back ends.
    pub labels: &'a I,
    /// `[C]`: what a row of each class counts; None is 1 for all.
    pub class_weights: Option<&'a S>,
    /// `[B,C]`, assigned.
    pub probs: &'a mut S,
    /// `[B]`, assigned: each row's loss (not their mean), times its class' weight.
    pub loss: &'a mut S,
    /// `[B]`, assigned: 1.0 or 0.0.
    pub hits: &'a mut S,
}

/// `dlogits = class_weights[label]·(probs − onehot(label)) / B`: the derivative of the batch's mean loss, which is divided by
/// the number of rows and not by the sum of their weights (Keras' `sum_over_batch_size`).
pub struct CrossEntropyBackward<'a, S: ?Sized, I: ?Sized> {
    /// `[B,C]` as forward left it.
    pub probs: &'a S,
    /// `[B]`
    pub labels: &'a I,
    /// `[C]`, as forward took them.
    pub class_weights: Option<&'a S>,
    /// `[B,C]`, assigned.
    pub dlogits: &'a mut S,
}

impl<S: Extent + ?Sized, I: Extent + ?Sized> CrossEntropyForward<'_, S, I> {
    /// The boundary check.
    pub fn check(&self, d: CrossEntropyDims) -> Result<()> {
        check_optional!("cross_entropy_forward", self; class_weights: "[C]" = [d.c]);
        checks!("cross_entropy_forward", self; logits: "[B,C]" = [d.b, d.c], labels: "[B]" = [d.b],
            probs: "[B,C]" = [d.b, d.c], loss: "[B]" = [d.b], hits: "[B]" = [d.b])
    }
}
impl<S: Extent + ?Sized, I: Extent + ?Sized> CrossEntropyBackward<'_, S, I> {
    /// The boundary check.
    pub fn check(&self, d: CrossEntropyDims) -> Result<()> {
        check_optional!("cross_entropy_backward", self; class_weights: "[C]" = [d.c]);
        checks!("cross_entropy_backward", self; probs: "[B,C]" = [d.b, d.c], labels: "[B]" = [d.b],
            dlogits: "[B,C]" = [d.b, d.c])
    }
}

// ---------------------------------------------------------------- Adam

/// The constants of Adam that do not change while training (Kingma & Ba 2015, in Keras' form).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, not bias-corrected (Keras' `epsilon`).
    pub eps: f64,
}

impl Default for AdamConfig {
    /// Keras' defaults.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-7 }
    }
}

impl AdamConfig {
    /// `lr·sqrt(1 − beta2^t)/(1 − beta1^t)` for the 1-based step `t`, in f64 with powers by squaring, so that every
    /// back end that follows this recipe gets the same number.
    pub fn alpha(&self, lr: f64, t: u64) -> f64 {
        lr * (1.0 - power(self.beta2, t)).sqrt() / (1.0 - power(self.beta1, t))
    }
}

/// `base^exponent` by squaring, least significant bit first.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut product = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            product *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    product
}

/// What one training step reads: a plain struct in memory, so that a back end may keep a whole table of them on
/// its device and advance through it without the host.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct StepState {
    /// 1-based number of the step since the start of training: Adam's `t`.
    pub t: u64,
    /// Learning rate.
    pub lr: f32,
    /// Decoupled weight decay: `p −= lr·weight_decay·p` before Adam's own update; 0 is off.
    pub weight_decay: f32,
    /// Largest global norm of the gradient, `g *= clip/max(norm, clip)` (Keras' `global_clipnorm`); 0 is off.
    pub clip_norm: f32,
    /// Where the batch starts in the epoch's order.
    pub batch_start: u32,
    /// Rows of the batch; the last batch of an epoch may be smaller.
    pub rows: u32,
    /// Zero; keeps the struct free of padding.
    pub reserved: u32,
}

impl StepState {
    /// A step without weight decay and clipping.
    pub fn new(t: u64, lr: f32, batch_start: u32, rows: u32) -> Self {
        Self { t, lr, weight_decay: 0.0, clip_norm: 0.0, batch_start, rows, reserved: 0 }
    }

    /// Whether the gradient is clipped. A limit that is not a number does too, and spoils the step visibly.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(crate) fn clips(&self) -> bool {
        self.clip_norm > 0.0 || self.clip_norm.is_nan()
    }

    /// Steps count from 1: with `t = 0` Adam would divide by zero.
    pub(crate) fn check(&self) -> Result<()> {
        if self.t > 0 {
            return Ok(());
        }
        Err(Error::Shape {
            op: "adam",
            what: "t",
            expected: "at least 1 (steps count from 1)".to_string(),
            found: "0".to_string(),
        })
    }
}

/// `m += (1−beta1)(g−m); v += (1−beta2)(g²−v); p −= alpha·m/(sqrt(v)+eps)` over a whole arena of `n` elements.
pub struct Adam<'a, S: ?Sized> {
    /// `[n]`; left as it is (clipping scales on the way).
    pub grads: &'a S,
    /// `[n]`, updated.
    pub params: &'a mut S,
    /// `[n]`, updated: first moment.
    pub m: &'a mut S,
    /// `[n]`, updated: second moment.
    pub v: &'a mut S,
}

impl<S: Extent + ?Sized> Adam<'_, S> {
    /// The boundary check; `n` is taken from `params`, and steps count from 1.
    pub fn check(&self, step: &StepState) -> Result<()> {
        self.check_extents()?;
        step.check()
    }

    /// The part of [`check`](Self::check) that looks at the arrays.
    pub(crate) fn check_extents(&self) -> Result<()> {
        let n = self.params.len();
        checks!("adam", self; grads: "[n]" = [n], m: "[n]" = [n], v: "[n]" = [n])
    }
}
