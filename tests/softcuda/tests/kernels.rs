//! Real NVRTC output against the same computation on the host, bit for bit.
#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use softcuda::Shape;

#[test]
fn vector_add_at_odd_sizes() {
    for n in [1usize, 19, 31, 33, 99, 257] {
        let mut g = Gpu::new(BASIC);
        let (a, b) = (noise(n, 1), noise(n, 2));
        let (da, db, out) = (g.put(&a[..]), g.put(&b[..]), g.empty(4 * n as u64));
        g.ok("vector_add", Shape::linear(n.div_ceil(64) as u32, 64), &[&da, &db, &out, &(n as i32)]);
        let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(g.get32(out, n), bits(&want));
    }
}

#[test]
fn vectors_of_four() {
    let mut g = Gpu::new(BASIC);
    let (y, x) = (noise(400, 3), noise(400, 4));
    let (dy, dx) = (g.put(&y[..]), g.put(&x[..]));
    g.ok("axpy4", Shape::linear(4, 32), &[&dy, &dx, &0.7f32, &100u32]);
    let want: Vec<f32> = y.iter().zip(&x).map(|(y, x)| 0.7f32.mul_add(*x, *y)).collect();
    assert_eq!(g.get32(dy, 400), bits(&want));
}

#[test]
fn block_sum_is_a_tree() {
    let mut g = Gpu::new(BASIC);
    let x = noise(1000, 5);
    let (dx, out) = (g.put(&x[..]), g.empty(8 * 4));
    let shape = Shape { dynamic_shared: 128 * 4, ..Shape::linear(8, 128) };
    g.ok("block_sum", shape, &[&dx, &out, &1000i32]);
    let want: Vec<f32> = (0..8)
        .map(|b| {
            let mut p: Vec<f32> = (0..128).map(|t| x.get(b * 128 + t).copied().unwrap_or(0.0)).collect();
            for step in [64, 32, 16, 8, 4, 2, 1] {
                for t in 0..step {
                    p[t] += p[t + step];
                }
            }
            p[0]
        })
        .collect();
    assert_eq!(g.get32(out, 8), bits(&want));
}

#[test]
fn warp_sum_by_shuffles() {
    let mut g = Gpu::new(BASIC);
    let x = noise(700, 6);
    let (dx, out) = (g.put(&x[..]), g.empty(3 * 4));
    g.ok("warp_sum", Shape::linear(3, 256), &[&dx, &out, &700i32]);
    let tree = |mut v: Vec<f32>| {
        for d in [16, 8, 4, 2, 1] {
            v = (0..32).map(|l| v[l] + v[l ^ d]).collect();
        }
        v[0]
    };
    let want: Vec<f32> = (0..3)
        .map(|b| {
            let mut part: Vec<f32> = (0..8)
                .map(|w| tree((0..32).map(|l| x.get(b * 256 + w * 32 + l).copied().unwrap_or(0.0)).collect()))
                .collect();
            part.resize(32, 0.0);
            tree(part)
        })
        .collect();
    assert_eq!(g.get32(out, 3), bits(&want));
}

#[test]
fn tiled_gemm() {
    for (m, n, k) in [(1usize, 1usize, 1usize), (17, 33, 19), (32, 48, 64)] {
        let mut g = Gpu::new(BASIC);
        let (a, b) = (noise(m * k, 7), noise(k * n, 8));
        let (da, db, c) = (g.put(&a[..]), g.put(&b[..]), g.empty((m * n * 4) as u64));
        let shape = Shape {
            grid: [n.div_ceil(16) as u32, m.div_ceil(16) as u32, 1],
            block: [16, 16, 1],
            dynamic_shared: 0,
        };
        g.ok("gemm", shape, &[&da, &db, &c, &(m as i32), &(n as i32), &(k as i32)]);
        let mut want = Vec::new();
        for r in 0..m {
            for q in 0..n {
                want.push((0..k).fold(0f32, |s, i| a[r * k + i].mul_add(b[i * n + q], s)));
            }
        }
        let pad = |v: Vec<f32>| v.iter().map(|x| x + 0.0).collect::<Vec<f32>>();
        assert_eq!(g.get32(c, m * n), bits(&pad(want)));
    }
}

fn exp_poly(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 0.008333334f32;
    for k in [0.041666668f32, 0.16666667, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, k);
    }
    p * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

