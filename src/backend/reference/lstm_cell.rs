//! LSTM, one time step (Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000, in
//! the form of Keras: one bias, no peepholes).
//!
//! ```text
//! pre = x·W + h_prev·U + b                     four blocks of H columns: i, f, g, o
//! i = sigmoid(pre_i)   f = sigmoid(pre_f)   g = tanh(pre_g)   o = sigmoid(pre_o)
//! c = f∘c_prev + i∘g
//! h = o∘tanh(c)
//! ```
//! Backward, with `dc_all` the whole gradient by `c`:
//! ```text
//! dc_all = dc + dh∘o∘(1 − tanh(c)²)
//! dpre_i = dc_all∘g∘i(1−i)        dpre_f = dc_all∘c_prev∘f(1−f)
//! dpre_g = dc_all∘i∘(1−g²)        dpre_o = dh∘tanh(c)∘o(1−o)
//! dx = dpre·Wᵀ   dh_prev = dpre·Uᵀ   dc_prev = dc_all∘f
//! dW += xᵀ·dpre  dU += h_prevᵀ·dpre  db += sum of dpre over the batch
//! ```
//! Shapes: `x` `[B,E]`, `h_prev c_prev h c` `[B,H]`, `w` `[E,4H]`, `u` `[H,4H]`, `b` `[4H]`, `gates` `[B,4H]`.

use super::at;
use crate::backend::{CellBackward, CellDims, CellForward, Real, gate};
use crate::error::Result;

/// `1/(1+e^−x)`, from whichever of `e^x` and `e^−x` cannot overflow.
pub fn sigmoid<T: Real>(x: T) -> T {
    if x < T::zero() {
        let e = x.exp();
        e / (T::one() + e)
    } else {
        T::one() / (T::one() + (-x).exp())
    }
}

/// Derivative of the sigmoid by its argument, from its output.
pub fn d_sigmoid<T: Real>(sigmoid_output: T) -> T {
    sigmoid_output * (T::one() - sigmoid_output)
}

/// Derivative of tanh by its argument, from its output.
pub fn d_tanh<T: Real>(tanh_output: T) -> T {
    T::one() - tanh_output * tanh_output
}

/// Assigns `gates` (the activated ones, for backward), `h` and `c`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for; nothing has been
/// written then.
pub fn forward<T: Real>(d: CellDims, a: CellForward<'_, [T]>) -> Result<()> {
    a.check(d)?;
    let CellDims { b: batch, e: inputs, h: hidden } = d;
    let columns = 4 * hidden;
    let CellForward { x, h_prev, c_prev, w, u, b, gates, h, c } = a;
    for row in 0..batch {
        for unit in 0..hidden {
            let pre = |gate: usize| {
                let col = at(hidden, gate, unit);
                let mut sum = b[col];
                for k in 0..inputs {
                    sum += x[at(inputs, row, k)] * w[at(columns, k, col)];
                }
                for k in 0..hidden {
                    sum += h_prev[at(hidden, row, k)] * u[at(columns, k, col)];
                }
                sum
            };
            let (i, f) = (sigmoid(pre(gate::I)), sigmoid(pre(gate::F)));
            let (g, o) = (pre(gate::G).tanh(), sigmoid(pre(gate::O)));
            for (gate, value) in [(gate::I, i), (gate::F, f), (gate::G, g), (gate::O, o)] {
                gates[at(columns, row, at(hidden, gate, unit))] = value;
            }
            let state = at(hidden, row, unit);
            c[state] = f * c_prev[state] + i * g;
            h[state] = o * c[state].tanh();
        }
    }
    Ok(())
}

/// Assigns `dx`, `dh_prev` and `dc_prev`; accumulates into `dw`, `du` and `db`, batch row by batch row.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for; nothing has been
/// written then.
pub fn backward<T: Real>(d: CellDims, a: CellBackward<'_, [T]>) -> Result<()> {
    backward_storing(d, a, |dpre| dpre)
}

