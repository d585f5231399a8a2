//! Arithmetic: one function per opcode and type, over the 32 lanes of a row at once, chosen when a module is loaded.
//!
//! Registers are rows of `u64`, narrower values zero-extended. `add`, `sub`, `mul`, `fma`, `div`, `rcp`, `sqrt` and conversions are
//! correctly rounded; a NaN of f32 is 0x7fffffff, as GPUs give it. The approximations (`ex2`, `lg2`, `sin`, `cos`, `tanh`, `rsqrt`,
//! `.approx` and `.full` divisions) are computed in f64 and rounded once: hardware may differ in the last bits.

use super::ir::Ty;

/// A register of a warp: one value a lane.
pub type Row = [u64; 32];
/// One operand.
pub type F1 = fn(&Row, &mut Row);
/// Two operands.
pub type F2 = fn(&Row, &Row, &mut Row);
/// Three operands.
pub type F3 = fn(&Row, &Row, &Row, &mut Row);
/// A comparison: a bit a lane.
pub type P2 = fn(&Row, &Row) -> u32;

macro_rules! f1 {
    (|$a:ident| $e:expr) => {{
        fn go(x: &Row, o: &mut Row) {
            for l in 0..32 {
                let $a = x[l];
                o[l] = $e;
            }
        }
        go as F1
    }};
}
macro_rules! f2 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn go(x: &Row, y: &Row, o: &mut Row) {
            for l in 0..32 {
                let ($a, $b) = (x[l], y[l]);
                o[l] = $e;
            }
        }
        go as F2
    }};
}
macro_rules! f3 {
    (|$a:ident, $b:ident, $c:ident| $e:expr) => {{
        fn go(x: &Row, y: &Row, z: &Row, o: &mut Row) {
            for l in 0..32 {
                let ($a, $b, $c) = (x[l], y[l], z[l]);
                o[l] = $e;
            }
        }
        go as F3
    }};
}
macro_rules! p2 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn go(x: &Row, y: &Row) -> u32 {
            let mut m = 0;
            for l in 0..32 {
                let ($a, $b) = (x[l], y[l]);
                m |= u32::from($e) << l;
            }
            m
        }
        go as P2
    }};
}
/// The same expression over every integer type.
macro_rules! int1 {
    ($ty:expr, |$a:ident| $e:expr) => {
        match $ty {
            Ty::U16 => f1!(|x| {
                let $a = x as u16;
                u64::from(($e) as u16)
            }),
            Ty::S16 => f1!(|x| {
                let $a = x as i16;
                u64::from(($e) as u16)
            }),
            Ty::U32 => f1!(|x| {
                let $a = x as u32;
                u64::from(($e) as u32)
            }),
            Ty::S32 => f1!(|x| {
                let $a = x as i32;
                u64::from(($e) as u32)
            }),
            Ty::U64 => f1!(|x| {
                let $a = x;
                ($e) as u64
            }),
            Ty::S64 => f1!(|x| {
                let $a = x as i64;
                ($e) as u64
            }),
            _ => return None,
        }
    };
}
macro_rules! int2 {
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::U16 => f2!(|x, y| {
                let ($a, $b) = (x as u16, y as u16);
                u64::from(($e) as u16)
            }),
            Ty::S16 => f2!(|x, y| {
                let ($a, $b) = (x as i16, y as i16);
                u64::from(($e) as u16)
            }),
            Ty::U32 => f2!(|x, y| {
                let ($a, $b) = (x as u32, y as u32);
                u64::from(($e) as u32)
            }),
            Ty::S32 => f2!(|x, y| {
                let ($a, $b) = (x as i32, y as i32);
                u64::from(($e) as u32)
            }),
            Ty::U64 => f2!(|x, y| {
                let ($a, $b) = (x, y);
                ($e) as u64
            }),
            Ty::S64 => f2!(|x, y| {
                let ($a, $b) = (x as i64, y as i64);
                ($e) as u64
            }),
            _ => return None,
        }
    };
}
macro_rules! int3 {
    ($ty:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
        match $ty {
            Ty::U16 => f3!(|x, y, z| {
                let ($a, $b, $c) = (x as u16, y as u16, z as u16);
                u64::from(($e) as u16)
            }),
            Ty::S16 => f3!(|x, y, z| {
                let ($a, $b, $c) = (x as i16, y as i16, z as i16);
                u64::from(($e) as u16)
            }),
            Ty::U32 => f3!(|x, y, z| {
                let ($a, $b, $c) = (x as u32, y as u32, z as u32);
                u64::from(($e) as u32)
            }),
            Ty::S32 => f3!(|x, y, z| {
                let ($a, $b, $c) = (x as i32, y as i32, z as i32);
                u64::from(($e) as u32)
            }),
            Ty::U64 => f3!(|x, y, z| {
                let ($a, $b, $c) = (x, y, z);
                ($e) as u64
            }),
            Ty::S64 => f3!(|x, y, z| {
                let ($a, $b, $c) = (x as i64, y as i64, z as i64);
                ($e) as u64
            }),
            _ => return None,
        }
    };
}
/// The same expression over f32 (with or without flushing of denormals) and f64.
macro_rules! flt1 {
    ($ty:expr, $ftz:expr, |$a:ident| $e:expr) => {
        match ($ty, $ftz) {
            (Ty::F32, false) => f1!(|x| {
                let $a = f32_of(x);
                of_f32($e)
            }),
            (Ty::F32, true) => f1!(|x| {
                let $a = flush(f32_of(x));
                of_f32(flush($e))
            }),
            (Ty::F64, false) => f1!(|x| {
                let $a = f64::from_bits(x);
                ($e).to_bits()
            }),
            _ => return None,
        }
    };
}
macro_rules! flt2 {
    ($ty:expr, $ftz:expr, |$a:ident, $b:ident| $e:expr) => {
        match ($ty, $ftz) {
            (Ty::F32, false) => f2!(|x, y| {
                let ($a, $b) = (f32_of(x), f32_of(y));
                of_f32($e)
            }),
            (Ty::F32, true) => f2!(|x, y| {
                let ($a, $b) = (flush(f32_of(x)), flush(f32_of(y)));
                of_f32(flush($e))
            }),
            (Ty::F64, false) => f2!(|x, y| {
                let ($a, $b) = (f64::from_bits(x), f64::from_bits(y));
                ($e).to_bits()
            }),
            _ => return None,
        }
    };
}

