//! The boundary between the training loop and what computes: two traits, and the back ends behind them.
//!
//! * [`Ops`]: each operation alone, on buffers of the back end: what parity tests, benchmarks and library users call.
//! * [`Engine`]: a loaded model and data set that trains ranges of an epoch's order: all that
//!   [`train`](crate::train) uses. A back end is free to fuse a whole step behind it and to keep data, order and
//!   metrics on a device.
//!
//! [`mod@reference`] is the oracle (plain loops in f32 or f64); [`host::HostEngine`] composes its engine's steps out of
//! `Ops`. [`cpu`] is for machines without a GPU: its engine fuses a whole step, its `Ops` are made of the same tiles.
//! `cuda` (a feature of that name, on by default) drives GPUs with kernels of its own.

pub(crate) mod checks;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
pub mod precision;
mod real;
pub mod reference;
pub mod shapes;

pub use precision::{LossScale, Precision};
pub use real::Real;
pub use shapes::*;

use crate::data::Examples;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::model::Model;

/// Each operation alone. Every method checks its shapes at the boundary and returns [`Error::Shape`](crate::Error::Shape) if they do not fit; what is assigned, what accumulates and what each array means
/// stands at the argument structs in [`shapes`].
pub trait Ops {
    /// A float buffer: a host slice, or an array on a device.
    type Buf: Extent + ?Sized;
    /// A buffer of ids or labels.
    type Ids: Extent + ?Sized;
    /// What owns a [`Self::Buf`].
    type OwnedBuf: std::borrow::BorrowMut<Self::Buf>;
    /// What owns a [`Self::Ids`].
    type OwnedIds: std::borrow::BorrowMut<Self::Ids>;

    /// What executes, for reports and test output, e.g. `reference f64` or `cpu x86-64, 2 threads`.
    fn name(&self) -> String;
    /// Copies host values into a new buffer, rounding to the back end's precision.
    fn upload(&self, values: &[f64]) -> Result<Self::OwnedBuf>;
    /// Copies ids into a new buffer.
    fn upload_ids(&self, ids: &[u32]) -> Result<Self::OwnedIds>;
    /// Copies a buffer back.
    fn download(&self, buf: &Self::Buf) -> Result<Vec<f64>>;
    /// Waits until everything asked for has been done (host back ends are always done).
    fn synchronize(&self) -> Result<()>;

