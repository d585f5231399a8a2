//! The meaning of single instructions, each in a small kernel of its own.
#![allow(clippy::unwrap_used)]

use softcuda::{Device, Shape};

/// Runs `body` on 64-bit inputs `a`, `b`, `c` (as %rd1.., %r1.., %f1.., %fd1.., %rs1..) and returns %rd9.
fn eval(body: &str, input: [u64; 3]) -> u64 {
    let ptx = format!(
        ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 out)\n{{\n\
         .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<19>; .reg .b64 %rd<19>; .reg .f32 %f<9>; .reg .f64 %fd<9>;\n\
         ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u64 %rd10, [out];\n\
         cvt.u32.u64 %r1, %rd1; cvt.u32.u64 %r2, %rd2; cvt.u32.u64 %r3, %rd3;\n\
         mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3; cvt.u16.u64 %rs1, %rd1;\n\
         mov.b64 %fd1, %rd1; mov.b64 %fd2, %rd2; mov.b64 %fd3, %rd3;\n{body}\nst.global.u64 [%rd10], %rd9;\nret;\n}}\n"
    );
    let mut dev = Device::new();
    let module = dev.load_module(&ptx).unwrap_or_else(|e| panic!("{e}"));
    let out = dev.alloc(8).unwrap();
    let [a, b, c] = input.map(u64::to_le_bytes);
    dev.launch(&module, "k", Shape::linear(1, 1), &[&a, &b, &c, &out.to_le_bytes()])
        .unwrap_or_else(|e| panic!("{e}"));
    let mut raw = [0; 8];
    dev.read(out, &mut raw).unwrap();
    u64::from_le_bytes(raw)
}

/// A result of 32 bits: `op %r9, ...`.
fn word(op: &str, a: u32, b: u32, c: u32) -> u32 {
    eval(&format!("{op}\ncvt.u64.u32 %rd9, %r9;"), [a, b, c].map(u64::from)) as u32
}

fn float(op: &str, a: f32, b: f32, c: f32) -> f32 {
    f32::from_bits(word(&format!("{op}\nmov.b32 %r9, %f8;"), a.to_bits(), b.to_bits(), c.to_bits()))
}

fn test(cmp: &str, a: f32, b: f32) -> bool {
    word(&format!("setp.{cmp}.f32 %p1, %f1, %f2; selp.b32 %r9, 1, 0, %p1;"), a.to_bits(), b.to_bits(), 0) == 1
}

#[test]
fn shifts_past_the_width() {
    for (b, shl, shr, sar) in [
        (0, 0x8000_0001u32, 0x8000_0001, 0x8000_0001),
        (4, 0x10, 0x0800_0000, 0xf800_0000),
        (31, 0x8000_0000, 1, u32::MAX),
        (32, 0, 0, u32::MAX),
        (u32::MAX, 0, 0, u32::MAX),
    ] {
        assert_eq!(word("shl.b32 %r9, %r1, %r2;", 0x8000_0001, b, 0), shl);
        assert_eq!(word("shr.u32 %r9, %r1, %r2;", 0x8000_0001, b, 0), shr);
        assert_eq!(word("shr.s32 %r9, %r1, %r2;", 0x8000_0001, b, 0), sar);
    }
    assert_eq!(word("shf.l.wrap.b32 %r9, %r1, %r2, %r3;", 0x8000_0001, 0x1234_5678, 36), 0x2345_6788);
    assert_eq!(word("shf.r.clamp.b32 %r9, %r1, %r2, %r3;", 1, 0xabcd, 99), 0xabcd);
}

#[test]
fn products_high_and_wide() {
    assert_eq!(word("mul.hi.s32 %r9, %r1, %r2;", -7i32 as u32, 3, 0), u32::MAX);
    assert_eq!(word("mul.hi.u32 %r9, %r1, %r2;", u32::MAX, u32::MAX, 0), u32::MAX - 1);
    assert_eq!(eval("mul.hi.u64 %rd9, %rd1, %rd2;", [u64::MAX, u64::MAX, 0]), u64::MAX - 1);
    assert_eq!(eval("mul.wide.s32 %rd9, %r1, %r2;", [u64::from(-5i32 as u32), 7, 0]) as i64, -35);
    assert_eq!(
        eval("mad.wide.u32 %rd9, %r1, %r2, %rd3;", [u64::from(u32::MAX), 2, 5]),
        2 * u64::from(u32::MAX) + 5
    );
    assert_eq!(word("div.s32 %r9, %r1, %r2;", -7i32 as u32, 2, 0) as i32, -3);
    assert_eq!(word("rem.s32 %r9, %r1, %r2;", -7i32 as u32, 2, 0) as i32, -1);
}

