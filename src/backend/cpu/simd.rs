//! Vectors of f32: one trait, and an implementation for each instruction set, chosen when the program runs.
//!
//! A computation is written once as a [`Kernel`], generic over [`Simd`]. [`Isa::run`] enters it through a function that
//! is compiled for the instruction set; everything inside has to be `#[inline(always)]`, so that it is compiled for it
//! too. `std::arch` and not a crate: four dozen operations are all that is needed, and AVX-512 is stable in it.

use std::fmt;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler makes of arrays of four: runs everywhere. On x86-64 that is SSE2, on AArch64 NEON.
    Portable,
    /// AVX2 and FMA: 8 lanes, 16 registers.
    Avx2,
    /// AVX-512 F: 16 lanes, 32 registers.
    Avx512,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2+fma",
            Isa::Avx512 => "avx512",
        })
    }
}

impl Isa {
    /// All of them, the fastest last.
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// Whether this processor (and its operating system) has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::Avx512::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Those that this processor has, the fastest last.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest that this processor has.
    pub fn best() -> Isa {
        Self::available().last().copied().unwrap_or(Isa::Portable)
    }

    /// Elements of a vector.
    pub(super) fn lanes(self) -> usize {
        match self {
            Isa::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::Avx512::LANES,
            #[cfg(not(target_arch = "x86_64"))]
            _ => Portable::LANES,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Panics
    /// If the processor does not have it; [`Cpu::with_isa`](super::Cpu::with_isa) refuses it first.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::Avx2::detect().expect("AVX2 was checked").enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::Avx512::detect().expect("AVX-512 was checked").enter(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run(Portable),
        }
    }
}

/// A computation on vectors of any instruction set.
pub(super) trait Kernel {
    /// What it returns.
    type Output;
    /// The computation; `#[inline(always)]` in every implementation.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A set of vector operations. A value of an implementing type is the proof that the processor has them.
///
/// `min`, `max` and `mul_add` differ in the last bit or in what they do with a NaN from processor to processor unless
/// this says otherwise; it does.
pub(super) trait Simd: Copy + Send + Sync {
    /// Elements of a vector.
    const LANES: usize;
    /// Whether there are registers for tiles of six rows by four vectors; else they are two vectors wide.
    const WIDE: bool;
    /// A vector.
    type V: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Reads [`LANES`](Self::LANES) elements.
    ///
    /// # Safety
    /// `from` must be valid for reading that many elements.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// Writes [`LANES`](Self::LANES) elements.
    ///
    /// # Safety
    /// `to` must be valid for writing that many elements.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a − b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`, rounded once where the instruction set has it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c − a·b`, rounded once where the instruction set has it.
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `√a`
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `x`, at most `limit`; a NaN in `x` stays.
    fn at_most(self, x: Self::V, limit: Self::V) -> Self::V;
    /// `x`, at least `limit`; a NaN in `x` stays.
    fn at_least(self, x: Self::V, limit: Self::V) -> Self::V;
    /// `x` with its sign bit set where `sign`'s is.
    fn or_sign(self, x: Self::V, sign: Self::V) -> Self::V;
    /// The bits of `x` shifted left by 23: what stands in the low bits becomes the exponent.
    fn to_exponent(self, x: Self::V) -> Self::V;
    /// `x`, or +0 where its magnitude is below `limit`; a NaN stays.
    fn without_below(self, x: Self::V, limit: Self::V) -> Self::V;
    /// Whether all bits but the signs of `a`, and all bits of `b` and `c`, are zero.
    fn are_zero(self, a: Self::V, b: Self::V, c: Self::V) -> bool;

    /// Asks for the cache line of an element that will be read soon.
    #[inline(always)]
    fn prefetch(self, element: &f32) {
        let _ = element;
    }

    /// Reads the front of a slice.
    ///
    /// # Panics
    /// If it is shorter than a vector.
    #[inline(always)]
    fn get(self, from: &[f32]) -> Self::V {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice was found long enough.
        unsafe { self.load(from.as_ptr()) }
    }

    /// Reads a slice of up to a vector's length; the lanes beyond it are zero.
    #[inline(always)]
    fn get_part(self, from: &[f32]) -> Self::V {
        if from.len() == Self::LANES {
            return self.get(from);
        }
        let mut whole = [0.0; 16];
        whole[..from.len()].copy_from_slice(from);
        self.get(&whole)
    }