#[test]
fn lstm_cell_with_a_call_a_struct_a_table_and_a_counter() {
    let (batch, hidden) = (5usize, 19usize);
    let mut g = Gpu::new(LSTM);
    let stride = 4 * hidden + 3;
    let pre: Vec<f32> = noise(batch * stride, 9).iter().map(|x| x * 6.0).collect();
    let c_prev = noise(batch * hidden, 10);
    let n = batch * hidden;
    let (dp, dc, c, h) = (g.put(&pre[..]), g.put(&c_prev[..]), g.empty(4 * n as u64), g.empty(4 * n as u64));
    let mut dims = Vec::new();
    dims.extend((batch as i32).to_le_bytes());
    dims.extend((hidden as i32).to_le_bytes());
    dims.extend(1f32.to_le_bytes());
    dims.extend([0; 4]);
    dims.extend((stride as i64).to_le_bytes());
    let (dp8, dc8, c8, h8) = (dp.to_le_bytes(), dc.to_le_bytes(), c.to_le_bytes(), h.to_le_bytes());
    let args: [&[u8]; 5] = [&dp8, &dc8, &c8, &h8, &dims];
    g.dev.launch(&g.module, "lstm_cell", Shape::linear(2, 64), &args).unwrap_or_else(|e| panic!("{e}"));
    let sigmoid = |x: f32| 1.0 / (1.0 + exp_poly(-x));
    let tanh = |x: f32| {
        let e = exp_poly(2.0 * x);
        (e - 1.0) / (e + 1.0)
    };
    let (mut wc, mut wh) = (Vec::new(), Vec::new());
    for row in 0..batch {
        for u in 0..hidden {
            let p = |gate: usize| pre[row * stride + u + gate * hidden];
            let cn = sigmoid(p(1) + 1.0) * c_prev[row * hidden + u] + sigmoid(p(0)) * tanh(p(2));
            wc.push(cn);
            wh.push(sigmoid(p(3)) * tanh(cn));
        }
    }
    assert_eq!(g.get32(c, n), bits(&wc));
    assert_eq!(g.get32(h, n), bits(&wh));
    let (calls, size) = g.module.global("g_calls").unwrap();
    assert_eq!((g.get32(calls, 1)[0], size), (8, 8));
}

#[test]
fn lanes_leave_a_loop_at_different_times() {
    let mut g = Gpu::new(FLOW);
    let out = g.empty(4 * 300);
    g.ok("collatz", Shape::linear(5, 64), &[&out, &300u32]);
    let want: Vec<u32> = (1..=300u64)
        .map(|mut x| {
            let mut s = 0;
            while x != 1 {
                x = if x & 1 == 1 { 3 * x + 1 } else { x >> 1 };
                s += 1;
            }
            s
        })
        .collect();
    assert_eq!(g.get32(out, 300), want);
}

#[test]
fn divergent_lanes_meet_again() {
    let mut g = Gpu::new(FLOW);
    let input: Vec<i32> = (0..32).map(|i| i * 7919 % 1000).collect();
    let (inp, out) = (g.put(&input[..]), g.empty(128));
    g.ok("reconverge", Shape::linear(1, 32), &[&out, &inp]);
    let v: Vec<i32> = (0..32i32)
        .map(|l| {
            let v = input[l as usize];
            match v % 5 {
                0 => v * 3 + 1,
                1 => v - l * 7,
                2 => (0..l).fold(v, |v, k| v ^ k.wrapping_mul(v)),
                3 => (v.count_ones() + v.leading_zeros()) as i32,
                _ => (v as u32).reverse_bits() as i32 >> 3,
            }
        })
        .collect();
    let even = (0..32).fold(0u32, |m, l| m | u32::from(v[l] & 1 == 0) << l);
    let want: Vec<u32> = (0..32).map(|l| v[if l > 0 { l - 1 } else { 0 }] as u32 ^ even).collect();
    assert_eq!(g.get32(out, 32), want);
}

#[test]
fn atomics_on_shared_and_global_memory_by_any_number_of_host_threads() {
    let keys: Vec<u8> = (0..5000u32).map(|i| (i * i % 251) as u8).collect();
    for threads in [1, 2, 5] {
        let mut g = Gpu::new(FLOW);
        g.dev.threads = threads;
        let (dk, counts) = (g.put(&keys[..]), g.put(&[0u32; 256][..]));
        g.ok("histogram", Shape::linear(7, 96), &[&counts, &dk, &5000i32]);
        let mut want = vec![0; 256];
        keys.iter().for_each(|k| want[usize::from(*k)] += 1);
        assert_eq!(g.get32(counts, 256), want);
    }
}

#[test]
fn local_memory_is_each_threads_own() {
    let mut g = Gpu::new(FLOW);
    let order = [3, 1, 4, 0, 5, 2, 7, 6];
    let (d, out) = (g.put(&order[..]), g.empty(4 * 40));
    g.ok("local_scratch", Shape::linear(1, 40), &[&out, &d]);
    let want: Vec<u32> = (0..40)
        .map(|t| {
            let mut s = [0i32; 8];
            (0..8).for_each(|k| s[order[k as usize] as usize] = k * k + t);
            (0..8).fold(0, |sum, k| sum * 3 + s[order[7 - k] as usize]) as u32
        })
        .collect();
    assert_eq!(g.get32(out, 40), want);
}