#[test]
fn bit_fields_and_bytes() {
    assert_eq!(word("bfe.u32 %r9, %r1, %r2, %r3;", 0xabcd_ef12, 8, 12), 0xdef);
    assert_eq!(word("bfe.s32 %r9, %r1, %r2, %r3;", 0x0000_0f00, 8, 4), u32::MAX);
    assert_eq!(word("bfe.s32 %r9, %r1, %r2, %r3;", 0x8000_0000, 28, 12), 0xffff_fff8);
    assert_eq!(word("bfe.u32 %r9, %r1, %r2, %r3;", u32::MAX, 0, 0), 0);
    assert_eq!(word("bfi.b32 %r9, %r1, %r2, 8, 4;", 0x5, 0xffff_ffff, 0), 0xffff_f5ff);
    assert_eq!(word("prmt.b32 %r9, %r1, %r2, %r3;", 0x3322_1100, 0x7766_5584, 0x7410), 0x7784_1100);
    assert_eq!(word("prmt.b32 %r9, %r1, %r2, 0xcccc;", 0, 0x80, 0), u32::MAX);
    assert_eq!(word("popc.b32 %r9, %r1;", 0xf0f0, 0, 0), 8);
    assert_eq!(word("clz.b32 %r9, %r1;", 0, 0, 0), 32);
    assert_eq!(word("brev.b32 %r9, %r1;", 1, 0, 0), 0x8000_0000);
    assert_eq!(eval("mov.b64 %rd9, {%r2, %r1};", [1, 2, 0]), 0x1_0000_0002);
    assert_eq!(word("mov.b64 {%r4, %r9}, %rd1;", 5, 0, 0), 0);
}

#[test]
fn comparisons_with_a_nan() {
    let nan = f32::NAN;
    for (cmp, with_nan, one_two) in [
        ("eq", false, false),
        ("ne", false, true),
        ("lt", false, true),
        ("ge", false, false),
        ("equ", true, false),
        ("neu", true, true),
        ("ltu", true, true),
        ("geu", true, false),
        ("num", false, true),
        ("nan", true, false),
    ] {
        assert_eq!(
            (test(cmp, nan, 1.0), test(cmp, 1.0, nan), test(cmp, 1.0, 2.0)),
            (with_nan, with_nan, one_two),
            "{cmp}"
        );
    }
    assert_eq!(
        word(
            "setp.lt.u32 %p2, %r1, 1; setp.gt.and.s32 %p1|%p3, %r2, 3, !%p2; selp.b32 %r9, 1, 0, %p1;",
            5,
            4,
            0
        ),
        1
    );
    assert_eq!(word("setp.hi.u32 %p1, %r1, %r2; selp.u32 %r9, 8, 9, %p1;", u32::MAX, 1, 0), 8);
    assert_eq!(float("min.f32 %f8, %f1, %f2;", nan, 3.0, 0.0), 3.0);
    assert_eq!(float("min.f32 %f8, %f1, %f2;", 0.0, -0.0, 0.0).to_bits(), (-0.0f32).to_bits());
}

#[test]
fn floats_round_once() {
    let (a, b, c) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON, -1.0);
    assert_eq!(float("fma.rn.f32 %f8, %f1, %f2, %f3;", a, b, c), a.mul_add(b, c));
    assert_ne!(a.mul_add(b, c), a * b + c);
    assert_eq!(float("mul.rn.f32 %f8, %f1, %f2;", 1e-30, 1e-10, 0.0), 1e-30 * 1e-10);
    assert_eq!(float("mul.ftz.f32 %f8, %f1, %f2;", 1e-30, 1e-10, 0.0), 0.0);
    assert_eq!(float("sub.f32 %f8, %f1, %f2;", f32::INFINITY, f32::INFINITY, 0.0).to_bits(), 0x7fff_ffff);
    assert_eq!(float("add.sat.f32 %f8, %f1, %f2;", f32::NAN, 1.0, 0.0), 0.0);
    // Directed rounding, with an error far below the last place.
    let tiny = 1e-30f32;
    assert_eq!(float("add.rm.f32 %f8, %f1, %f2;", 1.0, -tiny, 0.0), 1f32.next_down());
    assert_eq!(float("add.rz.f32 %f8, %f1, %f2;", -1.0, tiny, 0.0), (-1f32).next_up());
    assert_eq!(float("fma.rp.f32 %f8, %f1, %f2, %f3;", 3.0, 5.0, tiny), 15f32.next_up());
    assert_eq!(float("mul.rz.f32 %f8, %f1, %f2;", a, a, 0.0), 1.0 + 2.0 * f32::EPSILON);
    assert_eq!(float("ex2.approx.f32 %f8, %f1;", 3.0, 0.0, 0.0), 8.0);
    assert_eq!(float("add.f32 %f8, %f1, 0f3F800000;", 2.0, 0.0, 0.0), 3.0);
}