    /// Writes the lanes that a slice of up to a vector's length has room for.
    #[inline(always)]
    fn put_part(self, to: &mut [f32], v: Self::V) {
        if to.len() == Self::LANES {
            return self.put(to, v);
        }
        let mut whole = [0.0; 16];
        self.put(&mut whole, v);
        let n = to.len();
        to.copy_from_slice(&whole[..n]);
    }

    /// Writes the front of a slice.
    ///
    /// # Panics
    /// If it is shorter than a vector.
    #[inline(always)]
    fn put(self, to: &mut [f32], v: Self::V) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice was found long enough.
        unsafe { self.store(to.as_mut_ptr(), v) }
    }
}

/// Arrays, for the compiler to vectorise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

/// `f` of each lane.
#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    const LANES: usize = 4;
    const WIDE: bool = false;
    type V = [f32; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller's promise; an array of f32 needs no more alignment than one.
        unsafe { from.cast::<[f32; 4]>().read() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 4]>().write(v) }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|k| a[k] + b[k])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|k| a[k] - b[k])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|k| a[k] * b[k])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|k| a[k] / b[k])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|k| a[k] * b[k] + c[k])
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|k| c[k] - a[k] * b[k])
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        lanes(|k| a[k].sqrt())
    }
    #[inline(always)]
    fn at_most(self, x: Self::V, limit: Self::V) -> Self::V {
        lanes(|k| if x[k] > limit[k] { limit[k] } else { x[k] })
    }
    #[inline(always)]
    fn at_least(self, x: Self::V, limit: Self::V) -> Self::V {
        lanes(|k| if x[k] < limit[k] { limit[k] } else { x[k] })
    }
    #[inline(always)]
    fn or_sign(self, x: Self::V, sign: Self::V) -> Self::V {
        lanes(|k| f32::from_bits(x[k].to_bits() | sign[k].to_bits() & 0x8000_0000))
    }
    #[inline(always)]
    fn to_exponent(self, x: Self::V) -> Self::V {
        lanes(|k| f32::from_bits(x[k].to_bits() << 23))
    }
    #[inline(always)]
    fn without_below(self, x: Self::V, limit: Self::V) -> Self::V {
        lanes(|k| if x[k].abs() < limit[k] { 0.0 } else { x[k] })
    }
    #[inline(always)]
    fn are_zero(self, a: Self::V, b: Self::V, c: Self::V) -> bool {
        let mut bits = 0;
        for k in 0..4 {
            bits |= a[k].abs().to_bits() | b[k].to_bits() | c[k].to_bits();
        }
        bits == 0
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Simd};
    use std::arch::is_x86_feature_detected as has;
    use std::arch::x86_64::*;

    /// AVX2 and FMA. A value is the proof that the processor has both.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::backend::cpu) struct Avx2(());

    /// AVX-512 F. A value is the proof that the processor has it.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::backend::cpu) struct Avx512(());

    /// The operations that differ in names alone. Every body is one intrinsic.
    macro_rules! operations {
        ($($name:ident($($arg:ident),*) = $intrinsic:ident($($pass:ident),*);)*) => {$(
            #[inline(always)]
            fn $name(self, $($arg: Self::V),*) -> Self::V {
                // SAFETY: `self` is the proof that the processor has the instruction.
                unsafe { $intrinsic($($pass),*) }
            }
        )*};
    }

    impl Avx2 {
        pub(in crate::backend::cpu) fn detect() -> Option<Self> {
            (has!("avx2") && has!("fma")).then_some(Self(()))
        }

        pub(in crate::backend::cpu) fn enter<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx2,fma")]
            fn compiled<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
                kernel.run(s)
            }
            // SAFETY: `self` is the proof that the processor has the features.
            unsafe { compiled(self, kernel) }
        }
    }

    impl Simd for Avx2 {
        const LANES: usize = 8;
        const WIDE: bool = false;
        type V = __m256;

        operations! {
            add(a, b) = _mm256_add_ps(a, b);
            sub(a, b) = _mm256_sub_ps(a, b);
            mul(a, b) = _mm256_mul_ps(a, b);
            div(a, b) = _mm256_div_ps(a, b);
            mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
            neg_mul_add(a, b, c) = _mm256_fnmadd_ps(a, b, c);
            sqrt(a) = _mm256_sqrt_ps(a);
            // The second operand is what the instruction returns for a NaN.
            at_most(x, limit) = _mm256_min_ps(limit, x);
            at_least(x, limit) = _mm256_max_ps(limit, x);
        }
        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: `self` is the proof that the processor has the instruction.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(self, from: *const f32) -> Self::V {
            // SAFETY: the caller's promise, and `self`.
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32, v: Self::V) {
            // SAFETY: the caller's promise, and `self`.
            unsafe { _mm256_storeu_ps(to, v) }
        }
        #[inline(always)]
        fn prefetch(self, element: &f32) {
            // SAFETY: any address may be prefetched.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(element).cast()) }
        }
        #[inline(always)]
        fn or_sign(self, x: Self::V, sign: Self::V) -> Self::V {
            // SAFETY: `self` is the proof that the processor has the instructions.
            unsafe { _mm256_or_ps(x, _mm256_and_ps(sign, _mm256_set1_ps(-0.0))) }
        }
        #[inline(always)]
        fn to_exponent(self, x: Self::V) -> Self::V {
            // SAFETY: `self` is the proof that the processor has the instruction.
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(x))) }
        }
        #[inline(always)]
        fn without_below(self, x: Self::V, limit: Self::V) -> Self::V {
            // SAFETY: `self` is the proof that the processor has the instructions.
            unsafe {
                let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(magnitude, limit), x)
            }
        }
        #[inline(always)]
        fn are_zero(self, a: Self::V, b: Self::V, c: Self::V) -> bool {
            // SAFETY: `self` is the proof that the processor has the instructions.
            unsafe {
                let bits = _mm256_or_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a), _mm256_or_ps(b, c));
                let bits = _mm256_castps_si256(bits);
                _mm256_testz_si256(bits, bits) == 1
            }
        }
    }

    impl Avx512 {
        pub(in crate::backend::cpu) fn detect() -> Option<Self> {
            has!("avx512f").then_some(Self(()))
        }

        pub(in crate::backend::cpu) fn enter<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx512f")]
            fn compiled<K: Kernel>(s: Avx512, kernel: K) -> K::Output {
                kernel.run(s)
            }
            // SAFETY: `self` is the proof that the processor has the feature.
            unsafe { compiled(self, kernel) }
        }
    }

    impl Simd for Avx512 {
        const LANES: usize = 16;
        const WIDE: bool = true;
        type V = __m512;

        operations! {
            add(a, b) = _mm512_add_ps(a, b);
            sub(a, b) = _mm512_sub_ps(a, b);
            mul(a, b) = _mm512_mul_ps(a, b);
            div(a, b) = _mm512_div_ps(a, b);
            mul_add(a, b, c) = _mm512_fmadd_ps(a, b, c);
            neg_mul_add(a, b, c) = _mm512_fnmadd_ps(a, b, c);
            sqrt(a) = _mm512_sqrt_ps(a);
            // The second operand is what the instruction returns for a NaN.
            at_most(x, limit) = _mm512_min_ps(limit, x);
            at_least(x, limit) = _mm512_max_ps(limit, x);
        }
        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: `self` is the proof that the processor has the instruction.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(self, from: *const f32) -> Self::V {
            // SAFETY: the caller's promise, and `self`.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32, v: Self::V) {
            // SAFETY: the caller's promise, and `self`.
            unsafe { _mm512_storeu_ps(to, v) }
        }
        #[inline(always)]
        fn prefetch(self, element: &f32) {
            // SAFETY: any address may be prefetched.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(element).cast()) }
        }
        #[inline(always)]
        fn or_sign(self, x: Self::V, sign: Self::V) -> Self::V {
            // SAFETY: `self` is the proof that the processor has the instructions.
            unsafe {
                let (x, sign) = (_mm512_castps_si512(x), _mm512_castps_si512(sign));
                let mask = _mm512_set1_epi32(i32::MIN);
                // a | (b & c)
                _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0b1111_1000>(x, sign, mask))
            }
        }
        #[inline(always)]
        fn to_exponent(self, x: Self::V) -> Self::V {
            // SAFETY: `self` is the proof that the processor has the instruction.
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(x))) }
        }
        #[inline(always)]
        fn without_below(self, x: Self::V, limit: Self::V) -> Self::V {
            // SAFETY: `self` is the proof that the processor has the instructions.
            unsafe {
                // Not "below": true for a NaN.
                let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(x), limit);
                _mm512_maskz_mov_ps(keep, x)
            }
        }
        #[inline(always)]
        fn are_zero(self, a: Self::V, b: Self::V, c: Self::V) -> bool {
            // SAFETY: `self` is the proof that the processor has the instructions.
            unsafe {
                let a = _mm512_castps_si512(_mm512_abs_ps(a));
                let bits =
                    _mm512_or_si512(a, _mm512_or_si512(_mm512_castps_si512(b), _mm512_castps_si512(c)));
                _mm512_test_epi32_mask(bits, bits) == 0
            }
        }
    }
}
