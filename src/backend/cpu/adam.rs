//! Adam over an arena in one pass, with decoupled weight decay and clipping by the global norm.

use super::simd::{Kernel, Simd};
use super::{Cpu, NEGLIGIBLE};
use crate::backend::{Adam, AdamConfig, StepState};
use crate::error::Result;

/// Elements of one parallel task, and of one part of the norm.
const CHUNK: usize = 8192;
/// Work of one element in multiply-adds: a root and a quotient.
const WORK: usize = 8;

/// The step's numbers, rounded to f32 once.
#[derive(Clone, Copy)]
pub(super) struct Constants {
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
    let constants = Constants::new(config, step, scale);
    let n = a.params.len();
    let tasks: Vec<_> = a
        .grads
        .chunks(CHUNK)
        .zip(a.params.chunks_mut(CHUNK))
        .zip(a.m.chunks_mut(CHUNK).zip(a.v.chunks_mut(CHUNK)))
        .collect();
    let isa = cpu.isa();
    cpu.each(n * WORK, tasks, |((grads, params), (m, v))| {
        isa.run(Update { k: constants, grads, params, m, v });
    });
    Ok(())
}

impl Constants {
    /// Those of `step`, with gradients multiplied by `scale`.
    pub(super) fn new(config: &AdamConfig, step: &StepState, scale: f32) -> Self {
        let alpha = config.alpha(f64::from(step.lr), step.t) as f32;
        let eps = config.eps as f32;
        let decay = (f64::from(step.lr) * f64::from(step.weight_decay)) as f32;
        Self {
            one_minus_beta1: (1.0 - config.beta1) as f32,
            one_minus_beta2: (1.0 - config.beta2) as f32,
            alpha,
            eps,
            scale,
            decay,
            // p − alpha·0/(0+eps) is p for these, and only for these.
            skip: decay == 0.0 && alpha.is_finite() && alpha >= 0.0 && eps > 0.0 && scale.is_finite(),
        }
    }
}

/// The factor that brings a gradient of this norm down to `clip` (Keras' `global_clipnorm`); NaN for a norm that is
/// NaN.
pub(super) fn clip(norm: f64, clip: f64) -> f32 {
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
struct Update<'a> {
    k: Constants,
    grads: &'a [f32],
    params: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { k, grads, params, m, v } = self;
        update(s, k, |at| s.get(&grads[at..]), |at, tail| tail.copy_from_slice(&grads[at..]), params, m, v);
    }
}

/// Updates a run of elements. `g(at)` are the gradients from element `at` on; `g_tail(at, tail)` copies the gradients
/// of the last elements, too few for a vector.
#[inline(always)]
pub(super) fn update<S: Simd>(
    s: S,
    k: Constants,
    g: impl Fn(usize) -> S::V,
    g_tail: impl Fn(usize, &mut [f32]),
    params: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    let whole = params.len() / S::LANES * S::LANES;
    let (params, params_tail) = params.split_at_mut(whole);
    let (m, m_tail) = m.split_at_mut(whole);
    let (v, v_tail) = v.split_at_mut(whole);
    let arrays =
        params.chunks_exact_mut(S::LANES).zip(m.chunks_exact_mut(S::LANES).zip(v.chunks_exact_mut(S::LANES)));
    for (index, (p, (m, v))) in arrays.enumerate() {
        vector(s, k, g(index * S::LANES), p, m, v);
    }
    let n = params_tail.len();
    if n > 0 {
        // Through vectors that are filled up with elements that stay zero.
        let [mut g, mut p, mut m, mut v] = [[0.0; 16]; 4];
        g_tail(whole, &mut g[..n]);
        p[..n].copy_from_slice(params_tail);
        m[..n].copy_from_slice(m_tail);
        v[..n].copy_from_slice(v_tail);
        vector(s, k, s.get(&g), &mut p, &mut m, &mut v);
        params_tail.copy_from_slice(&p[..n]);
        m_tail.copy_from_slice(&m[..n]);
        v_tail.copy_from_slice(&v[..n]);
    }
}

/// The equation.
#[inline(always)]
fn vector<S: Simd>(
    s: S,
    k: Constants,
    g: S::V,
    params: &mut [f32],
    moment1: &mut [f32],
    moment2: &mut [f32],
) {
    let (m, v) = (s.get(moment1), s.get(moment2));
    if k.skip && s.are_zero(g, m, v) {
        return;
    }
    let g = s.mul(g, s.splat(k.scale));
    let mut p = s.get(params);
    // Not 0·p: that would be a NaN for an infinite parameter.
    if k.decay != 0.0 {
        p = s.neg_mul_add(s.splat(k.decay), p, p);
    }
    let m = s.mul_add(s.splat(k.one_minus_beta1), s.sub(g, m), m);
    let m = s.without_below(m, s.splat(NEGLIGIBLE));
    let v = s.mul_add(s.splat(k.one_minus_beta2), s.sub(s.mul(g, g), v), v);
    let root = s.add(s.sqrt(v), s.splat(k.eps));
    let p = s.sub(p, s.div(s.mul(s.splat(k.alpha), m), root));
    s.put(params, p);
    s.put(moment1, m);
    s.put(moment2, v);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;
    use crate::rng::{Purpose, Rng};

    /// The longest vector of any instruction set.
    const LANES: usize = 16;

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
        for isa in Isa::available() {
            let bits = |skip| {
                let [grads, mut params, mut m, mut v] = arrays();
                let k = constants(skip);
                isa.run(Update { k, grads: &grads, params: &mut params, m: &mut m, v: &mut v });
                [params, m, v].map(|array| array.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            };
            assert_eq!(bits(true), bits(false), "{isa}");
        }
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
