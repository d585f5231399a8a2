//! `exp`, `sigmoid` and `tanh` in f32 without branches, tables or calls, the latter two on vectors of any instruction
//! set. Each is within 5 units in the last place of the true value over all of f32 (the tests below measure it),
//! infinities, subnormals and signed zeros included; a NaN stays a NaN.
//!
//! Only additions, multiplications (rounded together where the instruction set has that), divisions and bit operations,
//! each correctly rounded: the same bits on every processor with one instruction set.

use super::simd::Simd;

/// 1.5·2²³: adding it to a float below 2²² rounds to the nearest integer and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts; the first has 9 significant bits, so that `n·LN2_HI` is exact for every exponent `n`.
const LN2_HI: f32 = 355.0 / 512.0;
/// ln 2 − [`LN2_HI`].
const LN2_LO: f32 = -2.121_944_4e-4;

/// `x = n·ln 2 + r` with an integer `n` and |r| ≤ ln 2 / 2 (and a little): `n` and `exp(r) − 1`.
#[inline(always)]
fn reduce(x: f32) -> (i32, f32) {
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    // Minimax coefficients of Cephes' expf.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    (rounded.to_bits() as i32 - ROUND.to_bits() as i32, p * (r * r) + r)
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// eˣ.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these the result is 0 or ∞ anyway. Written so that a NaN passes through (`f32::min` would drop it).
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (n, expm1) = reduce(x);
    // Two factors: 2ⁿ itself may be out of range where the product is a subnormal or just below ∞.
    let half = n >> 1;
    (1.0 + expm1) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 1.5·2²³ + 127, see [`ROUND`]: leaves the rounded integer plus the exponent's bias in the low bits.
const ROUND_BIASED: f32 = ROUND + 127.0;

/// Chebyshev coefficients of (eʳ − 1 − r)/r² for |r| ≤ 0.3475; the error of r + r²·p is below 0.4 roundings.
const EXPM1: [f32; 5] = [0.5, 1.666_657_6e-1, 4.166_655_3e-2, 8.363_333e-3, 1.392_637_6e-3];

/// eʸ in parts: 2ⁿ and eʳ − 1 with y = n·ln 2 + r, for `rounded` = y·log₂e + [`ROUND_BIASED`] and |y| < 87.
///
/// Here and below one operation is done for all of the vectors before the next: each chain of dependent operations waits
/// for its own results, and a processor looks for others to do among the next few dozen instructions only.
#[inline(always)]
fn parts<S: Simd, const N: usize>(s: S, y: [S::V; N], rounded: [S::V; N]) -> ([S::V; N], [S::V; N]) {
    let (mut n, mut r, mut p, mut square, mut scale) = (rounded, y, y, y, rounded);
    for k in 0..N {
        n[k] = s.sub(rounded[k], s.splat(ROUND_BIASED));
    }
    for k in 0..N {
        r[k] = s.neg_mul_add(n[k], s.splat(LN2_HI), y[k]);
    }
    for k in 0..N {
        r[k] = s.neg_mul_add(n[k], s.splat(LN2_LO), r[k]);
    }
    for k in 0..N {
        p[k] = s.mul_add(s.splat(EXPM1[4]), r[k], s.splat(EXPM1[3]));
    }
    for coefficient in [EXPM1[2], EXPM1[1], EXPM1[0]] {
        for k in 0..N {
            p[k] = s.mul_add(p[k], r[k], s.splat(coefficient));
        }
    }
    for k in 0..N {
        square[k] = s.mul(r[k], r[k]);
    }
    for k in 0..N {
        p[k] = s.mul_add(p[k], square[k], r[k]);
        scale[k] = s.to_exponent(rounded[k]);
    }
    (scale, p)
}

/// Which function of a vector is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ)
    Tanh,
}

/// The functions of the lanes of vectors, `function[k % F]` of those of vector `k`; see [`parts`] for why there are many
/// at once.
#[inline(always)]
pub(super) fn apply<S: Simd, const N: usize, const F: usize>(
    s: S,
    function: [Function; F],
    x: [S::V; N],
) -> [S::V; N] {
    let (mut y, mut rounded) = (x, x);
    for k in 0..N {
        match function[k % F] {
            // The square of e^(x/2), whose exponent is in range even where the result is a subnormal. Beyond the limits
            // the result is 0 or 1.
            Function::Sigmoid => {
                let x = s.at_least(s.at_most(x[k], s.splat(40.0)), s.splat(-104.0));
                y[k] = s.mul(x, s.splat(0.5));
            }
            // From e^2x − 1, which keeps its relative accuracy where x is small; beyond 10 the result is ±1.
            Function::Tanh => {
                let x = s.at_least(s.at_most(x[k], s.splat(10.0)), s.splat(-10.0));
                y[k] = s.add(x, x);
            }
        }
    }
    for k in 0..N {
        rounded[k] = s.mul_add(y[k], s.splat(std::f32::consts::LOG2_E), s.splat(ROUND_BIASED));
    }
    let (scale, expm1) = parts(s, y, rounded);
    let (mut e, mut divisor) = (x, x);
    for k in 0..N {
        match function[k % F] {
            Function::Sigmoid => {
                let root = s.mul_add(scale[k], expm1[k], scale[k]);
                e[k] = s.mul(root, root);
            }
            Function::Tanh => e[k] = s.mul_add(scale[k], expm1[k], s.sub(scale[k], s.splat(1.0))),
        }
    }
    for k in 0..N {
        // Small results of the sigmoid are e itself and keep its relative accuracy.
        divisor[k] = s.add(e[k], s.splat(if function[k % F] == Function::Sigmoid { 1.0 } else { 2.0 }));
    }
    let mut result = x;
    for k in 0..N {
        result[k] = s.div(e[k], divisor[k]);
        if function[k % F] == Function::Tanh {
            // The sign is right but for −0.
            result[k] = s.or_sign(result[k], x[k]);
        }
    }
    result
}

