//! What every parity test shares: an operation is described once ([`Operation`]), for any back end, and then compared
//! with the oracle in f64 element by element. Benchmarks check their answers with the same code.
//!
//! Inputs are drawn anew for each case from `PARITY_SEED` (default 1) and rounded to f32, so that every back end sees
//! the same numbers. Outputs that are assigned start as NaN; those that accumulate start as random numbers, so that
//! an assignment instead of an addition is seen.

use std::fmt::Debug;

use recurve::backend::Ops;
use recurve::backend::reference::Reference;
use recurve::rng::{Purpose, Rng};

/// One operation on any back end.
pub trait Operation {
    /// Its name in messages.
    const NAME: &'static str;
    /// Shapes and whatever else changes from case to case.
    type Case: Debug;

    /// The cases of the parity tests.
    fn cases() -> Vec<Self::Case>;
    /// Fresh arrays for a case.
    fn arrays(case: &Self::Case, random: &mut Random) -> Arrays;
    /// The call itself.
    fn call<O: Ops>(ops: &O, case: &Self::Case, on: &mut Buffers<O>) -> recurve::Result<()>;
}

/// The arrays of one call on the host.
#[derive(Default)]
pub struct Arrays {
    pub inputs: Vec<Vec<f64>>,
    pub ids: Vec<Vec<u32>>,
    pub outputs: Vec<Output>,
}

/// An array that the operation writes.
pub struct Output {
    pub name: &'static str,
    /// What it holds before the call.
    pub before: Vec<f64>,
    pub tolerance: Tolerance,
}

/// `|found − truth| ≤ atol + rtol·|truth|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub atol: f64,
    pub rtol: f64,
}

/// Half the distance from 1 to the next f32: the largest relative error of one rounding.
pub const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

/// So many roundings of the result itself, and so many of numbers as large as `scale` that cancelled on the way.
pub fn roundings(of_result: f64, of_scale: f64, scale: f64) -> Tolerance {
    Tolerance { atol: of_scale * scale * ROUNDING, rtol: of_result * ROUNDING }
}

/// For a sum of `terms` random numbers with this standard deviation. The partial sums grow like `deviation·√j`, each is
/// rounded by up to so many [`ROUNDING`]s, and what is left of all these has a standard deviation of
/// `deviation·terms/√6` of them. Allowed are six times that, four roundings of the terms themselves, and, because a
/// sum that comes out far larger than most had partial sums far larger than most, √terms roundings of the result.
pub fn sum_of(terms: usize, deviation: f64) -> Tolerance {
    let terms = terms as f64;
    roundings(1.0 + terms.sqrt(), 4.0 + 2.5 * deviation * terms, 1.0)
}

/// Only the exact result will do.
pub const EXACT: Tolerance = Tolerance { atol: 0.0, rtol: 0.0 };

/// An output that is assigned: poisoned.
pub fn assigned(name: &'static str, n: usize, tolerance: Tolerance) -> Output {
    Output { name, before: vec![f64::NAN; n], tolerance }
}

/// An output that is updated from what it held.
pub fn updated(name: &'static str, before: Vec<f64>, tolerance: Tolerance) -> Output {
    Output { name, before, tolerance }
}

/// Random numbers for inputs.
pub struct Random(Rng);

impl Random {
    /// The numbers of the `index`-th case or benchmark.
    pub fn new(index: u32) -> Self {
        Self(Rng::new(seed(), Purpose::User, index))
    }

    /// `n` numbers in `[−scale, scale)` that f32 holds exactly.
    pub fn uniform(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| f64::from(((2.0 * self.0.uniform() - 1.0) * scale) as f32)).collect()
    }

    /// `n` ids below `limit`, half of them among the first three, so that there are duplicates.
    pub fn ids(&mut self, n: usize, limit: usize) -> Vec<u32> {
        (0..n)
            .map(|_| {
                let limit = if self.0.below(2) == 0 { limit.min(3) } else { limit };
                u32::try_from(self.0.below(limit as u64)).expect("an id fits u32")
            })
            .collect()
    }
}

fn seed() -> u64 {
    std::env::var("PARITY_SEED").ok().map_or(1, |seed| seed.parse().expect("PARITY_SEED is a number"))
}

/// The arrays of one call on a back end.
pub struct Buffers<O: Ops> {
    pub inputs: Vec<O::OwnedBuf>,
    pub ids: Vec<O::OwnedIds>,
    pub outputs: Vec<O::OwnedBuf>,
}