/// 1 as an f32's bits.
const ONE: u64 = 0x3f80_0000;

fn f32_of(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn of_f32(x: f32) -> u64 {
    u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// Minimum and maximum as PTX has them: a NaN loses against a number, and -0 is less than +0.
trait MinMax: Copy {
    fn lesser(self, o: Self) -> Self;
    fn greater(self, o: Self) -> Self;
}
macro_rules! min_max {
    ($t:ty) => {
        impl MinMax for $t {
            fn lesser(self, o: Self) -> Self {
                if self.is_nan() {
                    o
                } else if o.is_nan() || self < o || (self == o && self.is_sign_negative()) {
                    self
                } else {
                    o
                }
            }
            fn greater(self, o: Self) -> Self {
                if self.is_nan() {
                    o
                } else if o.is_nan() || self > o || (self == o && self.is_sign_positive()) {
                    self
                } else {
                    o
                }
            }
        }
    };
}
min_max!(f32);
min_max!(f64);

fn saturate(x: f32) -> f32 {
    // NaN.min(1) would be 1; PTX saturates a NaN to +0.
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// An operation of one operand, by the opcode's parts after the first: `mods` without the type.
pub fn unary(name: &str, mods: &[&str], ty: Ty) -> Option<F1> {
    let ftz = mods.contains(&"ftz");
    let approx = mods.contains(&"approx");
    // Integer forms take no modifiers; float forms only those listed.
    let ok = |allowed: &[&str]| mods.iter().all(|m| allowed.contains(m));
    if name == "bfind" {
        let shift = mods == ["shiftamt"];
        return Some(match ty {
            Ty::U32 if shift => f1!(|a| u64::from((a as u32).checked_ilog2().map_or(u32::MAX, |b| 31 - b))),
            Ty::U32 if ok(&[]) => f1!(|a| u64::from((a as u32).checked_ilog2().unwrap_or(u32::MAX))),
            // Of a signed value: the highest bit that differs from its sign.
            Ty::S32 if ok(&[]) => f1!(|a| u64::from(
                ((a as i32) ^ ((a as i32) >> 31)).cast_unsigned().checked_ilog2().unwrap_or(u32::MAX)
            )),
            Ty::U64 if shift => f1!(|a| u64::from(a.checked_ilog2().map_or(u32::MAX, |b| 63 - b))),
            Ty::U64 if ok(&[]) => f1!(|a| u64::from(a.checked_ilog2().unwrap_or(u32::MAX))),
            _ => return None,
        });
    }
    if !ty.is_float() {
        if !ok(&[]) {
            return None;
        }
        return Some(match name {
            "neg" => int1!(ty, |a| a.wrapping_neg()),
            "not" => int1!(ty, |a| !a),
            "cnot" => int1!(ty, |a| u64::from(a == 0)),
            "abs" => match ty {
                Ty::S16 => f1!(|a| u64::from((a as i16).wrapping_abs() as u16)),
                Ty::S32 => f1!(|a| u64::from((a as i32).wrapping_abs() as u32)),
                Ty::S64 => f1!(|a| (a as i64).wrapping_abs() as u64),
                _ => return None,
            },
            "popc" if ty.bytes() >= 4 => f1!(|a| u64::from(a.count_ones())),
            "clz" if ty.bytes() == 4 => f1!(|a| u64::from((a as u32).leading_zeros())),
            "clz" if ty.bytes() == 8 => f1!(|a| u64::from(a.leading_zeros())),
            "brev" if ty.bytes() == 4 => f1!(|a| u64::from((a as u32).reverse_bits())),
            "brev" if ty.bytes() == 8 => f1!(|a| a.reverse_bits()),
            _ => return None,
        });
    }
    Some(match name {
        "neg" if ok(&["ftz"]) => match (ty, ftz) {
            (Ty::F32, false) => f1!(|a| u64::from(a as u32 ^ 0x8000_0000)),
            (Ty::F16 | Ty::BF16, false) => f1!(|a| u64::from(a as u16 ^ 0x8000)),
            _ => flt1!(ty, ftz, |a| -a),
        },
        "abs" if ok(&["ftz"]) => match (ty, ftz) {
            (Ty::F32, false) => f1!(|a| a & 0x7fff_ffff),
            (Ty::F16 | Ty::BF16, false) => f1!(|a| a & 0x7fff),
            _ => flt1!(ty, ftz, |a| a.abs()),
        },
        "sqrt" if ok(&["rn", "ftz"]) && mods.contains(&"rn") => flt1!(ty, ftz, |a| a.sqrt()),
        "sqrt" if ok(&["approx", "ftz"]) && approx && ty == Ty::F32 => flt1!(ty, ftz, |a| a.sqrt()),
        "rcp" if ok(&["rn", "ftz"]) && mods.contains(&"rn") => flt1!(ty, ftz, |a| 1.0 / a),
        "rcp" if ok(&["approx", "ftz"]) && approx => match ty {
            Ty::F32 => flt1!(ty, ftz, |a| 1.0 / a),
            // Only `rcp.approx.ftz.f64` exists, and its low 32 bits are zero.
            Ty::F64 => f1!(|a| (1.0 / f64::from_bits(a)).to_bits() & !0xffff_ffff),
            _ => return None,
        },
        "rsqrt" if ok(&["approx", "ftz"]) && approx => match ty {
            Ty::F32 if ftz => f1!(|a| of_f32(flush((1.0 / f64::from(flush(f32_of(a))).sqrt()) as f32))),
            Ty::F32 => f1!(|a| of_f32((1.0 / f64::from(f32_of(a)).sqrt()) as f32)),
            Ty::F64 => f1!(|a| (1.0 / f64::from_bits(a).sqrt()).to_bits()),
            _ => return None,
        },
        "ex2" | "lg2" | "sin" | "cos" | "tanh" if ty == Ty::F32 && approx && ok(&["approx", "ftz"]) => {
            match (name, ftz) {
                ("ex2", false) => f1!(|a| of_f32(f64::from(f32_of(a)).exp2() as f32)),
                ("ex2", true) => f1!(|a| of_f32(flush(f64::from(flush(f32_of(a))).exp2() as f32))),
                ("lg2", false) => f1!(|a| of_f32(f64::from(f32_of(a)).log2() as f32)),
                ("lg2", true) => f1!(|a| of_f32(flush(f64::from(flush(f32_of(a))).log2() as f32))),
                ("sin", false) => f1!(|a| of_f32(f64::from(f32_of(a)).sin() as f32)),
                ("sin", true) => f1!(|a| of_f32(flush(f64::from(flush(f32_of(a))).sin() as f32))),
                ("cos", false) => f1!(|a| of_f32(f64::from(f32_of(a)).cos() as f32)),
                ("cos", true) => f1!(|a| of_f32(flush(f64::from(flush(f32_of(a))).cos() as f32))),
                ("tanh", false) => f1!(|a| of_f32(f64::from(f32_of(a)).tanh() as f32)),
                _ => return None,
            }
        }
        _ => return None,
    })
}

/// An operation of two operands.
pub fn binary(name: &str, mods: &[&str], ty: Ty) -> Option<F2> {
    let ftz = mods.contains(&"ftz");
    let ok = |allowed: &[&str]| mods.iter().all(|m| allowed.contains(m));
    if ty.is_float() {
        return Some(match name {
            "add" | "sub" | "mul" if ty == Ty::F32 && mods.contains(&"sat") && ok(&["rn", "ftz", "sat"]) => {
                match (name, ftz) {
                    ("add", false) => f2!(|a, b| of_f32(saturate(f32_of(a) + f32_of(b)))),
                    ("sub", false) => f2!(|a, b| of_f32(saturate(f32_of(a) - f32_of(b)))),
                    ("mul", false) => f2!(|a, b| of_f32(saturate(f32_of(a) * f32_of(b)))),
                    _ => return None,
                }
            }
            "add" if ty == Ty::F32 && mods == ["rz"] => f2!(|a, b| fma_directed(a, ONE, b, Round::Zero)),
            "sub" if ty == Ty::F32 && mods == ["rz"] => {
                f2!(|a, b| fma_directed(a, ONE, b ^ 0x8000_0000, Round::Zero))
            }
            "mul" if ty == Ty::F32 && mods == ["rz"] => {
                f2!(|a, b| fma_directed(a, b, (a ^ b) & 0x8000_0000, Round::Zero))
            }
            "add" if ty == Ty::F32 && mods == ["rm"] => f2!(|a, b| fma_directed(a, ONE, b, Round::Down)),
            "sub" if ty == Ty::F32 && mods == ["rm"] => {
                f2!(|a, b| fma_directed(a, ONE, b ^ 0x8000_0000, Round::Down))
            }
            "mul" if ty == Ty::F32 && mods == ["rm"] => {
                f2!(|a, b| fma_directed(a, b, (a ^ b) & 0x8000_0000, Round::Down))
            }
            "add" if ty == Ty::F32 && mods == ["rp"] => f2!(|a, b| fma_directed(a, ONE, b, Round::Up)),
            "sub" if ty == Ty::F32 && mods == ["rp"] => {
                f2!(|a, b| fma_directed(a, ONE, b ^ 0x8000_0000, Round::Up))
            }
            "mul" if ty == Ty::F32 && mods == ["rp"] => {
                f2!(|a, b| fma_directed(a, b, (a ^ b) & 0x8000_0000, Round::Up))
            }
            "add" if ok(&["rn", "ftz"]) => flt2!(ty, ftz, |a, b| a + b),
            "sub" if ok(&["rn", "ftz"]) => flt2!(ty, ftz, |a, b| a - b),
            "mul" if ok(&["rn", "ftz"]) => flt2!(ty, ftz, |a, b| a * b),
            "div" if ok(&["rn", "ftz"]) && mods.contains(&"rn") => flt2!(ty, ftz, |a, b| a / b),
            "div" if ok(&["full", "approx", "ftz"]) && ty == Ty::F32 && !mods.is_empty() => {
                flt2!(ty, ftz, |a, b| a / b)
            }
            "min" if ok(&["ftz"]) => flt2!(ty, ftz, |a, b| a.lesser(b)),
            "max" if ok(&["ftz"]) => flt2!(ty, ftz, |a, b| a.greater(b)),
            "min" if ok(&["ftz", "NaN"]) => {
                flt2!(ty, ftz, |a, b| if a.is_nan() || b.is_nan() { a + b } else { a.lesser(b) })
            }
            "max" if ok(&["ftz", "NaN"]) => {
                flt2!(ty, ftz, |a, b| if a.is_nan() || b.is_nan() { a + b } else { a.greater(b) })
            }
            // The sign of the first with the rest of the second.
            "copysign" if ok(&[]) && ty == Ty::F32 => f2!(|a, b| (a & 0x8000_0000) | (b & 0x7fff_ffff)),
            "copysign" if ok(&[]) && ty == Ty::F64 => f2!(|a, b| (a & (1 << 63)) | (b & !(1 << 63))),
            _ => return None,
        });
    }
    Some(match (name, mods) {
        ("add", []) => int2!(ty, |a, b| a.wrapping_add(b)),
        ("sub", []) => int2!(ty, |a, b| a.wrapping_sub(b)),
        ("add", ["sat"]) if ty == Ty::S32 => {
            f2!(|a, b| u64::from((a as i32).saturating_add(b as i32) as u32))
        }
        ("sub", ["sat"]) if ty == Ty::S32 => {
            f2!(|a, b| u64::from((a as i32).saturating_sub(b as i32) as u32))
        }
        ("mul", ["lo"]) => int2!(ty, |a, b| a.wrapping_mul(b)),
        ("mul", ["hi"]) => match ty {
            Ty::U16 => f2!(|a, b| ((a & 0xffff) * (b & 0xffff)) >> 16),
            Ty::S16 => f2!(|a, b| u64::from(((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16)),
            Ty::U32 => f2!(|a, b| (u64::from(a as u32) * u64::from(b as u32)) >> 32),
            Ty::S32 => f2!(|a, b| u64::from(((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32)),
            Ty::U64 => f2!(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
            Ty::S64 => f2!(|a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
            _ => return None,
        },
        ("mul", ["wide"]) => match ty {
            Ty::U16 => f2!(|a, b| (a & 0xffff) * (b & 0xffff)),
            Ty::S16 => f2!(|a, b| u64::from((i32::from(a as i16) * i32::from(b as i16)) as u32)),
            Ty::U32 => f2!(|a, b| u64::from(a as u32) * u64::from(b as u32)),
            Ty::S32 => f2!(|a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64),
            _ => return None,
        },
        ("mul24", ["lo"]) if ty == Ty::U32 => {
            f2!(|a, b| u64::from(((a & 0xff_ffff) * (b & 0xff_ffff)) as u32))
        }
        // Division by zero is not defined by PTX: all ones here, as GPUs give it.
        ("div", []) => int2!(ty, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) }),
        ("rem", []) => int2!(ty, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        ("min", []) => int2!(ty, |a, b| a.min(b)),
        ("max", []) => int2!(ty, |a, b| a.max(b)),
        ("and", []) => f2!(|a, b| a & b),
        ("or", []) => f2!(|a, b| a | b),
        ("xor", []) => f2!(|a, b| a ^ b),
        ("shl", []) => match ty.bytes() {
            2 => f2!(|a, b| if b as u32 > 15 { 0 } else { (a << b) & 0xffff }),
            4 => f2!(|a, b| if b as u32 > 31 { 0 } else { u64::from((a as u32) << b) }),
            8 => f2!(|a, b| if b as u32 > 63 { 0 } else { a << (b as u32) }),
            _ => return None,
        },
        ("shr", []) => match ty {
            Ty::U16 => f2!(|a, b| if b as u32 > 15 { 0 } else { (a & 0xffff) >> b }),
            Ty::S16 => f2!(|a, b| u64::from(((a as i16) >> (b as u32).min(15)) as u16)),
            Ty::U32 => f2!(|a, b| if b as u32 > 31 { 0 } else { u64::from((a as u32) >> b) }),
            Ty::S32 => f2!(|a, b| u64::from(((a as i32) >> (b as u32).min(31)) as u32)),
            Ty::U64 => f2!(|a, b| if b as u32 > 63 { 0 } else { a >> (b as u32) }),
            Ty::S64 => f2!(|a, b| ((a as i64) >> (b as u32).min(63)) as u64),
            _ => return None,
        },
        _ => return None,
    })
}

/// `a * b + c` rounded once, as `f32::mul_add`, which is a function call where the processor's own instruction cannot be counted on.
/// The product is exact in f64. The sum is rounded to odd there: 53 bits with the last one telling that there was more round to 24 as
/// the exact sum would.
#[inline(always)]
fn fma32(a: u64, b: u64, c: u64) -> f32 {
    let (p, c) = (f64::from(f32_of(a)) * f64::from(f32_of(b)), f64::from(f32_of(c)));
    let s = p + c;
    let t = s - p;
    let rest = (p - (s - t)) + (c - t);
    let bits = s.to_bits();
    // What is left of the sum points away from zero or to it; a sum that is not finite leaves a NaN, and stays.
    let away = (rest > 0.0) == (s > 0.0);
    let step = if away { 1 } else { u64::MAX };
    let inexact = (rest > 0.0) | (rest < 0.0);
    let odd = if inexact & (bits & 1 == 0) { bits.wrapping_add(step) } else { bits };
    f64::from_bits(odd) as f32
}

/// `a * b + c` rounded once in a given direction. The product is exact in f64 and the sum's error is known, so the direction can be kept.
fn fma_directed(a: u64, b: u64, c: u64, round: Round) -> u64 {
    let (p, c) = (f64::from(f32_of(a)) * f64::from(f32_of(b)), f64::from(f32_of(c)));
    let s = p + c;
    if !s.is_finite() {
        return of_f32(s as f32);
    }
    let t = s - p;
    let err = (p - (s - t)) + (c - t);
    if s == 0.0 && round == Round::Down && p != 0.0 {
        return of_f32(-0.0);
    }
    let y = narrow(s, round, 23, -126, 127);
    let f = y as f32;
    if y != s || err == 0.0 {
        return of_f32(f);
    }
    of_f32(match round {
        Round::Down if err < 0.0 => f.next_down(),
        Round::Up if err > 0.0 => f.next_up(),
        Round::Zero if s > 0.0 && err < 0.0 => f.next_down(),
        Round::Zero if s < 0.0 && err > 0.0 => f.next_up(),
        _ => f,
    })
}

fn bfe(a: u64, b: u64, c: u64, bits: u32, signed: bool) -> u64 {
    let (pos, len) = ((b & 0xff) as u32, (c & 0xff) as u32);
    // The sign bit is that of the field, or of the value where the field runs past it.
    let sign_at = if len == 0 { None } else { Some((pos + len - 1).min(bits - 1)) };
    let sign = signed && sign_at.is_some_and(|s| a >> s & 1 == 1);
    let mut out = 0u64;
    for i in 0..bits {
        let bit = if i < len && pos + i < bits { a >> (pos + i) & 1 == 1 } else { sign };
        out |= u64::from(bit) << i;
    }
    out
}

/// `bfi`: the low `c.1` bits of `a` put into `b` at `c.0`.
pub fn bfi(a: u64, b: u64, pos: u64, len: u64, bits: u32) -> u64 {
    let (pos, len) = ((pos & 0xff) as u32, (len & 0xff) as u32);
    let mut out = b;
    for i in 0..len {
        if pos + i >= bits {
            break;
        }
        out = out & !(1 << (pos + i)) | (a >> i & 1) << (pos + i);
    }
    out
}

fn prmt(a: u64, b: u64, sel: u64) -> u64 {
    let bytes = (a & 0xffff_ffff) | b << 32;
    let mut out = 0;
    for i in 0..4 {
        let s = sel >> (4 * i) & 0xf;
        let byte = bytes >> (8 * (s & 7)) & 0xff;
        // Bit 3 of the selector replicates the byte's sign.
        let byte = if s & 8 == 0 {
            byte
        } else if byte & 0x80 != 0 {
            0xff
        } else {
            0
        };
        out |= byte << (8 * i);
    }
    out
}

/// An operation of three operands.
pub fn ternary(name: &str, mods: &[&str], ty: Ty) -> Option<F3> {
    Some(match (name, mods, ty) {
        ("fma" | "mad", ["rn"], Ty::F32) => f3!(|a, b, c| of_f32(fma32(a, b, c))),
        ("fma" | "mad", ["rn", "ftz"], Ty::F32) => {
            f3!(|a, b, c| of_f32(flush(flush(f32_of(a)).mul_add(flush(f32_of(b)), flush(f32_of(c))))))
        }
        ("fma", ["rz"], Ty::F32) => f3!(|a, b, c| fma_directed(a, b, c, Round::Zero)),
        ("fma", ["rm"], Ty::F32) => f3!(|a, b, c| fma_directed(a, b, c, Round::Down)),
        ("fma", ["rp"], Ty::F32) => f3!(|a, b, c| fma_directed(a, b, c, Round::Up)),
        ("fma", ["rn", "sat"], Ty::F32) => f3!(|a, b, c| of_f32(saturate(fma32(a, b, c)))),
        ("fma" | "mad", ["rn"], Ty::F64) => {
            f3!(|a, b, c| f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits())
        }
        ("mad", ["lo"], _) => int3!(ty, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad", ["hi"], Ty::U32) => f3!(|a, b, c| u64::from((((a * b) >> 32) as u32).wrapping_add(c as u32))),
        ("mad", ["hi"], Ty::S32) => f3!(|a, b, c| {
            let hi = ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32;
            u64::from(hi.wrapping_add(c as u32))
        }),
        ("mad", ["wide"], Ty::U32) => {
            f3!(|a, b, c| (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c))
        }
        ("mad", ["wide"], Ty::S32) => {
            f3!(|a, b, c| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64)
        }
        ("mad", ["wide"], Ty::U16) => {
            f3!(|a, b, c| u64::from(((a & 0xffff) * (b & 0xffff)).wrapping_add(c) as u32))
        }
        ("mad", ["wide"], Ty::S16) => {
            f3!(
                |a, b, c| u64::from((i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c as i32) as u32)
            )
        }
        ("sad", [], _) => {
            int3!(ty, |a, b, c| (if a > b { a.wrapping_sub(b) } else { b.wrapping_sub(a) }).wrapping_add(c))
        }
        ("bfe", [], Ty::U32) => f3!(|a, b, c| bfe(a, b, c, 32, false)),
        ("bfe", [], Ty::S32) => f3!(|a, b, c| bfe(a, b, c, 32, true)),
        ("bfe", [], Ty::U64) => f3!(|a, b, c| bfe(a, b, c, 64, false)),
        ("bfe", [], Ty::S64) => f3!(|a, b, c| bfe(a, b, c, 64, true)),
        ("prmt", [], Ty::U32) => f3!(|a, b, c| prmt(a, b, c)),
        ("shf", ["l", "wrap"], Ty::U32) => f3!(|a, b, c| (((b << 32 | a) << (c & 31)) >> 32) & 0xffff_ffff),
        ("shf", ["l", "clamp"], Ty::U32) => {
            f3!(|a, b, c| (((b << 32 | a) << (c as u32).min(32)) >> 32) & 0xffff_ffff)
        }
        ("shf", ["r", "wrap"], Ty::U32) => f3!(|a, b, c| ((b << 32 | a) >> (c & 31)) & 0xffff_ffff),
        ("shf", ["r", "clamp"], Ty::U32) => {
            f3!(|a, b, c| ((b << 32 | a) >> (c as u32).min(32)) & 0xffff_ffff)
        }
        ("slct", ["s32"], _) if ty.bytes() >= 4 => f3!(|a, b, c| if c as i32 >= 0 { a } else { b }),
        ("slct", ["f32"], _) if ty.bytes() >= 4 => f3!(|a, b, c| if f32_of(c) >= 0.0 { a } else { b }),
        _ => return None,
    })
}

macro_rules! compare {
    ($cmp:expr, $num:ident, |$x:ident| $as:expr) => {
        match $cmp {
            "eq" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                a == b
            }),
            "ne" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                a != b
            }),
            "lt" | "lo" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                a < b
            }),
            "le" | "ls" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                a <= b
            }),
            "gt" | "hi" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                a > b
            }),
            "ge" | "hs" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                a >= b
            }),
            _ => return None,
        }
    };
}
macro_rules! compare_float {
    ($cmp:expr, |$x:ident| $as:expr) => {
        match $cmp {
            // `ne` is ordered in PTX: false where one side is a NaN.
            "ne" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                apart(a, b)
            }),
            "equ" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                !apart(a, b)
            }),
            "neu" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                a != b
            }),
            "ltu" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                !matches!(a.partial_cmp(&b), Some(std::cmp::Ordering::Equal | std::cmp::Ordering::Greater))
            }),
            "leu" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                !matches!(a.partial_cmp(&b), Some(std::cmp::Ordering::Greater))
            }),
            "gtu" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                !matches!(a.partial_cmp(&b), Some(std::cmp::Ordering::Equal | std::cmp::Ordering::Less))
            }),
            "geu" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                !matches!(a.partial_cmp(&b), Some(std::cmp::Ordering::Less))
            }),
            "num" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                !a.is_nan() && !b.is_nan()
            }),
            "nan" => p2!(|a, b| {
                let $x = a;
                let a = $as;
                let $x = b;
                let b = $as;
                a.is_nan() || b.is_nan()
            }),
            other => compare!(other, num, |$x| $as),
        }
    };
}

