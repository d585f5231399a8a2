//! What the tests share: modules by name, buffers, arguments.
#![allow(dead_code, missing_docs)]

use softcuda::{Device, Error, Module, Shape, Stats};

pub const BASIC: &str = include_str!("../../kernels/basic.ptx");
pub const LSTM: &str = include_str!("../../kernels/lstm.ptx");
pub const FLOW: &str = include_str!("../../kernels/flow.ptx");
pub const WIDE: &str = include_str!("../../kernels/wide.ptx");
pub const FAULTS: &str = include_str!("../../kernels/faults.ptx");

pub trait Bytes {
    fn bytes(&self) -> Vec<u8>;
}
macro_rules! bytes {
    ($($t:ty),*) => {$(
        impl Bytes for $t { fn bytes(&self) -> Vec<u8> { self.to_le_bytes().to_vec() } }
        impl Bytes for [$t] { fn bytes(&self) -> Vec<u8> { self.iter().flat_map(|v| v.to_le_bytes()).collect() } }
    )*};
}
bytes!(u8, i16, u32, i32, u64, i64, f32, f64);

pub struct Gpu {
    pub dev: Device,
    pub module: Module,
}

impl Gpu {
    pub fn new(ptx: &str) -> Self {
        let mut dev = Device::new();
        let module = dev.load_module(ptx).unwrap_or_else(|e| panic!("{e}"));
        Gpu { dev, module }
    }

    pub fn put<T: Bytes + ?Sized>(&mut self, data: &T) -> u64 {
        let bytes = data.bytes();
        let at = self.dev.alloc(bytes.len() as u64).unwrap();
        self.dev.write(at, &bytes).unwrap();
        at
    }

    pub fn empty(&mut self, bytes: u64) -> u64 {
        self.dev.alloc(bytes).unwrap()
    }

    pub fn get32(&self, at: u64, n: usize) -> Vec<u32> {
        let mut raw = vec![0; n * 4];
        self.dev.read(at, &mut raw).unwrap_or_else(|e| panic!("{e}"));
        raw.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    pub fn launch(&mut self, kernel: &str, shape: Shape, args: &[&dyn Bytes]) -> Result<Stats, Error> {
        let args: Vec<Vec<u8>> = args.iter().map(|a| a.bytes()).collect();
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        self.dev.launch(&self.module, kernel, shape, &args)
    }

    pub fn ok(&mut self, kernel: &str, shape: Shape, args: &[&dyn Bytes]) -> Stats {
        self.launch(kernel, shape, args).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// Numbers that look random, the same every time.
pub fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(747796405).wrapping_add(1);
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
            (s >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}