impl<O: Ops> Buffers<O> {
    pub fn upload(ops: &O, arrays: &Arrays) -> Self {
        Self {
            inputs: arrays.inputs.iter().map(|x| ops.upload(x).expect("upload")).collect(),
            ids: arrays.ids.iter().map(|x| ops.upload_ids(x).expect("upload_ids")).collect(),
            outputs: arrays.outputs.iter().map(|x| ops.upload(&x.before).expect("upload")).collect(),
        }
    }

    pub fn download(&self, ops: &O) -> Vec<Vec<f64>> {
        use std::borrow::Borrow as _;
        ops.synchronize().expect("synchronize");
        self.outputs.iter().map(|x| ops.download(x.borrow()).expect("download")).collect()
    }
}

/// Runs one case.
pub fn run<P: Operation, O: Ops>(ops: &O, case: &P::Case, arrays: &Arrays) -> Vec<Vec<f64>> {
    let mut buffers = Buffers::upload(ops, arrays);
    P::call(ops, case, &mut buffers)
        .unwrap_or_else(|e| panic!("{} on {}, {case:?}: {e}", P::NAME, ops.name()));
    buffers.download(ops)
}

/// Compares one case with the oracle. Returns the worst error in parts of the tolerance, and a sentence about it.
///
/// # Panics
/// If an element is further from the truth than its tolerance, or not a number where the truth is one.
pub fn verify<P: Operation, O: Ops>(ops: &O, case: &P::Case) -> (f64, String) {
    let arrays = P::arrays(case, &mut Random::new(0));
    let truth = run::<P, _>(&Reference::<f64>::new(), case, &arrays);
    let found = run::<P, _>(ops, case, &arrays);
    let mut worst = (0.0, "all exact".to_string());
    for ((output, truth), found) in arrays.outputs.iter().zip(&truth).zip(&found) {
        let Tolerance { atol, rtol } = output.tolerance;
        let mut wrong = 0;
        let mut worst_here = (-1.0, String::new());
        for (index, (&truth, &found)) in truth.iter().zip(found).enumerate() {
            let (diff, limit) = ((found - truth).abs(), atol + rtol * truth.abs());
            let fits = diff <= limit || (truth.is_nan() && found.is_nan()) || truth == found;
            wrong += usize::from(!fits);
            let share = match (fits, limit) {
                (false, _) if !diff.is_finite() => f64::INFINITY,
                (_, 0.0) => diff,
                _ if diff.is_nan() => 0.0,
                _ => diff / limit,
            };
            if share > worst_here.0 {
                let place = format!("{}[{index}]", output.name);
                worst_here = (
                    share,
                    format!(
                        "worst {place} = {found:e}, truth {truth:e}, off by {diff:.3e}, {share:.2} of the \
                         tolerance {limit:.1e}, {case:?}"
                    ),
                );
            }
        }
        assert_eq!(truth.len(), found.len());
        assert!(
            wrong == 0,
            "{} on {} (PARITY_SEED={}): {wrong} of {} elements are wrong, {}",
            P::NAME,
            ops.name(),
            seed(),
            truth.len(),
            worst_here.1
        );
        if worst_here.0 > worst.0 {
            worst = worst_here;
        }
    }
    worst
}

/// Every back end in `all` must give the same bits.
#[allow(dead_code)] // benchmarks include this file and do not ask
pub fn same_bits<P: Operation, O: Ops>(all: &[&O]) {
    if all.is_empty() {
        return;
    }
    for case in &P::cases() {
        let arrays = P::arrays(case, &mut Random::new(1));
        let bits = |ops: &O| -> Vec<Vec<u64>> {
            let outputs = run::<P, O>(ops, case, &arrays);
            outputs.iter().map(|x| x.iter().map(|x| x.to_bits()).collect()).collect()
        };
        let first = bits(all[0]);
        for other in &all[1..] {
            for ((output, a), b) in arrays.outputs.iter().zip(&first).zip(&bits(other)) {
                let at = a.iter().zip(b).position(|(a, b)| a != b);
                assert!(
                    at.is_none(),
                    "{}: {} and {} differ in {}[{at:?}], {case:?}",
                    P::NAME,
                    all[0].name(),
                    other.name(),
                    output.name
                );
            }
        }
    }
}