/// Ordered and not equal: false for a NaN.
fn apart<T: PartialOrd>(a: T, b: T) -> bool {
    matches!(a.partial_cmp(&b), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Greater))
}

/// A comparison of `ty`.
// The macro rebinds each operand under its own name: nothing is swapped.
#[allow(clippy::almost_swapped)]
pub fn comparison(cmp: &str, ftz: bool, ty: Ty) -> Option<P2> {
    Some(match ty {
        Ty::F32 if ftz => compare_float!(cmp, |x| flush(f32_of(x))),
        Ty::F32 => compare_float!(cmp, |x| f32_of(x)),
        Ty::F64 => compare_float!(cmp, |x| f64::from_bits(x)),
        Ty::U16 => compare!(cmp, num, |x| x as u16),
        Ty::S16 => compare!(cmp, num, |x| x as i16),
        Ty::U32 => compare!(cmp, num, |x| x as u32),
        Ty::S32 => compare!(cmp, num, |x| x as i32),
        Ty::U64 => compare!(cmp, num, |x| x),
        Ty::S64 => compare!(cmp, num, |x| x as i64),
        _ => return None,
    })
}

/// A rounding mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Round {
    Near,
    Zero,
    Down,
    Up,
}

/// A conversion.
#[derive(Debug, Clone, Copy)]
pub struct Cvt {
    /// To.
    pub to: Ty,
    /// From.
    pub from: Ty,
    /// How it rounds.
    pub round: Round,
    /// To an integral value (`.rni` and its kin), though the result be a float.
    pub integral: bool,
    /// `.sat`.
    pub sat: bool,
    /// `.ftz`.
    pub ftz: bool,
    /// Bits of the destination register: a narrower integer is extended into it.
    pub width: u32,
}

