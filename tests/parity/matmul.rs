//! `matmul`: every way to transpose, assigned and accumulated, around the edges of tiles.

use std::borrow::{Borrow as _, BorrowMut as _};

use crate::harness::*;
use recurve::backend::{Matmul, MatmulDims, Ops};

#[derive(Debug)]
pub struct Case {
    pub d: MatmulDims,
    pub accumulate: bool,
}

pub struct Product;

impl Operation for Product {
    const NAME: &'static str = "matmul";
    type Case = Case;

    fn cases() -> Vec<Case> {
        let shapes = [
            (1, 1, 1),
            (19, 31, 33),
            (33, 257, 19),
            (99, 33, 257),
            (257, 99, 31),
            (1, 257, 99),
            (257, 1, 1),
            (31, 19, 1),
            // Longer than one piece of the summed dimension on any back end so far.
            (33, 600, 33),
            // Many tiles; loads by fours of both operands, of one, of none.
            (1024, 20, 768),
            (833, 9, 899),
            (0, 3, 4),
            (3, 0, 4),
            (3, 4, 0),
        ];
        let mut cases = Vec::new();
        for (m, k, n) in shapes {
            for (ta, tb, accumulate) in
                [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
            {
                cases.push(Case { d: MatmulDims { m, k, n, ta, tb }, accumulate });
            }
        }
        cases
    }

    fn arrays(case: &Case, random: &mut Random) -> Arrays {
        let MatmulDims { m, k, n, .. } = case.d;
        // Products of two uniform numbers within ±1.
        let tolerance = sum_of(k, 1.0 / 3.0);
        let out = match case.accumulate {
            true => updated("out", random.uniform(m * n, 1.0), tolerance),
            false => assigned("out", m * n, tolerance),
        };
        Arrays {
            inputs: vec![random.uniform(m * k, 1.0), random.uniform(k * n, 1.0)],
            outputs: vec![out],
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, case: &Case, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [a, b] = &on.inputs[..] else { unreachable!() };
        let [out] = &mut on.outputs[..] else { unreachable!() };
        ops.matmul(
            case.d,
            Matmul { a: a.borrow(), b: b.borrow(), out: out.borrow_mut(), accumulate: case.accumulate },
        )
    }
}
