//! Unmodified `cudarc` on the shared object: what it can do, and that each mistake of the host or a kernel is an error.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs, unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use softcuda::{Scope, Soft};

const BASIC: &str = include_str!("../kernels/basic.ptx");

/// A context of its own for each test: a fault in it breaks no other.
fn context() -> (&'static Soft, Arc<CudaContext>) {
    let soft = softcuda::open().unwrap_or_else(|e| panic!("{e}"));
    let ctx = CudaContext::new_non_primary(0, 0).unwrap();
    (soft, ctx)
}

#[test]
fn vectors_are_added() {
    let (soft, ctx) = context();
    let stream = ctx.new_stream().unwrap();
    let module = ctx.load_module(Ptx::from_src(BASIC)).unwrap();
    let f = module.load_function("vector_add").unwrap();
    let a = stream.clone_htod(&[1.0f32, 2.0, 3.0]).unwrap();
    let b = stream.clone_htod(&[10.0f32, 20.0, 30.0]).unwrap();
    let mut out = stream.alloc_zeros::<f32>(3).unwrap();
    let n = 3i32;
    // SAFETY: the buffers hold n elements.
    unsafe {
        stream.launch_builder(&f).arg(&a).arg(&b).arg(&mut out).arg(&n).launch(LaunchConfig::for_num_elems(3))
    }
    .unwrap();
    assert_eq!(soft.counters(Scope::Context).kernel("vector_add").launches, 0, "the launch waits");
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [11.0, 22.0, 33.0]);
    assert_eq!(soft.counters(Scope::Context).kernel("vector_add").launches, 1);
    println!("{:?}", ctx.name());
}