/// `x` sign- or zero-extended from `ty`.
fn int_value(x: u64, ty: Ty) -> i128 {
    match ty {
        Ty::U8 => i128::from(x as u8),
        Ty::S8 => i128::from(x as i8),
        Ty::U16 => i128::from(x as u16),
        Ty::S16 => i128::from(x as i16),
        Ty::U32 => i128::from(x as u32),
        Ty::S32 => i128::from(x as i32),
        Ty::S64 => i128::from(x as i64),
        _ => i128::from(x),
    }
}

/// The bits of `v` kept to `bits`.
pub fn truncate(v: u64, bits: u32) -> u64 {
    if bits >= 64 { v } else { v & ((1 << bits) - 1) }
}

fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Near => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn int_range(ty: Ty) -> (i128, i128) {
    let bits = ty.bytes() * 8;
    if ty.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// `x` rounded to a smaller float of `mant` fraction bits, exponents from `emin` to `emax`; exact in f64.
fn narrow(x: f64, round: Round, mant: i32, emin: i32, emax: i32) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    // The unit of the last place: of x's binade, or of the denormals.
    let exp = (((x.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(emin);
    let scale = 2f64.powi(mant - exp);
    let y = integral(x * scale, round) / scale;
    let top = 2f64.powi(emax) * (2.0 - 2f64.powi(-mant));
    if y.abs() > top {
        let inward = match round {
            Round::Near => false,
            Round::Zero => true,
            Round::Down => x > 0.0,
            Round::Up => x < 0.0,
        };
        return if inward { top } else { f64::INFINITY }.copysign(x);
    }
    y.copysign(x)
}

/// An integer as an f64 of `mant` fraction bits, rounded once.
fn int_to_float(v: i128, round: Round, mant: u32) -> f64 {
    let mag = v.unsigned_abs();
    let bits = 128 - mag.leading_zeros();
    let drop = bits.saturating_sub(mant + 1);
    let (mut kept, rest) = (mag >> drop, mag & ((1u128 << drop) - 1));
    let half = if drop == 0 { 0 } else { 1u128 << (drop - 1) };
    let up = rest != 0
        && match round {
            Round::Near => rest > half || (rest == half && kept & 1 == 1),
            Round::Zero => false,
            Round::Down => v < 0,
            Round::Up => v > 0,
        };
    kept += u128::from(up);
    // `kept` has at most 54 bits and is exact; the scale is a power of two.
    let y = kept as f64 * 2f64.powi(drop as i32);
    if v < 0 { -y } else { y }
}

fn half_to_f64(x: u16, mant: u32) -> f64 {
    let exp_bits = 15 - mant;
    let bias = (1 << (exp_bits - 1)) - 1;
    let sign = if x >> 15 == 1 { -1.0 } else { 1.0 };
    let exp = i32::from((x >> mant) & ((1 << exp_bits) - 1));
    let frac = f64::from(x & ((1 << mant) - 1)) / f64::from(1u32 << mant);
    if exp == (1 << exp_bits) - 1 {
        return if frac == 0.0 { sign * f64::INFINITY } else { f64::NAN };
    }
    if exp == 0 { sign * frac * 2f64.powi(1 - bias) } else { sign * (1.0 + frac) * 2f64.powi(exp - bias) }
}

fn f64_to_half(y: f64, mant: u32) -> u16 {
    let exp_bits = 15 - mant;
    let bias = (1 << (exp_bits - 1)) - 1;
    let sign = u16::from(y.is_sign_negative()) << 15;
    if y.is_nan() {
        return 0x7fff;
    }
    let a = y.abs();
    if a.is_infinite() {
        return sign | (((1u16 << exp_bits) - 1) << mant);
    }
    let exp = ((a.to_bits() >> 52) as i32 - 1023).max(1 - bias);
    // `a` was rounded to this format before: the scaled value is whole, and its carry lands in the exponent.
    let units = (a * 2f64.powi(mant as i32 - exp)) as u16;
    let code = if units >= 1 << mant { ((exp + bias) as u16) << mant | (units - (1 << mant)) } else { units };
    sign | code
}

impl Cvt {
    /// Converts one value.
    pub fn apply(&self, x: u64) -> u64 {
        let from_float = self.from.is_float();
        if !self.to.is_float() {
            let v = if from_float {
                let f = self.float_in(x);
                if f.is_nan() {
                    0
                } else {
                    let (lo, hi) = int_range(self.to);
                    let r = integral(f, self.round);
                    if r >= hi as f64 {
                        hi
                    } else if r <= lo as f64 {
                        lo
                    } else {
                        r as i128
                    }
                }
            } else {
                let v = int_value(x, self.from);
                let (lo, hi) = int_range(self.to);
                if self.sat { v.clamp(lo, hi) } else { int_value(v as u64, self.to) }
            };
            return truncate(v as u64, self.width);
        }
        if !from_float {
            let v = int_value(x, self.from);
            let mant = match self.to {
                Ty::F64 => 52,
                Ty::F32 => 23,
                Ty::F16 => 10,
                _ => 7,
            };
            return self.float_out(int_to_float(v, self.round, mant));
        }
        let mut f = self.float_in(x);
        if self.integral {
            f = integral(f, self.round);
        }
        self.float_out(f)
    }

    fn float_in(&self, x: u64) -> f64 {
        match self.from {
            Ty::F64 => f64::from_bits(x),
            Ty::F32 if self.ftz => f64::from(flush(f32_of(x))),
            Ty::F32 => f64::from(f32_of(x)),
            Ty::F16 => half_to_f64(x as u16, 10),
            _ => half_to_f64(x as u16, 7),
        }
    }

    fn float_out(&self, f: f64) -> u64 {
        let f = if self.sat { if f > 0.0 { f.min(1.0) } else { 0.0 } } else { f };
        match self.to {
            Ty::F64 => f.to_bits(),
            Ty::F32 => {
                let y = if self.round == Round::Near {
                    f as f32
                } else {
                    narrow(f, self.round, 23, -126, 127) as f32
                };
                of_f32(if self.ftz { flush(y) } else { y })
            }
            Ty::F16 => u64::from(f64_to_half(narrow(f, self.round, 10, -14, 15), 10)),
            _ => u64::from(f64_to_half(narrow(f, self.round, 7, -126, 127), 7)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fused_multiply_add_is_that_of_the_standard_library() {
        let special = [
            0,
            1,
            0x8000_0000,
            0x8000_0001,
            0x007f_ffff,
            0x0080_0000,
            0x3f80_0000,
            0xbf80_0000,
            0x3f80_0001,
            0x3f7f_ffff,
            0x7f7f_ffff,
            0xff7f_ffff,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x3380_0000,
            0x0b80_0000,
            0x2000_0000,
            0x5f00_0000,
        ];
        let check = |a: u32, b: u32, c: u32| {
            let want = f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c));
            let got = fma32(a.into(), b.into(), c.into());
            assert!(
                want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(),
                "{a:#x} * {b:#x} + {c:#x}: {want:?}, not {got:?}"
            );
        };
        for a in special {
            for b in special {
                special.iter().for_each(|c| check(a, b, *c));
            }
        }
        let mut s = 88172645463325252u64;
        let mut next = || {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 16) as u32
        };
        for i in 0..4_000_000 {
            let (a, b, c) = (next(), next(), next());
            check(a, b, c);
            // Exponents close enough that the parts meet, and ties: short fractions.
            let near = |x: u32, e: u32| x & 0x807f_ffff | (0x7f - 8 + e % 16) << 23;
            let short = |x: u32| x & 0xffff_f000;
            check(near(a, c), near(b, a), near(c, b));
            check(short(near(a, c)), short(near(b, a)), near(c, i));
            // Results that are subnormal.
            check(a & 0x807f_ffff | 0x2080_0000, b & 0x807f_ffff | 0x1f80_0000, c & 0x80ff_ffff);
        }
    }
}