#[test]
fn conversions() {
    let rounded =
        |mode: &str, x: f32| word(&format!("cvt.{mode}.s32.f32 %r9, %f1;"), x.to_bits(), 0, 0) as i32;
    assert_eq!(["rni", "rzi", "rmi", "rpi"].map(|m| rounded(m, -2.5)), [-2, -2, -3, -2]);
    assert_eq!(
        (rounded("rzi", 1e20), rounded("rzi", -1e20), rounded("rzi", f32::NAN)),
        (i32::MAX, i32::MIN, 0)
    );
    assert_eq!(float("cvt.rni.f32.f32 %f8, %f1;", 3.5, 0.0, 0.0), 4.0);
    assert_eq!(float("cvt.sat.f32.f32 %f8, %f1;", -3.5, 0.0, 0.0), 0.0);
    for x in [0.1f64, -0.1, 1e39, 1e-45, 3.0, 1.0 + 1e-12] {
        let cvt = |m: &str| {
            f32::from_bits(eval(
                &format!("cvt.{m}.f32.f64 %f8, %fd1; mov.b32 %r9, %f8; cvt.u64.u32 %rd9, %r9;"),
                [x.to_bits(), 0, 0],
            ) as u32)
        };
        assert_eq!(cvt("rn"), x as f32);
        assert!(
            f64::from(cvt("rm")) <= x && f64::from(cvt("rp")) >= x && f64::from(cvt("rz").abs()) <= x.abs()
        );
    }
    let int = |m: &str, x: u32| word(&format!("cvt.{m}.f32.u32 %f8, %r1; mov.b32 %r9, %f8;"), x, 0, 0);
    for x in [16_777_217u32, 16_777_219, u32::MAX, 7, 0] {
        assert_eq!(int("rn", x), (x as f32).to_bits());
        assert!(
            f64::from(f32::from_bits(int("rz", x))) <= f64::from(x)
                && f64::from(f32::from_bits(int("rp", x))) >= f64::from(x)
        );
    }
    assert_eq!(word("cvt.s32.s8 %r9, %r1;", 0x1ff, 0, 0), u32::MAX);
    assert_eq!(word("cvt.sat.u8.s32 %r9, %r1;", -4i32 as u32, 0, 0), 0);
    assert_eq!(eval("cvt.s64.s32 %rd9, %r1;", [u64::from(u32::MAX), 0, 0]), u64::MAX);
    // Every finite half goes to f32 and back.
    for h in (0..0x7c00u32).step_by(37) {
        let back = word("cvt.f32.f16 %f8, %rs1; cvt.rn.f16.f32 %rs2, %f8; cvt.u32.u16 %r9, %rs2;", h, 0, 0);
        assert_eq!(back, h);
    }
    assert_eq!(word("cvt.rn.f16.f32 %rs2, %f1; cvt.u32.u16 %r9, %rs2;", 65520f32.to_bits(), 0, 0), 0x7c00);
    assert_eq!(word("cvt.rn.bf16.f32 %rs2, %f1; cvt.u32.u16 %r9, %rs2;", 0x3f80_8000, 0, 0), 0x3f80);
}