/// [`backward`], with every `dpre` replaced by what `store` makes of it before anything reads it.
pub(super) fn backward_storing<T: Real>(
    d: CellDims,
    a: CellBackward<'_, [T]>,
    store: impl Fn(T) -> T,
) -> Result<()> {
    a.check(d)?;
    let CellDims { b: batch, e: inputs, h: hidden } = d;
    let columns = 4 * hidden;
    let mut dpre = vec![T::zero(); columns];
    for row in 0..batch {
        for unit in 0..hidden {
            let gate_at = |gate: usize| a.gates[at(columns, row, at(hidden, gate, unit))];
            let (i, f, g, o) = (gate_at(gate::I), gate_at(gate::F), gate_at(gate::G), gate_at(gate::O));
            let state = at(hidden, row, unit);
            let tanh_c = a.c[state].tanh();
            let dh = a.dh[state];
            let dc_all = a.dc[state] + dh * o * d_tanh(tanh_c);
            dpre[at(hidden, gate::I, unit)] = store(dc_all * g * d_sigmoid(i));
            dpre[at(hidden, gate::F, unit)] = store(dc_all * a.c_prev[state] * d_sigmoid(f));
            dpre[at(hidden, gate::G, unit)] = store(dc_all * i * d_tanh(g));
            dpre[at(hidden, gate::O, unit)] = store(dh * tanh_c * d_sigmoid(o));
            a.dc_prev[state] = dc_all * f;
        }
        for k in 0..inputs {
            let mut sum = T::zero();
            for (col, &dpre) in dpre.iter().enumerate() {
                sum += dpre * a.w[at(columns, k, col)];
                a.dw[at(columns, k, col)] += a.x[at(inputs, row, k)] * dpre;
            }
            a.dx[at(inputs, row, k)] = sum;
        }
        for k in 0..hidden {
            let mut sum = T::zero();
            for (col, &dpre) in dpre.iter().enumerate() {
                sum += dpre * a.u[at(columns, k, col)];
                a.du[at(columns, k, col)] += a.h_prev[at(hidden, row, k)] * dpre;
            }
            a.dh_prev[at(hidden, row, k)] = sum;
        }
        for (col, &dpre) in dpre.iter().enumerate() {
            a.db[col] += dpre;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sigmoid_neither_overflows_nor_loses_its_tails() {
        for x in [-1000.0, -700.0, -40.0, -1.0, -0.0, 0.0, 1.0, 40.0, 1000.0] {
            let y: f64 = sigmoid(x);
            assert!((0.0..=1.0).contains(&y), "sigmoid({x}) = {y}");
            assert!((sigmoid(-x) - (1.0 - y)).abs() < 1e-16, "sigmoid is odd round one half at {x}");
        }
        assert_eq!(sigmoid(0.0f32), 0.5);
        assert_eq!(sigmoid(-40.0f64), (-40.0f64).exp(), "the left tail keeps its relative precision");
        assert!(sigmoid(f32::NAN).is_nan());
        assert_eq!(sigmoid(f32::INFINITY), 1.0);
        assert_eq!(sigmoid(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn the_gates_stand_in_keras_order() {
        // Two units, so that a gate's block of columns and a unit's place in it could be mixed up.
        let pre = [-0.3, 1.1, 0.7, -1.9, 0.5, 2.2, -0.8, 0.1];
        let c_prev = [0.6, -1.4];
        let (mut gates, mut h, mut c) = ([f64::NAN; 8], [f64::NAN; 2], [f64::NAN; 2]);
        // Half of each pre-activation comes from the bias, a quarter from the input 0.5, a quarter from h_prev.
        let share = |factor: f64| pre.map(|p| p * factor);
        let u = [share(0.25), share(-1.0)].concat();
        let a = CellForward {
            x: &[0.5][..],
            h_prev: &[2.0, 0.25],
            c_prev: &c_prev,
            w: &share(0.5),
            u: &u,
            b: &share(0.5),
            gates: &mut gates,
            h: &mut h,
            c: &mut c,
        };
        forward(CellDims { b: 1, e: 1, h: 2 }, a).unwrap();
        for unit in 0..2 {
            let logistic = |x: f64| (1.0 + (x / 2.0).tanh()) / 2.0;
            let [i, f, o] = [0, 2, 6].map(|first| logistic(pre[first + unit]));
            let g = pre[4 + unit].tanh();
            let c_expected = f * c_prev[unit] + i * g;
            for (name, found, expected) in [
                ("i", gates[unit], i),
                ("f", gates[2 + unit], f),
                ("g", gates[4 + unit], g),
                ("o", gates[6 + unit], o),
                ("c", c[unit], c_expected),
                ("h", h[unit], o * c_expected.tanh()),
            ] {
                assert!(
                    (found - expected).abs() <= 1e-15,
                    "{name} of unit {unit}: {found}, expected {expected}"
                );
            }
        }
    }
}
