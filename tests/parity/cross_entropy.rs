//! `cross_entropy_forward` and `cross_entropy_backward`.

use std::borrow::{Borrow as _, BorrowMut as _};

use crate::harness::*;
use recurve::backend::{CrossEntropyBackward, CrossEntropyDims, CrossEntropyForward, Ops};

pub struct Forward;
pub struct Backward;

/// What is special about the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Within ±4.
    Plain,
    /// Small integers: many rows have several largest logits, of which the first counts.
    Tied,
    /// Within ±1000: probabilities underflow, the loss does not.
    Wide,
    /// Each row holds a NaN somewhere: its loss is NaN and it hits nothing.
    NotNumbers,
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub d: CrossEntropyDims,
    pub logits: Logits,
    /// With weights of the classes, 0.5 to 2.
    pub weighted: bool,
}

fn weights(case: &Case, random: &mut Random) -> Vec<f64> {
    random.uniform(case.d.c, 0.75).iter().map(|x| f64::from((x + 1.25) as f32)).collect()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (b, c) in [(1, 1), (32, 2), (19, 3), (257, 33), (33, 257), (99, 31), (0, 2), (0, 0)] {
        for logits in [Logits::Plain, Logits::Tied, Logits::Wide, Logits::NotNumbers] {
            for weighted in [false, true] {
                cases.push(Case { d: CrossEntropyDims { b, c }, logits, weighted });
            }
        }
    }
    cases
}

impl Operation for Forward {
    const NAME: &'static str = "cross_entropy_forward";
    type Case = Case;

    fn cases() -> Vec<Case> {
        cases()
    }

    fn arrays(case: &Case, random: &mut Random) -> Arrays {
        let CrossEntropyDims { b, c } = case.d;
        let logits: Vec<f64> = match case.logits {
            Logits::Plain => random.uniform(b * c, 4.0),
            Logits::Tied => random.uniform(b * c, 2.0).into_iter().map(f64::round).collect(),
            Logits::Wide => random.uniform(b * c, 1000.0),
            Logits::NotNumbers => {
                let mut logits = random.uniform(b * c, 4.0);
                for (row, line) in logits.chunks_mut(c.max(1)).enumerate() {
                    line[row % c] = f64::NAN;
                }
                logits
            }
        };
        // Shifting logits by the largest rounds the difference, which is up to twice `scale`: half an ulp of it is an
        // absolute error of the exponent, so a relative one of every probability.
        let scale = if case.logits == Logits::Wide { 2000.0 } else { 8.0 };
        // A growing sum of c positive numbers is rounded c times, half of it on average, and always in one direction
        // if its terms are equal. `exp` adds a few roundings; subnormals (below 1.2e-38) may be flushed.
        let sum = c as f64 / 2.0;
        let probs = Tolerance { atol: 1.2e-38, rtol: (scale + 4.0 + sum) * ROUNDING };
        // The loss is a logarithm, whose error is absolute, and a difference of logits.
        // A weight of up to 2 multiplies it, in one more rounding.
        let (more, weight) = if case.weighted { (1.0, 2.0) } else { (0.0, 1.0) };
        let absolute = 4.0 + sum + if case.logits == Logits::Wide { 0.0 } else { scale };
        let loss = roundings(2.0 + more, absolute, weight);
        Arrays {
            inputs: vec![logits, weights(case, random)],
            ids: vec![random.ids(b, c)],
            outputs: vec![
                assigned("probs", b * c, probs),
                assigned("loss", b, loss),
                assigned("hits", b, EXACT),
            ],
        }
    }

    fn call<O: Ops>(ops: &O, case: &Case, on: &mut Buffers<O>) -> recurve::Result<()> {
        let ([logits, weights], [labels]) = (&on.inputs[..], &on.ids[..]) else { unreachable!() };
        let [probs, loss, hits] = &mut on.outputs[..] else { unreachable!() };
        ops.cross_entropy_forward(
            case.d,
            CrossEntropyForward {
                logits: logits.borrow(),
                labels: labels.borrow(),
                class_weights: case.weighted.then(|| weights.borrow()),
                probs: probs.borrow_mut(),
                loss: loss.borrow_mut(),
                hits: hits.borrow_mut(),
            },
        )
    }
}

impl Operation for Backward {
    const NAME: &'static str = "cross_entropy_backward";
    type Case = Case;

    fn cases() -> Vec<Case> {
        cases().into_iter().filter(|case| case.logits == Logits::Plain).collect()
    }

    fn arrays(case: &Case, random: &mut Random) -> Arrays {
        let CrossEntropyDims { b, c } = case.d;
        Arrays {
            inputs: vec![
                random.uniform(b * c, 0.5).iter().map(|x| f64::from((x + 0.5) as f32)).collect(),
                weights(case, random),
            ],
            ids: vec![random.ids(b, c)],
            // A difference (exact but for the label's: half an ulp of at most 1, divided by B) and a quotient, or a
            // product with the rounded 1/B; and the weight.
            outputs: vec![assigned(
                "dlogits",
                b * c,
                roundings(if case.weighted { 4.0 } else { 3.0 }, 0.0, 0.0),
            )],
        }
    }

    fn call<O: Ops>(ops: &O, case: &Case, on: &mut Buffers<O>) -> recurve::Result<()> {
        let ([probs, weights], [labels], [dlogits]) = (&on.inputs[..], &on.ids[..], &mut on.outputs[..])
        else {
            unreachable!()
        };
        ops.cross_entropy_backward(
            case.d,
            CrossEntropyBackward {
                probs: probs.borrow(),
                labels: labels.borrow(),
                class_weights: case.weighted.then(|| weights.borrow()),
                dlogits: dlogits.borrow_mut(),
            },
        )
    }
}
