//! Half precision: what is stored in 16 bits, where it is rounded, and the loss scale of f16.
//!
//! With [`Precision::Bf16`] or [`Precision::F16`] the operands of every matrix product are stored in 16 bits; what is summed,
//! remembered over many steps, or decides the loss stays in f32. `r(x)` is `x` rounded to the storage type, to nearest with
//! ties to even; larger than the largest finite number by half a unit or more gives an infinity, small results are subnormal.
//!
//! | array | type | rounded |
//! | --- | --- | --- |
//! | parameters (the master copy), Adam's `m` and `v` | f32 | never |
//! | embedding table, `W`, `U`, dense `W`, as products read them | 16 bits | `r(master)`, after each update |
//! | `b`, dense `b` | f32 | never |
//! | `x`: embedded tokens | 16 bits | they are rows of the rounded table |
//! | `pre = b + x·W + h·U` | f32 | never: operands are 16 bits wide, their products exact in f32, sums in f32 |
//! | gates, for the cell state of the same time step | f32 | never |
//! | gates, as backward reads them | 16 bits | once activated |
//! | `c` | f32 | never |
//! | `h`, the initial one too | 16 bits | `r(o·tanh(c))`; whatever reads `h` reads that |
//! | logits, probabilities, loss, `dlogits`, `dh_last` | f32 | never |
//! | `dh`, `dc` from time step to time step | f32 | never |
//! | `dpre` | 16 bits | `r(dpre)`; whatever reads `dpre` reads that: `dh`, `dx`, `dW`, `dU`, `db` |
//! | `dx`, gradients of parameters, all sums | f32 | never |
//!
//! So the forward pass does not depend on whether its gates are kept, and an evaluation has the loss that training would
//! have had. A product of two such numbers has at most 22 significant bits: in f32 a fused multiply-add and a product with a
//! sum are the same. Which devices can do it: [`Device::engine_in`](super::Device::engine_in).
//!
//! CUDA stores in 16 bits what lies in device memory: the copies of table, `W`, `U` and dense `W`, and on the paths that are not
//! fused `x`, gates, `h` and `dpre` of a batch. The fused path keeps these in a block's shared memory and registers, as f32 that
//! 16 bits can hold: the same numbers. `pre` of a batch has an array of its own there, of f32, as gates are narrower.
//!
//! A model file holds the master copy, and the precision of its training for `--resume`. `recurve eval` and `recurve predict`
//! compute in f32 unless `--precision` says otherwise, whatever a model was trained in; in the precision of its training, the
//! figures of `eval` are those that `train` printed.
//!
//! # Loss scale
//! The smallest positive number of bf16 is that of f32. That of f16 is 2⁻²⁴, and gradients by pre-activations are often
//! smaller. So with f16 the loss, that is `dlogits`, is multiplied by a scale, and the gradients of the parameters by its inverse
//! before they are clipped and used. [`LossScale`] is PyTorch's `torch.amp.GradScaler` with its defaults and one limit: a step
//! with a gradient that is not finite is skipped and halves the scale, 2000 others in a row double it, but never beyond where it
//! began. PyTorch's grows on until a step overflows, and so skips one in some 2000 for nothing: nothing that matters underflows at
//! 2¹⁶ already. (On the reference workload that was one to three steps of ten epochs, and most of the difference from f32:
//! `benches/record/2026-11-28-half.md`.)
//!
//! A skipped step leaves parameters and moments as they are, and Adam's exponent too: it corrects its bias for the updates
//! done, `t − skipped`. `t` itself counts batches, skipped ones too, and so does the schedule of the learning rate. The step's
//! loss and hits count in the metrics: its forward pass is as good as any.

use super::Real;
use serde::{Deserialize, Serialize};

/// The type that the operands of products are stored in; see the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits: nothing is rounded but the results of f32 arithmetic.
    #[default]
    F32,
    /// bfloat16: f32's range, 8 significant bits.
    Bf16,
    /// IEEE 754's binary16: 2⁻²⁴ to 65504, 11 significant bits.
    F16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            "f16" => Ok(Precision::F16),
            _ => Err("expected f32, bf16 or f16".into()),
        }
    }
}

impl Precision {
    /// Largest relative error of one rounding, where the result is neither subnormal nor infinite: 2⁻²⁴, 2⁻⁸ or 2⁻¹¹.
    pub fn roundoff(self) -> f64 {
        let bits = match self {
            Precision::F32 => 24,
            Precision::Bf16 => 8,
            Precision::F16 => 11,
        };
        1.0 / f64::from(1u32 << bits)
    }

    /// Whether a training multiplies its loss by a [`LossScale`].
    pub fn scales_loss(self) -> bool {
        self == Precision::F16
    }

