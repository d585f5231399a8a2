//! `fill`.

use std::borrow::BorrowMut as _;

use crate::harness::*;
use recurve::backend::Ops;

pub struct Fill;

const VALUE: f64 = -1.25;

impl Operation for Fill {
    const NAME: &'static str = "fill";
    /// Elements.
    type Case = usize;

    fn cases() -> Vec<usize> {
        vec![0, 1, 19, 255, 256, 257, 40_009]
    }

    fn arrays(n: &usize, _: &mut Random) -> Arrays {
        Arrays { outputs: vec![assigned("buf", *n, EXACT)], ..Arrays::default() }
    }

    fn call<O: Ops>(ops: &O, _: &usize, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [buf] = &mut on.outputs[..] else { unreachable!() };
        ops.fill(buf.borrow_mut(), VALUE)
    }
}
