//! The threaded CPU back end, in f32.
//!
//! [`CpuEngine`] trains, evaluates and predicts with everything fused and weights packed (`block`); [`Cpu`] has the
//! operations one by one. Both are made of the same register tiles (`tile`) and activations on vectors (`simd`),
//! compiled for AVX-512, for AVX2 with FMA and for the baseline of the processor family, and chosen when the program runs.
//! Work is cut into tasks whose number and size depend on shapes alone, and what tasks sum is added up in their order:
//! on one instruction set the results have the same bits on any number of threads.

mod activation;
mod adam;
mod block;
mod cross_entropy;
mod dense;
mod embedding;
mod engine;
mod lstm_cell;
mod lstm_sequence;
mod matmul;
mod peak;
mod pool;
pub(crate) mod simd;
mod tile;

pub use engine::CpuEngine;
pub use peak::fma_peak;
pub use simd::Isa;

use pool::Pool;

use super::*;
use crate::error::Error;

/// More threads than any machine this is meant for; a typing error, not a wish.
const MAX_THREADS: usize = 256;

/// Multiply-adds (or work as long as one) below which an operation runs on the calling thread: waking the pool
/// costs about as much as this.
const INLINE_WORK: usize = 1 << 17;

/// Magnitudes below this become zero where a value is carried from step to step and only ever shrinks (Adam's first
/// moment, gradients on their way back in time). They cannot change a parameter any more, but left alone they become
/// subnormal, and arithmetic on subnormals is some hundred times slower.
const NEGLIGIBLE: f32 = f32::from_bits((127 - 100) << 23);

/// The CPU back end: a pool of threads and an instruction set.
#[derive(Debug)]
pub struct Cpu {
    pool: Pool,
    isa: Isa,
}

impl Cpu {
    /// With this many threads (0 is one for each core) and the fastest instruction set there is.
    ///
    /// # Errors
    /// More than 256 threads are wrong usage; the operating system may refuse to start the threads.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_isa(threads, Isa::best())
    }

    /// With this instruction set.
    ///
    /// # Errors
    /// As [`new`](Self::new); and [`Error::Device`] if the processor does not have it.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self> {
        if threads > MAX_THREADS {
            return Err(Error::usage(
                "threads",
                format!("found {threads}, at most {MAX_THREADS} can be used; 0 uses every core"),
            ));
        }
        if !isa.is_available() {
            return Err(Error::device("cpu", format!("this processor does not have {isa}")));
        }
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)),
            n => n,
        };
        let pool = Pool::new(threads)
            .map_err(|e| Error::device("cpu", format!("cannot start {threads} threads: {e}")))?;
        Ok(Self { pool, isa })
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set that computes.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What executes: the architecture and the instruction set.
    pub fn executed(&self) -> String {
        format!("{} {}", std::env::consts::ARCH, self.isa)
    }

    /// Runs `f` on every task. `work` is the number of multiply-adds in all tasks together (see [`INLINE_WORK`]); it
    /// and the tasks must depend on shapes alone.
    fn each<T: Send>(&self, work: usize, tasks: Vec<T>, f: impl Fn(T) + Sync + Send) {
        if work < INLINE_WORK {
            tasks.into_iter().for_each(f);
        } else {
            let mut tasks: Vec<Option<T>> = tasks.into_iter().map(Some).collect();
            self.pool.each(&mut tasks, |task| task.take().into_iter().for_each(&f));
        }
    }
}

/// The processor's own name, e.g. its brand string; the architecture's where the system does not tell.
pub fn processor_name() -> String {
    let told = if cfg!(target_os = "linux") { std::fs::read_to_string("/proc/cpuinfo").ok() } else { None };
    told.as_deref().and_then(model_name).unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

/// The first `model name` of a `/proc/cpuinfo`.
fn model_name(cpuinfo: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name" && !value.trim().is_empty()).then(|| value.trim().to_string())
    })
}

/// Takes the next `n` elements off the front of `rest`.
fn take<'a, T>(rest: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let (front, back) = std::mem::take(rest).split_at_mut(n);
    *rest = back;
    front
}