/// The functions of the gates, in their order.
pub(super) const GATE_FUNCTIONS: [Function; 4] =
    [Function::Sigmoid, Function::Sigmoid, Function::Tanh, Function::Sigmoid];

/// Activates the gates of R rows, in place.
#[inline(always)]
pub(super) fn activate<S: Simd, const R: usize>(s: S, pre: &mut [[S::V; 4]; R]) {
    let mut row = 0;
    // As many chains as the registers have room for.
    while S::WIDE && row + 2 <= R {
        let [a, b] = [pre[row], pre[row + 1]];
        let [a0, a1, a2, a3, b0, b1, b2, b3] =
            apply(s, GATE_FUNCTIONS, [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]);
        (pre[row], pre[row + 1]) = ([a0, a1, a2, a3], [b0, b1, b2, b3]);
        row += 2;
    }
    while row < R {
        pre[row] = apply(s, GATE_FUNCTIONS, pre[row]);
        row += 1;
    }
}

/// (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ) of each lane.
#[inline(always)]
pub(super) fn tanhs<S: Simd, const N: usize>(s: S, x: [S::V; N]) -> [S::V; N] {
    apply(s, [Function::Tanh], x)
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Isa, Kernel};
    use super::*;

    /// The values of a function, in place.
    struct Apply<'a>(Function, &'a mut [f32]);

    impl Kernel for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for xs in self.1.chunks_mut(S::LANES) {
                let [y] = apply(s, [self.0], [s.get_part(xs)]);
                s.put_part(xs, y);
            }
        }
    }

    fn one(isa: Isa, function: Function, x: f32) -> f32 {
        let mut xs = [x];
        isa.run(Apply(function, &mut xs));
        xs[0]
    }

    /// Distance from the true value in units of the last place of the f32 next to it.
    fn ulps(found: f32, truth: f64) -> f64 {
        let nearest = truth as f32;
        if nearest.is_infinite() || found.is_infinite() {
            return if nearest == found { 0.0 } else { f64::INFINITY };
        }
        // The spacing of f32 at `nearest`; 2⁻¹⁴⁹ among subnormals.
        let exponent = (nearest.abs().to_bits() >> 23).max(1) as i32 - 127 - 23;
        (f64::from(found) - truth).abs() / 2f64.powi(exponent)
    }

    /// The worst error of `f` (values in place) over every `stride`-th bit pattern, which takes in NaN, ±∞, ±0 and
    /// subnormals.
    fn worst(stride: usize, f: impl Fn(&mut [f32]), truth: fn(f64) -> f64) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN];
        let edges = [f32::MIN_POSITIVE, 1e-45, -1e-45, 88.722_84, 88.7228, -87.336_55, -103.972_08, -104.0];
        let dense = (0..=u32::MAX).step_by(stride).map(f32::from_bits);
        let mut all = special.into_iter().chain(edges).chain(dense);
        loop {
            let xs: Vec<f32> = all.by_ref().take(4096).collect();
            if xs.is_empty() {
                return worst;
            }
            let mut found = xs.clone();
            f(&mut found);
            for (x, found) in xs.into_iter().zip(found) {
                if x.is_nan() {
                    assert!(found.is_nan(), "NaN became {found}");
                    continue;
                }
                let error = ulps(found, truth(f64::from(x)));
                if error.is_nan() || error > worst.0 {
                    worst = (error, x);
                }
            }
        }
    }

    /// 1/(1+e⁻ˣ) in f64; for x < −700 e⁻ˣ overflows to ∞ and the quotient is 0, as it should be in f32.
    fn sigmoid_f64(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn check(stride: usize) {
        let say = |name: &str, (error, x): (f64, f32)| {
            println!("{name}: worst {error:.3} ulp at {x:e}, every {stride}th f32");
            assert!(error <= 5.0, "{name} is {error} ulp off at {x:e}");
        };
        say("exp", worst(stride, |xs| xs.iter_mut().for_each(|x| *x = exp(*x)), f64::exp));
        for isa in Isa::available() {
            for (function, truth) in
                [(Function::Sigmoid, sigmoid_f64 as fn(f64) -> f64), (Function::Tanh, f64::tanh)]
            {
                let found = worst(stride, |xs| isa.run(Apply(function, xs)), truth);
                say(&format!("{function:?} on {isa}"), found);
            }
        }
    }

    #[test]
    fn activations_are_within_5_ulp() {
        // A prime stride: 4.2 million values of each function, in every binade.
        check(1021);
    }

    #[test]
    #[ignore = "every f32: minutes; run with --release -- --ignored --nocapture"]
    fn activations_are_within_5_ulp_everywhere() {
        check(1);
    }

    #[test]
    fn signs_and_limits_are_exact() {
        for isa in Isa::available() {
            let (tanh, sigmoid) = (|x| one(isa, Function::Tanh, x), |x| one(isa, Function::Sigmoid, x));
            assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
            assert_eq!(tanh(0.0).to_bits(), 0);
            assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
            assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY), sigmoid(0.0)), (1.0, 0.0, 0.5));
            assert_eq!(tanh(1e-40), 1e-40);
        }
        assert_eq!((exp(f32::INFINITY), exp(f32::NEG_INFINITY), exp(0.0)), (f32::INFINITY, 0.0, 1.0));
    }
}