    /// `x` rounded to this type, to nearest with ties to even, in one rounding; with [`Precision::F32`] `x` itself, whatever
    /// its type.
    ///
    /// ```
    /// use recurve::backend::Precision;
    ///
    /// assert_eq!(Precision::F16.round(1.0f32 + 1.0 / 2048.0), 1.0);
    /// assert_eq!(Precision::Bf16.round(1.0 + 3.0 / 256.0), 1.0 + 2.0 / 128.0);
    /// assert_eq!(Precision::F16.round(65520.0), f64::INFINITY);
    /// ```
    pub fn round<T: Real>(self, x: T) -> T {
        match self {
            Precision::F32 => x,
            // Both widen to f64 exactly: one rounding from there.
            Precision::Bf16 => T::from_f64(nearest(x.as_f64(), 7, -126, 127)),
            Precision::F16 => T::from_f64(nearest(x.as_f64(), 10, -14, 15)),
        }
    }

    /// [`Self::round`] of each.
    pub fn rounded<T: Real>(self, values: &[T]) -> Vec<T> {
        values.iter().map(|&x| self.round(x)).collect()
    }
}

/// The nearest number with so many bits of fraction and exponents from `least` (below it numbers are subnormal) to `most`.
fn nearest(x: f64, fraction: i32, least: i32, most: i32) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let power_of_two = |exponent: i32| f64::from_bits(((exponent + 1023) as u64) << 52);
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    // Of the last place; both ways it is exact to divide by it.
    let unit = power_of_two(exponent - fraction);
    let y = (x / unit).round_ties_even() * unit;
    if y.abs() < power_of_two(most + 1) { y } else { f64::INFINITY.copysign(x) }
}

/// What the loss of a training in f16 is multiplied by, and how it came to that; see the [module](self). In other
/// precisions it stays as it began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// The factor.
    pub scale: f32,
    /// Steps done since it changed, or since one was skipped.
    pub good_steps: u32,
    /// Steps skipped since the training began.
    pub skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: Self::FIRST, good_steps: 0, skipped: 0 }
    }
}

impl LossScale {
    /// `init_scale`, and the most that the scale grows to.
    pub const FIRST: f32 = crate::tuning::LOSS_SCALE_MOST as f32;
    /// `growth_factor`
    pub const GROWTH: f32 = 2.0;
    /// `backoff_factor`
    pub const BACKOFF: f32 = 0.5;
    /// `growth_interval`
    pub const GROWTH_STEPS: u32 = crate::tuning::LOSS_SCALE_GROWTH_STEPS;

    /// What the gradients of the scaled loss are multiplied by.
    pub fn inverse(&self) -> f32 {
        (1.0 / f64::from(self.scale)) as f32
    }

    /// After a step whose scaled gradients were all `finite` (it was done), or not (it was skipped).
    pub fn update(&mut self, finite: bool) {
        if !finite {
            self.scale *= Self::BACKOFF;
            self.good_steps = 0;
            self.skipped += 1;
            return;
        }
        self.good_steps += 1;
        if self.good_steps == Self::GROWTH_STEPS {
            let larger = self.scale * Self::GROWTH;
            if larger <= Self::FIRST {
                self.scale = larger;
            }
            self.good_steps = 0;
        }
    }

    /// Refuses what no training of `t` steps can have come to.
    pub(crate) fn check(&self, t: u64) -> Result<(), String> {
        let scale = self.scale.is_finite() && self.scale >= 0.0;
        if scale && self.good_steps < Self::GROWTH_STEPS && self.skipped <= t {
            return Ok(());
        }
        Err(format!(
            "scale {}, {} good steps, {} skipped ones of {t}; expected a finite scale, fewer than {} good steps, and no more \
             skipped steps than steps",
            self.scale,
            self.good_steps,
            self.skipped,
            Self::GROWTH_STEPS
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_at_once_and_doubles_after_two_thousand() {
        let mut scale = LossScale::default();
        for _ in 0..1999 {
            scale.update(true);
        }
        assert_eq!((scale.scale, scale.good_steps), (65536.0, 1999));
        scale.update(false);
        assert_eq!(scale, LossScale { scale: 32768.0, good_steps: 0, skipped: 1 });
        for _ in 0..2000 {
            scale.update(true);
        }
        assert_eq!(scale, LossScale { scale: 65536.0, good_steps: 0, skipped: 1 });
        // No further, wherever it is.
        for most in [LossScale::FIRST, 1.5 * LossScale::FIRST, 2f32.powi(127)] {
            let mut largest = LossScale { scale: most, good_steps: 1999, skipped: 0 };
            largest.update(true);
            assert_eq!(largest, LossScale { scale: most, good_steps: 0, skipped: 0 });
        }
    }

    #[test]
    fn every_power_of_two_has_an_exact_inverse() {
        for exponent in -126..=127 {
            let scale = LossScale { scale: 2f32.powi(exponent), ..LossScale::default() };
            assert_eq!(scale.inverse() * scale.scale, 1.0, "2^{exponent}");
        }
    }

    #[test]
    fn a_scale_that_cannot_be_is_refused() {
        let good = LossScale::default();
        assert!(good.check(0).is_ok());
        for bad in [
            LossScale { scale: f32::NAN, ..good },
            LossScale { scale: -1.0, ..good },
            LossScale { scale: f32::INFINITY, ..good },
            LossScale { good_steps: 2000, ..good },
            LossScale { skipped: 8, ..good },
        ] {
            assert!(bad.check(7).is_err(), "{bad:?}");
        }
    }
}