/// The error for an id or a label that is out of range.
fn check_ids(
    op: &'static str,
    what: &'static str,
    limit_name: &str,
    limit: usize,
    ids: &[u32],
) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= limit) {
        None => Ok(()),
        Some(index) => Err(Error::Shape {
            op,
            what,
            expected: format!("below {limit_name} = {limit} at every index"),
            found: format!("{} at index {index}", ids[index]),
        }),
    }
}

impl Ops for Cpu {
    type Buf = [f32];
    type Ids = [u32];
    type OwnedBuf = Vec<f32>;
    type OwnedIds = Vec<u32>;

    fn name(&self) -> String {
        let threads = self.threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("cpu {}, {threads} thread{plural}", self.executed())
    }

    fn upload(&self, values: &[f64]) -> Result<Vec<f32>> {
        Ok(values.iter().map(|&x| x as f32).collect())
    }

    fn upload_ids(&self, ids: &[u32]) -> Result<Vec<u32>> {
        Ok(ids.to_vec())
    }

    fn download(&self, buf: &[f32]) -> Result<Vec<f64>> {
        Ok(buf.iter().map(|&x| f64::from(x)).collect())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn fill(&self, buf: &mut [f32], value: f64) -> Result<()> {
        buf.fill(value as f32);
        Ok(())
    }

    fn matmul(&self, d: MatmulDims, a: Matmul<'_, [f32]>) -> Result<()> {
        matmul::matmul(self, d, a)
    }

    fn embedding_forward(&self, d: EmbeddingDims, a: EmbeddingForward<'_, [f32], [u32]>) -> Result<()> {
        embedding::forward(self, d, a)
    }

    fn embedding_backward(&self, d: EmbeddingDims, a: EmbeddingBackward<'_, [f32], [u32]>) -> Result<()> {
        embedding::backward(self, d, a)
    }

    fn lstm_cell_forward(&self, d: CellDims, a: CellForward<'_, [f32]>) -> Result<()> {
        lstm_cell::forward(self, d, a)
    }

    fn lstm_cell_backward(&self, d: CellDims, a: CellBackward<'_, [f32]>) -> Result<()> {
        lstm_cell::backward(self, d, a)
    }

    fn lstm_sequence_forward(&self, d: SequenceDims, a: SequenceForward<'_, [f32]>) -> Result<()> {
        lstm_sequence::forward(self, d, a)
    }

    fn lstm_sequence_backward(&self, d: SequenceDims, a: SequenceBackward<'_, [f32]>) -> Result<()> {
        lstm_sequence::backward(self, d, a)
    }

    fn dense_forward(&self, d: DenseDims, a: DenseForward<'_, [f32]>) -> Result<()> {
        dense::forward(self, d, a)
    }

    fn dense_backward(&self, d: DenseDims, a: DenseBackward<'_, [f32]>) -> Result<()> {
        dense::backward(self, d, a)
    }

    fn cross_entropy_forward(
        &self,
        d: CrossEntropyDims,
        a: CrossEntropyForward<'_, [f32], [u32]>,
    ) -> Result<()> {
        cross_entropy::forward(d, a)
    }

    fn cross_entropy_backward(
        &self,
        d: CrossEntropyDims,
        a: CrossEntropyBackward<'_, [f32], [u32]>,
    ) -> Result<()> {
        cross_entropy::backward(d, a)
    }

    fn adam(&self, config: &AdamConfig, step: &StepState, a: Adam<'_, [f32]>) -> Result<()> {
        adam::adam(self, config, step, a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_threads_is_checked_and_reported() {
        assert_eq!(Cpu::new(3).unwrap().threads(), 3);
        assert!(Cpu::new(0).unwrap().threads() >= 1);
        assert!(Cpu::new(257).unwrap_err().is_usage());
        assert!(Cpu::new(1).unwrap().name().ends_with(", 1 thread"));
        assert!(Cpu::new(2).unwrap().name().ends_with(", 2 threads"));
    }

    #[test]
    fn the_processor_has_a_name() {
        assert_eq!(
            model_name("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n").unwrap(),
            "Some CPU @ 2 GHz"
        );
        assert_eq!(model_name("processor\t: 0\n"), None);
        assert!(!processor_name().is_empty());
    }
}
