//! Adam over an arena in one pass, with decoupled weight decay and clipping by the global norm.

use super::{Cpu, without_negligible};
use crate::backend::{Adam, AdamConfig, StepState};
use crate::error::Result;

/// Elements of one parallel task, and of one part of the norm.
const CHUNK: usize = 8192;
/// Elements handled together: skipped together where nothing can change.
const LANES: usize = 16;
/// Work of one element in multiply-adds: a root and a quotient.
const WORK: usize = 8;

/// The step's numbers, rounded to f32 once.
#[derive(Clone, Copy)]
struct Constants {
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    alpha: f32,
    eps: f32,
    /// Factor of the gradient (clipping).
    scale: f32,
    /// `lr·weight_decay`.
    decay: f32,
    /// Elements whose gradient and moments are all zero stay exactly as they are.
    skip: bool,
}

/// See [`Adam`].
pub(super) fn adam(cpu: &Cpu, config: &AdamConfig, step: &StepState, a: Adam<'_, [f32]>) -> Result<()> {
    a.check(step)?;
    let scale = if step.clip_norm <= 0.0 { 1.0 } else { clip(norm(cpu, a.grads), f64::from(step.clip_norm)) };
    let alpha = config.alpha(f64::from(step.lr), step.t) as f32;
    let eps = config.eps as f32;
    let decay = (f64::from(step.lr) * f64::from(step.weight_decay)) as f32;
    let constants = Constants {
        one_minus_beta1: (1.0 - config.beta1) as f32,
        one_minus_beta2: (1.0 - config.beta2) as f32,
        alpha,
        eps,
        scale,
        decay,
        // p − alpha·0/(0+eps) is p for these, and only for these.
        skip: decay == 0.0 && alpha.is_finite() && alpha >= 0.0 && eps > 0.0 && scale.is_finite(),
    };
    let n = a.params.len();
    let tasks: Vec<_> = a
        .grads
        .chunks(CHUNK)
        .zip(a.params.chunks_mut(CHUNK))
        .zip(a.m.chunks_mut(CHUNK).zip(a.v.chunks_mut(CHUNK)))
        .collect();
    cpu.each(n * WORK, tasks, |((grads, params), (m, v))| update(constants, grads, params, m, v));
    Ok(())
}

/// The factor that brings a gradient of this norm down to `clip` (Keras' `global_clipnorm`); NaN for a norm that is
/// NaN.
fn clip(norm: f64, clip: f64) -> f32 {
    if norm <= clip { 1.0 } else { (clip / norm) as f32 }
}

/// The square root of the sum of squares, in f64: in eight interleaved sums for each chunk, and these in order.
fn norm(cpu: &Cpu, grads: &[f32]) -> f64 {
    let mut sums = vec![0.0; grads.len().div_ceil(CHUNK)];
    let tasks: Vec<_> = grads.chunks(CHUNK).zip(&mut sums).collect();
    cpu.each(grads.len(), tasks, |(grads, sum)| {
        let (groups, rest) = grads.as_chunks::<8>();
        let mut lanes = [0.0f64; 8];
        for group in groups {
            for (lane, &g) in lanes.iter_mut().zip(group) {
                *lane += f64::from(g) * f64::from(g);
            }
        }
        *sum = lanes.iter().sum::<f64>() + rest.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    });
    sums.iter().sum::<f64>().sqrt()
}

/// One chunk.
fn update(k: Constants, grads: &[f32], params: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    let (grads, grads_rest) = grads.as_chunks::<LANES>();
    let (params, params_rest) = params.as_chunks_mut::<LANES>();
    let (m, m_rest) = m.as_chunks_mut::<LANES>();
    let (v, v_rest) = v.as_chunks_mut::<LANES>();
    for ((g, p), (m, v)) in grads.iter().zip(params).zip(m.iter_mut().zip(v)) {
        if k.skip && all_zero(g, m, v) {
            continue;
        }
        for lane in 0..LANES {
            element(k, g[lane], &mut p[lane], &mut m[lane], &mut v[lane]);
        }
    }
    for ((g, p), (m, v)) in grads_rest.iter().zip(params_rest).zip(m_rest.iter_mut().zip(v_rest)) {
        element(k, *g, p, m, v);
    }
}

/// Whether every moment is +0 and every gradient ±0 (a moment of −0 would become +0).
#[inline(always)]
fn all_zero(g: &[f32; LANES], m: &[f32; LANES], v: &[f32; LANES]) -> bool {
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= g[lane].abs().to_bits() | m[lane].to_bits() | v[lane].to_bits();
    }
    bits == 0
}

/// The equation.
#[inline(always)]
fn element(k: Constants, g: f32, p: &mut f32, m: &mut f32, v: &mut f32) {
    let g = g * k.scale;
    // Not 0·p: that would be a NaN for an infinite parameter.
    *p -= if k.decay == 0.0 { 0.0 } else { k.decay * *p };
    *m = without_negligible(*m + k.one_minus_beta1 * (g - *m));
    *v += k.one_minus_beta2 * (g * g - *v);
    *p -= k.alpha * *m / (v.sqrt() + k.eps);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};

    /// Four chunk-sized arrays in which whole groups have no gradient and no moments; among their parameters stand
    /// −0, ∞ and NaN.
    fn arrays() -> [Vec<f32>; 4] {
        let mut rng = Rng::new(11, Purpose::User, 0);
        let mut array = |idle: f32| -> Vec<f32> {
            (0..40 * LANES + 3)
                .map(|k| if k / LANES % 3 == 1 { idle } else { (rng.uniform() - 0.5) as f32 })
                .collect()
        };
        let (grads, mut params, m, v) = (array(-0.0), array(0.25), array(0.0), array(0.0));
        params[LANES..LANES + 4].copy_from_slice(&[-0.0, f32::INFINITY, f32::NAN, 1e-45]);
        [grads, params, m, v.iter().map(|x| x.abs()).collect()]
    }

    #[test]
    fn skipping_idle_elements_changes_no_bit() {
        let constants = |skip| Constants {
            one_minus_beta1: 0.1,
            one_minus_beta2: 0.001,
            alpha: 0.01,
            eps: 1e-7,
            scale: 0.5,
            decay: 0.0,
            skip,
        };
        let bits = |skip| {
            let [grads, mut params, mut m, mut v] = arrays();
            update(constants(skip), &grads, &mut params, &mut m, &mut v);
            [params, m, v].map(|array| array.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        };
        assert_eq!(bits(true), bits(false));
    }

    #[test]
    fn a_moment_that_fades_away_becomes_zero_and_never_subnormal() {
        let cpu = Cpu::new(1).unwrap();
        let (mut params, mut m, mut v) = (vec![0.5f32; 16], vec![1e-3f32; 16], vec![1e-6f32; 16]);
        for t in 1..2000 {
            let step = StepState::new(t, 1e-3, 0, 1);
            let a = Adam { grads: &[0.0; 16][..], params: &mut params, m: &mut m, v: &mut v };
            adam(&cpu, &AdamConfig::default(), &step, a).unwrap();
            assert!(m.iter().all(|x| !x.is_subnormal()), "step {t}: {m:?}");
        }
        assert_eq!(m, [0.0; 16]);
    }

    #[test]
    fn a_nan_gradient_spoils_a_clipped_step_visibly() {
        assert_eq!(clip(0.5, 1.0), 1.0);
        assert_eq!(clip(4.0, 1.0), 0.25);
        assert!(clip(f64::NAN, 1.0).is_nan());
    }
}
