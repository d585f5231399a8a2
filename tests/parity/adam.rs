//! `adam`: a few steps in a row, with and without weight decay and clipping. A third of the elements have neither
//! gradient nor moments, as the embedding's unused rows.

use std::borrow::{Borrow as _, BorrowMut as _};

use crate::harness::*;
use recurve::backend::{Adam, AdamConfig, Ops, StepState};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub n: usize,
    pub first: u64,
    pub steps: u64,
    pub weight_decay: f32,
    pub clip_norm: f32,
}

pub struct Steps;

/// The configuration of all cases: every field other than the default, so that none is ignored unseen.
const CONFIG: AdamConfig = AdamConfig { beta1: 0.875, beta2: 0.99, eps: 3e-7 };
const LR: f32 = 0.01;

impl Operation for Steps {
    const NAME: &'static str = "adam";
    type Case = Case;

    fn cases() -> Vec<Case> {
        let case =
            |n, first, steps, weight_decay, clip_norm| Case { n, first, steps, weight_decay, clip_norm };
        vec![
            case(0, 1, 1, 0.0, 0.0),
            case(1, 1, 3, 0.0, 0.0),
            case(19, 1, 5, 0.0, 0.0),
            case(257, 1000, 5, 0.0, 0.0),
            case(99, 1, 3, 0.1, 0.0),
            // A norm above the limit, and one below.
            case(8193, 7, 3, 0.0, 0.5),
            case(33, 1, 3, 0.0, 1e6),
            // Large enough for threads, and no multiple of anything.
            case(40_009, 2, 3, 0.0, 0.0),
            case(40_009, 2, 2, 0.3, 0.7),
        ]
    }

    fn arrays(case: &Case, random: &mut Random) -> Arrays {
        let n = case.n;
        let idle = |index: usize| index / 40 % 3 == 1;
        let mut draw = |scale| -> Vec<f64> {
            let drawn = random.uniform(n, scale);
            drawn.into_iter().enumerate().map(|(index, x)| if idle(index) { 0.0 } else { x }).collect()
        };
        let (grads, m) = (draw(1.0), draw(0.1));
        let v = draw(0.1).into_iter().map(|x| x.abs() + if x == 0.0 { 0.0 } else { 1e-3 });
        let v = v.map(|x| f64::from(x as f32)).collect();
        let steps = case.steps as f64;
        // Each step rounds each moment three times (and the clipped gradient once more), and the parameter once. Its
        // update is at most a few times alpha ≈ LR·10 here, and off by some ten roundings.
        let moment = roundings(4.0 * steps, 2.0 * steps, 0.1);
        let params = roundings(2.0 * steps, 10.0 * steps, 5.0 * f64::from(LR));
        Arrays {
            inputs: vec![grads],
            outputs: vec![
                updated("params", random.uniform(n, 1.0), params),
                updated("m", m, moment),
                updated("v", v, moment),
            ],
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, case: &Case, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [grads] = &on.inputs[..] else { unreachable!() };
        let [params, m, v] = &mut on.outputs[..] else { unreachable!() };
        for t in case.first..case.first + case.steps {
            let mut step = StepState::new(t, LR, 0, 32);
            (step.weight_decay, step.clip_norm) = (case.weight_decay, case.clip_norm);
            ops.adam(
                &CONFIG,
                &step,
                Adam {
                    grads: grads.borrow(),
                    params: params.borrow_mut(),
                    m: m.borrow_mut(),
                    v: v.borrow_mut(),
                },
            )?;
        }
        Ok(())
    }
}
