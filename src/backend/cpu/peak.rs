//! The most multiply-adds that this machine does: what products are measured against.

use super::Cpu;
use super::simd::{Kernel, Simd};
use std::time::{Duration, Instant};

/// Independent sums: enough to hide an instruction's latency, few enough for 16 registers.
const SUMS: usize = 12;
/// Turns of one task.
const TURNS: usize = 20_000;

/// Multiply-adds on registers alone.
struct Spin {
    /// Close to one, from outside, so that nothing is known when this is compiled.
    factor: f32,
}

impl Kernel for Spin {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(self.factor), s.splat(1.0 - self.factor));
        let mut sums = [s.splat(self.factor); SUMS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = s.mul_add(*sum, a, b);
            }
        }
        let mut total = s.splat(0.0);
        for sum in sums {
            total = s.add(total, sum);
        }
        let mut lanes = [0.0; 16];
        s.put(&mut lanes, total);
        lanes[0]
    }
}

/// Floating-point operations a second (a multiply-add is two) that all threads of `cpu` reach together on registers
/// alone, at best, measured for about as long as `spend`.
pub fn fma_peak(cpu: &Cpu, spend: Duration) -> f64 {
    let flop = (2 * SUMS * TURNS * cpu.isa().lanes() * cpu.threads()) as f64;
    let mut tasks = vec![0.0f32; cpu.threads()];
    let (begun, mut best) = (Instant::now(), f64::INFINITY);
    while begun.elapsed() < spend {
        let turn = Instant::now();
        cpu.pool.each(&mut tasks, |task| *task = cpu.isa().run(Spin { factor: std::hint::black_box(0.999) }));
        best = best.min(turn.elapsed().as_secs_f64());
        std::hint::black_box(&tasks);
    }
    flop / best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;

    #[test]
    fn every_instruction_set_has_a_peak() {
        for isa in Isa::available() {
            let peak = fma_peak(&Cpu::with_isa(2, isa).unwrap(), Duration::from_millis(20));
            println!("{isa}: {:.1} GFLOP/s", peak / 1e9);
            assert!(peak.is_finite() && peak > 1e6);
        }
    }
}