    /// Assigns `value` to every element.
    fn fill(&self, buf: &mut Self::Buf, value: f64) -> Result<()>;
    /// See [`Matmul`].
    fn matmul(&self, d: MatmulDims, a: Matmul<'_, Self::Buf>) -> Result<()>;
    /// See [`EmbeddingForward`].
    fn embedding_forward(
        &self,
        d: EmbeddingDims,
        a: EmbeddingForward<'_, Self::Buf, Self::Ids>,
    ) -> Result<()>;
    /// See [`EmbeddingBackward`].
    fn embedding_backward(
        &self,
        d: EmbeddingDims,
        a: EmbeddingBackward<'_, Self::Buf, Self::Ids>,
    ) -> Result<()>;
    /// See [`CellForward`].
    fn lstm_cell_forward(&self, d: CellDims, a: CellForward<'_, Self::Buf>) -> Result<()>;
    /// See [`CellBackward`].
    fn lstm_cell_backward(&self, d: CellDims, a: CellBackward<'_, Self::Buf>) -> Result<()>;
    /// See [`SequenceForward`].
    fn lstm_sequence_forward(&self, d: SequenceDims, a: SequenceForward<'_, Self::Buf>) -> Result<()>;
    /// See [`SequenceBackward`].
    fn lstm_sequence_backward(&self, d: SequenceDims, a: SequenceBackward<'_, Self::Buf>) -> Result<()>;
    /// See [`DenseForward`].
    fn dense_forward(&self, d: DenseDims, a: DenseForward<'_, Self::Buf>) -> Result<()>;
    /// See [`DenseBackward`].
    fn dense_backward(&self, d: DenseDims, a: DenseBackward<'_, Self::Buf>) -> Result<()>;
    /// See [`CrossEntropyForward`].
    fn cross_entropy_forward(
        &self,
        d: CrossEntropyDims,
        a: CrossEntropyForward<'_, Self::Buf, Self::Ids>,
    ) -> Result<()>;
    /// See [`CrossEntropyBackward`].
    fn cross_entropy_backward(
        &self,
        d: CrossEntropyDims,
        a: CrossEntropyBackward<'_, Self::Buf, Self::Ids>,
    ) -> Result<()>;
    /// One Adam step over an arena, with `step`'s weight decay and clipping; see [`Adam`] and [`StepState`].
    fn adam(&self, config: &AdamConfig, step: &StepState, a: Adam<'_, Self::Buf>) -> Result<()>;
}

/// The parts of a data set that an engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What [`Engine::train`] draws its batches from.
    Train,
    /// What early stopping looks at.
    Validation,
    /// What is only reported.
    Test,
}

/// The examples an engine is loaded with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// Rows to train on; an epoch's order holds indices into them.
    pub train: Option<&'a Examples>,
    /// Rows for [`Part::Validation`].
    pub validation: Option<&'a Examples>,
    /// Rows for [`Part::Test`].
    pub test: Option<&'a Examples>,
    /// `[C]`: what a training row of each class counts in loss and gradient; None is 1 for all. Evaluations do not
    /// look at them.
    pub class_weights: Option<&'a [f32]>,
}

impl<'a> Parts<'a> {
    /// The examples of `part`, or an error that says the part was never loaded.
    pub fn get(&self, part: Part) -> Result<&'a Examples> {
        let examples = match part {
            Part::Train => self.train,
            Part::Validation => self.validation,
            Part::Test => self.test,
        };
        examples
            .ok_or_else(|| crate::Error::Failed(format!("no {part:?} examples were loaded into the engine")))
    }
}

/// What trains: parameters and Adam's moments as flat arenas in the order of the model's
/// [`ParamTable`](crate::model::ParamTable), each of its length.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// The parameters.
    pub params: Vec<f32>,
    /// Adam's first moment.
    pub m: Vec<f32>,
    /// Adam's second moment.
    pub v: Vec<f32>,
    /// Steps done: the next step is `t + 1`.
    pub t: u64,
    /// What f16 has come to; of an engine in another precision, how it began.
    pub loss_scale: LossScale,
}

impl TrainState {
    /// Fresh moments for `params`.
    pub fn new(params: Vec<f32>) -> Self {
        let n = params.len();
        Self { params, m: vec![0.0; n], v: vec![0.0; n], t: 0, loss_scale: LossScale::default() }
    }
}

/// What ran, for reports: never more than what really executed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceInfo {
    /// The back end: `cpu`, `reference`, `cuda:0`, …
    pub device: String,
    /// The hardware's own name where it is known, e.g. the processor's brand string.
    pub name: String,
    /// What executed: an instruction set, a GPU, or the software device.
    pub executed: String,
    /// Host threads that compute.
    pub threads: usize,
}

/// A back end with a model and a data set in it.
///
/// Order of calls: [`load`](Engine::load) once; then, for each epoch, [`set_order`](Engine::set_order),
/// [`train`](Engine::train) with consecutive ranges of steps, [`poll`](Engine::poll) until they are done, and
/// [`evaluate`](Engine::evaluate). [`predict`](Engine::predict) needs only a loaded model.
pub trait Engine {
    /// What executes.
    fn info(&self) -> DeviceInfo;

    /// Takes a model, its state and the examples, which replace whatever was loaded. Ids ≥ V, labels ≥ C and
    /// examples of different T are errors.
    fn load(&mut self, model: &Model, state: &TrainState, adam: AdamConfig, parts: Parts<'_>) -> Result<()>;

    /// The order in which the coming steps read the training rows (indices into [`Part::Train`]), and a fresh
    /// start of the epoch's metrics from `metrics` (zeros, or what a checkpoint in mid-epoch holds).
    fn set_order(&mut self, order: &[u32], metrics: Metrics) -> Result<()>;

    /// Trains one batch for each of `steps`, in order. May return before the work is done.
    fn train(&mut self, steps: &[StepState]) -> Result<()>;

    /// The epoch's metrics over the steps that have finished; with `wait`, after all that were asked for have.
    fn poll(&mut self, wait: bool) -> Result<Metrics>;

    /// Loss and accuracy of a part in batches of `batch_size`, without training.
    fn evaluate(&mut self, part: Part, batch_size: usize) -> Result<Metrics>;

    /// Class probabilities `[rows,C]` of ids `[rows,T]`.
    fn predict(&mut self, x: &[u32], rows: usize) -> Result<Vec<f32>>;

    /// Copies the state out, after all steps asked for have been done.
    fn read_state(&mut self) -> Result<TrainState>;

    /// Replaces the state.
    fn write_state(&mut self, state: &TrainState) -> Result<()>;
}

/// A processor or accelerator as `--device` names it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Device {
    /// The best one there is.
    #[default]
    Auto,
    /// The threaded CPU back end.
    Cpu,
    /// The oracle's plain loops, in f32.
    Reference,
    /// The CUDA device of this ordinal.
    Cuda(u32),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "reference" => Ok(Device::Reference),
            "cuda" => Ok(Device::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Device::Cuda(ordinal)),
                _ => Err("expected auto, cpu, reference, cuda or cuda:N".to_string()),
            },
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Reference => f.write_str("reference"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Device {
    /// An engine on this device with `threads` host threads (0: one for each core).
    ///
    /// [`Device::Auto`] takes the first GPU if a driver and a device are there and the kernels load on it, else the
    /// CPU; if there is a driver that cannot be used, the CPU's [`DeviceInfo::executed`] says why.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no such device; what was asked for by name is never replaced
    /// by something else.
    pub fn engine(&self, threads: usize) -> Result<Box<dyn Engine>> {
        self.engine_in(Precision::F32, threads)
    }

    /// [`Self::engine`] in this precision. CUDA has 16 bits. [`Device::Reference`] has them too: its plain
    /// loops in f32 round where [`precision`] says, which is slow, and shows what such a training comes to.
    ///
    /// # Errors
    /// Also [`Error::Usage`](crate::Error::Usage) if the device has no engine of this precision.
    pub fn engine_in(&self, precision: Precision, threads: usize) -> Result<Box<dyn Engine>> {
        let refuse = |device: &str| {
            Err(crate::Error::usage(
                "--precision",
                format!(
                    "{precision} is not there on {device}, which computes in f32; use --device reference (plain loops, slow, \
                     rounded to {precision} where it would be stored), or leave the flag out"
                ),
            ))
        };
        let half = precision != Precision::F32;
        match self {
            #[cfg(feature = "cuda")]
            Device::Auto if half => match cuda::auto() {
                Ok(engine) => Ok(Box::new(engine.in_precision(precision))),
                Err(None) => refuse("auto (the CPU: there is no GPU)"),
                Err(Some(reason)) => refuse(&format!("auto (the CPU: {reason})")),
            },
            #[cfg(not(feature = "cuda"))]
            Device::Auto if half => refuse("auto (the CPU)"),
            Device::Cpu if half => refuse("cpu"),
            #[cfg(feature = "cuda")]
            Device::Auto => match cuda::auto() {
                Ok(engine) => Ok(Box::new(engine)),
                Err(reason) => host_engine(threads, reason),
            },
            #[cfg(not(feature = "cuda"))]
            Device::Auto => host_engine(threads, None),
            Device::Cpu => host_engine(threads, None),
            Device::Reference => {
                let info = DeviceInfo {
                    device: "reference".into(),
                    name: cpu::processor_name(),
                    executed: "plain loops in f32".into(),
                    threads: 1,
                };
                if precision == Precision::F32 {
                    return Ok(Box::new(host::HostEngine::new(reference::Reference::<f32>::new(), info)));
                }
                let executed = format!("{}, rounded to {precision} where it would be stored", info.executed);
                let info = DeviceInfo { executed, ..info };
                Ok(Box::new(host::HostEngine::rounded(reference::Rounded::<f32>::new(precision), info)))
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                Ok(Box::new(cuda::CudaEngine::new(cuda::Cuda::new(*ordinal)?).in_precision(precision)))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(ordinal) => Err(crate::Error::device(
                format!("cuda:{ordinal}"),
                "this build of recurve has no CUDA back end (it was built without the feature `cuda`); use --device cpu",
            )),
        }
    }
}

/// The engine of the CPU. `instead` says why it was chosen where a GPU would have been, if that needs saying.
fn host_engine(threads: usize, instead: Option<String>) -> Result<Box<dyn Engine>> {
    let mut engine = cpu::CpuEngine::new(cpu::Cpu::new(threads)?);
    if let Some(reason) = instead {
        engine.say(&format!(" (auto: {reason})"));
    }
    Ok(Box::new(engine))
}