/// `cvt.rn.<to>.f32` of these bits, and that back in f32.
fn halves(to: &str, inputs: &[u32]) -> Vec<(u16, u32)> {
    let ptx = format!(
        ".version 8.1\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b16 %rs<3>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<4>;\n\
         ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];\n\
         mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mad.lo.u32 %r3, %r2, 32, %r1;\n\
         mul.wide.u32 %rd3, %r3, 4; add.u64 %rd4, %rd1, %rd3; ld.global.f32 %f1, [%rd4];\n\
         cvt.rn.{to}.f32 %rs1, %f1; cvt.f32.{to} %f2, %rs1;\n\
         mul.wide.u32 %rd5, %r3, 8; add.u64 %rd6, %rd2, %rd5;\n\
         cvt.u32.u16 %r4, %rs1; st.global.u32 [%rd6], %r4; st.global.f32 [%rd6+4], %f2;\nret;\n}}\n"
    );
    assert_eq!(inputs.len() % 32, 0);
    let mut dev = Device::new();
    let module = dev.load_module(&ptx).unwrap_or_else(|e| panic!("{e}"));
    let from = dev.alloc(4 * inputs.len() as u64).unwrap();
    let out = dev.alloc(8 * inputs.len() as u64).unwrap();
    let bytes: Vec<u8> = inputs.iter().flat_map(|x| x.to_le_bytes()).collect();
    dev.write(from, &bytes).unwrap();
    let shape = Shape::linear(inputs.len() as u32 / 32, 32);
    dev.launch(&module, "k", shape, &[&from.to_le_bytes(), &out.to_le_bytes()])
        .unwrap_or_else(|e| panic!("{e}"));
    let mut raw = vec![0; 8 * inputs.len()];
    dev.read(out, &mut raw).unwrap();
    raw.chunks(8)
        .map(|b| (u16::from_le_bytes([b[0], b[1]]), u32::from_le_bytes([b[4], b[5], b[6], b[7]])))
        .collect()
}

#[test]
fn halves_are_the_nearest_or_even_in_every_binade() {
    for (to, fraction, exponents) in [("f16", 10u32, 5u32), ("bf16", 7, 8)] {
        let bias = (1i32 << (exponents - 1)) - 1;
        let infinity = ((1u16 << exponents) - 1) << fraction;
        // By definition: sign, exponent, fraction.
        let value = |code: u16| {
            let exponent = i32::from(code >> fraction);
            let part = f64::from(code & ((1 << fraction) - 1)) / f64::from(1u32 << fraction);
            if exponent == 0 { part * 2f64.powi(1 - bias) } else { (1.0 + part) * 2f64.powi(exponent - bias) }
        };
        // Each number, what lies in the middle to the next one (in the end: to the one that infinity stands for), and its
        // neighbours among f32.
        let mut cases = Vec::new();
        for code in 0..infinity {
            let (here, next) = (value(code), value(code + 1));
            let middle = ((here + next) / 2.0) as f32;
            assert_eq!(f64::from(middle), (here + next) / 2.0);
            let even = code + code % 2;
            for (x, expected) in [
                (here as f32, code),
                (middle.next_down(), code),
                (middle, even),
                (middle.next_up(), code + 1),
            ] {
                cases.push((x.to_bits(), expected));
                cases.push((x.to_bits() | 1 << 31, expected | 1 << 15));
            }
        }
        cases.extend([(f32::MAX.to_bits(), infinity), (f32::INFINITY.to_bits(), infinity)]);
        cases.extend([(f32::NEG_INFINITY.to_bits(), infinity | 1 << 15), (1, 0), (1 << 31 | 1, 1 << 15)]);
        // NVIDIA's NaN of 16 bits, whatever went in.
        let nans = [0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xff80_0001, 0x7fff_ffff];
        cases.extend(nans.map(|bits| (bits, 0x7fff)));
        while cases.len() % 32 != 0 {
            cases.push((0, 0));
        }
        let inputs: Vec<u32> = cases.iter().map(|&(bits, _)| bits).collect();
        for ((bits, expected), (found, back)) in cases.into_iter().zip(halves(to, &inputs)) {
            assert_eq!(found, expected, "{to} of {bits:#010x}");
            let magnitude = expected & 0x7fff;
            let back = f32::from_bits(back);
            if magnitude > infinity {
                assert!(back.is_nan());
            } else {
                let sign = if expected >> 15 == 1 { -1.0 } else { 1.0 };
                let wide = if magnitude == infinity { f64::INFINITY } else { value(magnitude) };
                assert_eq!(f64::from(back).to_bits(), (sign * wide).to_bits(), "f32 of {to} {expected:#06x}");
            }
        }
    }
}

#[test]
fn a_register_nothing_wrote_is_no_operand() {
    let ptx = ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry k()\n{\n.reg .b32 %r<3>;\nmov.u32 %r1, %r2;\nadd.u32 %r1, %r1, 1;\nret;\n}\n";
    let mut dev = Device::new();
    let m = dev.load_module(ptx).unwrap();
    let e = dev.launch(&m, "k", Shape::linear(1, 1), &[]).unwrap_err();
    let f = e.fault().unwrap();
    assert_eq!((f.kind, f.line), (softcuda::FaultKind::Uninitialised, 8), "{f}");
}
