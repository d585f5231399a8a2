//! Adam (Kingma & Ba 2015) in Keras' form, over a whole arena of parameters.
//!
//! ```text
//! g' = g · clip/max(norm, clip)                  norm over the arena; only if clip > 0 (Keras' global_clipnorm)
//! p −= lr·weight_decay·p                         decoupled (Loshchilov & Hutter 2019), before Adam's own update
//! m += (1−beta1)·(g'−m)
//! v += (1−beta2)·(g'²−v)
//! alpha = lr·sqrt(1−beta2^t)/(1−beta1^t)
//! p −= alpha·m/(sqrt(v)+eps)
//! ```
//! Shapes: `grads params m v` `[n]`. The constants are computed in f64 and rounded once to the precision of the
//! arrays. Every element is updated in every step: a parameter whose gradient is zero keeps moving on its momentum.

use crate::backend::{Adam, AdamConfig, Real, StepState};
use crate::error::Result;

/// What [`update`] multiplies with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// The bias-corrected learning rate: [`AdamConfig::alpha`], or what another program computed in its place.
    pub alpha: f64,
    /// `lr·weight_decay`; 0 is off.
    pub decay: f64,
    /// Multiplies every gradient: [`clip_scale`]; 1 is off.
    pub scale: f64,
}

impl Factors {
    /// `alpha` alone, without weight decay and clipping.
    pub fn new(alpha: f64) -> Self {
        Self { alpha, decay: 0.0, scale: 1.0 }
    }
}

/// One step: updates `params`, `m` and `v`, leaves `grads` as it is.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays differ in length or `step.t` is 0 (steps count from 1); nothing has been written
/// then.
///
/// # Examples
/// The first step moves every parameter by almost exactly the learning rate, against its gradient's sign.
/// ```
/// use recurve::backend::{Adam, AdamConfig, StepState, reference::adam};
///
/// let (mut params, mut m, mut v) = ([1.0f32, 1.0], [0.0; 2], [0.0; 2]);
/// let step = StepState::new(1, 0.125, 0, 32);
/// adam::step(
///     &AdamConfig::default(),
///     &step,
///     Adam { grads: &[20.0, -3.0][..], params: &mut params, m: &mut m, v: &mut v },
/// )?;
/// assert!((params[0] - 0.875).abs() < 1e-6 && (params[1] - 1.125).abs() < 1e-6);
/// # Ok::<(), recurve::Error>(())
/// ```
pub fn step<T: Real>(config: &AdamConfig, step: &StepState, a: Adam<'_, [T]>) -> Result<()> {
    a.check(step)?;
    let lr = f64::from(step.lr);
    let factors = Factors {
        alpha: config.alpha(lr, step.t),
        decay: lr * f64::from(step.weight_decay),
        scale: clip_scale(a.grads, f64::from(step.clip_norm)),
    };
    update(config, factors, a)
}

/// The update with all factors given: what a comparison with another program needs, whose `alpha` was computed in
/// another precision. Updates `params`, `m` and `v`, leaves `grads` as it is.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays differ in length; nothing has been written then.
pub fn update<T: Real>(config: &AdamConfig, factors: Factors, a: Adam<'_, [T]>) -> Result<()> {
    a.check_extents()?;
    let one_minus_beta1 = T::from_f64(1.0 - config.beta1);
    let one_minus_beta2 = T::from_f64(1.0 - config.beta2);
    let eps = T::from_f64(config.eps);
    let alpha = T::from_f64(factors.alpha);
    let decay = T::from_f64(factors.decay);
    let scale = T::from_f64(factors.scale);
    for (((&g, p), m), v) in a.grads.iter().zip(a.params).zip(a.m).zip(a.v) {
        let g = g * scale;
        if factors.decay != 0.0 {
            *p -= decay * *p;
        }
        *m += one_minus_beta1 * (g - *m);
        *v += one_minus_beta2 * (g * g - *v);
        *p -= alpha * *m / (v.sqrt() + eps);
    }
    Ok(())
}

/// `clip_norm/max(norm, clip_norm)` with the Euclidean norm of all of `grads`, its squares summed in f64 in the order
/// of the arena; 1 if `clip_norm` is 0 (off) or less. A NaN gradient makes it NaN, as in Keras: one bad element spoils the
/// whole step, visibly.
pub fn clip_scale<T: Real>(grads: &[T], clip_norm: f64) -> f64 {
    if clip_norm <= 0.0 {
        return 1.0;
    }
    let mut sum = 0.0;
    for g in grads {
        sum += g.as_f64() * g.as_f64();
    }
    let norm = f64::sqrt(sum);
    if norm <= clip_norm { 1.0 } else { clip_norm / norm }
}