#[test]
fn library_functions_come_near_the_hosts() {
    let mut g = Gpu::new(WIDE);
    let x: Vec<f32> = noise(99, 11).iter().map(|v| v * 4.0).collect();
    let (dx, out) = (g.put(&x[..]), g.empty(4 * 99));
    g.ok("math", Shape::linear(2, 64), &[&out, &dx, &99i32]);
    let erf = |x: f64| {
        // The series, enough for |x| <= 4.
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    };
    for (i, got) in g.get32(out, 99).into_iter().enumerate() {
        let v = f64::from(x[i]);
        let a = v.abs();
        let want = 2.0 * v.exp()
            + (a + 1.0).ln()
            + v.tanh()
            + a.sqrt()
            + (a + 0.5).powf(1.5)
            + erf(v)
            + 1.0 / (v * v + 1.0).sqrt()
            + v.floor()
            + v.ceil()
            + v.round()
            + v.trunc()
            + v % f64::from(0.3f32)
            + 2.0 * (v * v + 1.0).ln()
            + v / 3.0
            + 1f64.copysign(v)
            + v.sin()
            + v.cos()
            + 1.0 / f64::from(x[i] + 3.0)
            + (v - 0.1).max(0.0)
            + v.cbrt()
            + v.clamp(0.0, 1.0);
        // Some twenty functions, each within a few units of the last place of the largest term.
        let got = f64::from(f32::from_bits(got));
        assert!((got - want).abs() <= 3e-6 * (1.0 + want.abs() + 2.0 * v.exp()), "{v}: {got} {want}");
    }
    let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let (dx, out) = (g.put(&x[..]), g.empty(8 * 99));
    g.ok("math64", Shape::linear(2, 64), &[&out, &dx, &99i32]);
    let mut raw = [0; 8 * 99];
    g.dev.read(out, &mut raw).unwrap();
    for (v, got) in x.iter().zip(raw.chunks(8)) {
        let got = f64::from_le_bytes(got.try_into().unwrap());
        let want = v.exp()
            + (v.abs() + 1.0).ln()
            + v.tanh()
            + v.abs().sqrt()
            + v.floor()
            + 1.0 / (v + 3.0)
            + v.mul_add(*v, 1.0)
            + f64::from(*v as f32)
            + v.trunc();
        assert!((got - want).abs() <= 1e-13 * (1.0 + want.abs() + v.exp()), "{v}: {got} {want}");
    }
}

#[test]
fn votes_atomics_and_bytes_in_shared_memory() {
    let mut g = Gpu::new(WIDE);
    let (f, u, w) = (g.put(&[0f32, 0.0][..]), g.put(&[0u32; 4][..]), g.put(&[5u64][..]));
    // The kernel writes 64 words behind the four: too few is caught, enough is not.
    assert!(g.launch("collectives", Shape::linear(1, 64), &[&f, &u, &w]).is_err());
    let (f, u, w) = (g.put(&[0f32, 0.0][..]), g.put(&[0u32; 68][..]), g.put(&[5u64][..]));
    g.ok("collectives", Shape::linear(1, 64), &[&f, &u, &w]);
    assert_eq!(g.get32(f, 2), bits(&[64.0, 64.0]));
    assert_eq!(g.get32(w, 1), [133]);
    let got = g.get32(u, 68);
    assert_eq!(got[..4], [63, -63i32 as u32, 7, 9]);
    for t in 0..64u32 {
        let any = u32::from(t >= 32);
        let want = (((63 - t) * 3) & 0xff) + (t & 31) * 1000 + any + 2 + ((t & !7) + 3) * 100_000;
        assert_eq!(got[4 + t as usize], want, "thread {t}");
    }
}

/// Prints the speed of the interpreter; `cargo test -p softcuda --release -- --nocapture speed` for the figure.
#[test]
fn speed_of_arithmetic() {
    let mut g = Gpu::new(FLOW);
    g.dev.threads = 1;
    let out = g.empty(4 * 256 * 4);
    let start = std::time::Instant::now();
    let s = g.ok("spin", Shape::linear(4, 256), &[&out, &2000i32]);
    let t = start.elapsed().as_secs_f64();
    println!("softcuda, one host thread: {:.0} M lane-instructions/s", s.lane_instructions as f64 / t / 1e6);
    let mut g = Gpu::new(BASIC);
    g.dev.threads = 1;
    let (a, b, c) =
        (g.put(&noise(128 * 128, 1)[..]), g.put(&noise(128 * 128, 2)[..]), g.empty(128 * 128 * 4));
    let start = std::time::Instant::now();
    let s = g.ok(
        "gemm",
        Shape { grid: [8, 8, 1], block: [16, 16, 1], dynamic_shared: 0 },
        &[&a, &b, &c, &128i32, &128i32, &128i32],
    );
    let t = start.elapsed().as_secs_f64();
    println!(
        "softcuda, one host thread, tiled product: {:.0} M lane-instructions/s",
        s.lane_instructions as f64 / t / 1e6
    );
}
