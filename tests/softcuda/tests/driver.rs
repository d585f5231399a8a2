//! Unmodified `cudarc` on the shared object: what it can do, and that each mistake of the host or of a kernel is an error.
//!
//! Every test has a context of its own, so that a fault breaks no other test. Options of the whole process are in `options.rs`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs, unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc::Ptx;
use softcuda::{KernelCounters, Scope, Soft};
use sys::CUresult as E;
use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as LOCAL;

const BASIC: &str = include_str!("../kernels/basic.ptx");
const FAULTS: &str = include_str!("../kernels/faults.ptx");
const GRID: &str = include_str!("../kernels/grid.ptx");

struct T {
    soft: &'static Soft,
    ctx: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

/// A context of its own, without cudarc's event tracking: the tests plant what that would hide.
fn test() -> T {
    let soft = softcuda::open().unwrap_or_else(|e| panic!("{e}"));
    let ctx = CudaContext::new_non_primary(0, 0).unwrap();
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    T { soft, ctx, stream }
}

impl T {
    fn kernel(&self, ptx: &str, name: &str) -> CudaFunction {
        self.ctx.load_module(Ptx::from_src(ptx)).unwrap().load_function(name).unwrap()
    }

    fn counters(&self) -> softcuda::Counters {
        self.soft.counters(Scope::Context)
    }

    fn fault(&self) -> String {
        let f = self.soft.last_fault(Scope::Context).expect("no fault was noted");
        format!("{}: {}", f.kind, f.text)
    }

    fn increment(&self, stream: &Arc<CudaStream>, f: &CudaFunction, x: &mut CudaSlice<u32>) {
        unsafe { stream.launch_builder(f).arg(x).launch(shape(1, 1)) }.unwrap();
    }
}

fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

fn code<X: std::fmt::Debug>(r: Result<X, DriverError>) -> E {
    r.expect_err("the mistake was not caught").0
}

#[test]
fn vectors_are_added() {
    let t = test();
    let f = t.kernel(BASIC, "vector_add");
    let a = t.stream.clone_htod(&[1.0f32, 2.0, 3.0]).unwrap();
    let b = t.stream.clone_htod(&[10.0f32, 20.0, 30.0]).unwrap();
    let mut out = t.stream.alloc_zeros::<f32>(3).unwrap();
    unsafe {
        t.stream
            .launch_builder(&f)
            .arg(&a)
            .arg(&b)
            .arg(&mut out)
            .arg(&3i32)
            .launch(LaunchConfig::for_num_elems(3))
    }
    .unwrap();
    assert_eq!(t.counters().kernel("vector_add").launches, 0, "the launch did not wait for its stream");
    assert_eq!(t.stream.clone_dtoh(&out).unwrap(), [11.0, 22.0, 33.0]);
    assert_eq!(t.counters().kernel("vector_add").launches, 1);
    let c = t.counters().totals;
    assert_eq!((c.direct_launches, c.graph_launches, c.htod_copies, c.htod_bytes), (1, 0, 2, 24));
    assert_eq!((c.dtoh_copies, c.dtoh_bytes, c.memsets, c.allocations), (1, 12, 1, 3));
    assert!(t.ctx.name().unwrap().contains("software"));
    assert_eq!(t.ctx.compute_capability().unwrap(), (7, 5));
    assert!(t.ctx.mem_get_info().unwrap().0 > 0 && t.ctx.total_mem().unwrap() > 0);
    assert_eq!(t.ctx.uuid().unwrap().bytes[0], b's' as _);
}

#[test]
fn event_tracking_of_cudarc_works_across_streams() {
    softcuda::open().unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let (a, b) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
    let f = ctx.load_module(Ptx::from_src(GRID)).unwrap().load_function("increment").unwrap();
    let mut x = a.clone_htod(&[5u32]).unwrap();
    for s in [&a, &b, &a, &b] {
        unsafe { s.launch_builder(&f).arg(&mut x).launch(shape(1, 1)) }.unwrap();
    }
    assert_eq!(b.clone_dtoh(&x).unwrap(), [9]);
    drop(x);
    ctx.synchronize().unwrap();
    ctx.check_err().unwrap();
}

#[test]
fn a_missing_wait_between_streams_is_seen() {
    let t = test();
    let other = t.ctx.new_stream().unwrap();
    let f = t.kernel(GRID, "increment");
    let mut x = t.stream.clone_htod(&[0u32]).unwrap();
    t.stream.synchronize().unwrap();
    t.increment(&t.stream, &f, &mut x);
    assert_eq!(other.clone_dtoh(&x).unwrap(), [0], "the other stream was not told to wait");
    let done = t.stream.record_event(None).unwrap();
    other.wait(&done).unwrap();
    assert_eq!(other.clone_dtoh(&x).unwrap(), [1]);
    // Each stream waits for the other, many times: no recursion, and the order holds.
    for _ in 0..5000 {
        t.increment(&other, &f, &mut x);
        t.stream.join(&other).unwrap();
        t.increment(&t.stream, &f, &mut x);
        other.join(&t.stream).unwrap();
    }
    assert_eq!(other.clone_dtoh(&x).unwrap(), [10001]);
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_only() {
    let t = test();
    let f = t.kernel(GRID, "increment");
    let mut x = t.stream.clone_htod(&[0u32]).unwrap();
    t.stream.synchronize().unwrap();
    let legacy = t.ctx.default_stream();
    t.increment(&t.stream, &f, &mut x);
    assert_eq!(legacy.clone_dtoh(&x).unwrap(), [0], "cudarc's streams are non-blocking");
    t.stream.synchronize().unwrap();
    let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
    let launch = |x: &mut CudaSlice<u32>| {
        use cudarc::driver::DevicePtr;
        let mut at = x.device_ptr(&t.stream).0;
        let mut args = [(&raw mut at).cast::<c_void>()];
        let raw = unsafe { result::module::get_function(module(GRID), c"increment".into()) }.unwrap();
        unsafe { result::launch_kernel(raw, (1, 1, 1), (1, 1, 1), 0, blocking, &mut args) }.unwrap();
    };
    launch(&mut x);
    assert_eq!(legacy.clone_dtoh(&x).unwrap(), [2]);
    // And the other way round.
    t.increment(&legacy, &f, &mut x);
    launch(&mut x);
    unsafe { result::stream::synchronize(blocking) }.unwrap();
    assert_eq!(t.stream.clone_dtoh(&x).unwrap(), [4]);
    unsafe { result::stream::destroy(blocking) }.unwrap();
}

fn module(ptx: &str) -> sys::CUmodule {
    let text = std::ffi::CString::new(ptx).unwrap();
    unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap()
}

#[test]
fn pinned_memory_is_read_and_written_when_the_copy_runs() {
    let t = test();
    let mut pinned = unsafe { t.ctx.alloc_pinned_with_flags::<u32>(1, 0) }.unwrap();
    let at = pinned.as_mut_ptr().unwrap();
    let mut flags = 9;
    assert_eq!(unsafe { sys::cuMemHostGetFlags(&mut flags, at.cast()) }, E::CUDA_SUCCESS);
    unsafe { at.write(1) };
    let mut x = t.stream.alloc_zeros::<u32>(1).unwrap();
    t.stream.memcpy_htod(&pinned, &mut x).unwrap();
    unsafe { at.write(2) };
    assert_eq!(t.stream.clone_dtoh(&x).unwrap(), [2], "the copy ran before anything waited for it");
    let mut page = [3u32];
    t.stream.memcpy_htod(&page, &mut x).unwrap();
    page[0] = 4;
    t.stream.memcpy_dtoh(&x, &mut pinned).unwrap();
    assert_eq!((unsafe { at.read() }, page), (2, [4]), "nobody waited for the copy to pinned memory");
    t.stream.synchronize().unwrap();
    assert_eq!(unsafe { at.read() }, 3);
}

#[test]
fn events_have_times_and_queries_get_there() {
    let t = test();
    let f = t.kernel(GRID, "increment");
    let mut x = t.stream.clone_htod(&[0u32]).unwrap();
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = t.stream.record_event(flags).unwrap();
    t.increment(&t.stream, &f, &mut x);
    let end = t.stream.record_event(flags).unwrap();
    let mut busy = 0;
    while !end.is_complete() {
        busy += 1;
        assert!(busy < 100, "polling must get there");
    }
    assert!(busy >= 3, "the work was done before anybody asked");
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
}

#[test]
fn a_graph_is_captured_and_replayed() {
    let t = test();
    let f = t.kernel(GRID, "increment");
    let mut x = t.stream.clone_htod(&[0u32]).unwrap();
    let mut y = t.stream.alloc_zeros::<u32>(1).unwrap();
    t.stream.synchronize().unwrap();
    t.soft.clear_counters(Scope::Context);
    let other = t.ctx.new_stream().unwrap();
    t.stream.begin_capture(LOCAL).unwrap();
    assert_eq!(
        t.stream.capture_status().unwrap(),
        sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
    );
    t.increment(&t.stream, &f, &mut x);
    other.join(&t.stream).unwrap();
    t.increment(&other, &f, &mut x);
    t.stream.join(&other).unwrap();
    t.stream.memcpy_dtod(&x, &mut y).unwrap();
    let graph = t.stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.upload().unwrap();
    assert_eq!(t.stream.clone_dtoh(&x).unwrap(), [0], "captured work ran");
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    assert_eq!(t.stream.clone_dtoh(&y).unwrap(), [6]);
    let c = t.counters();
    assert_eq!((c.totals.direct_launches, c.totals.graph_launches), (0, 3));
    assert_eq!((c.totals.graph_kernel_nodes, c.totals.graph_other_nodes), (6, 3));
    assert_eq!((c.kernel("increment").launches, c.totals.synchronisations), (6, 0));
    // The nodes, and a kernel node whose argument is changed.
    let mut n = 0;
    let mut nodes = [std::ptr::null_mut(); 8];
    unsafe {
        assert_eq!(sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut n), E::CUDA_SUCCESS);
        assert_eq!(n, 3);
        assert_eq!(sys::cuGraphGetNodes(graph.cu_graph(), nodes.as_mut_ptr(), &mut n), E::CUDA_SUCCESS);
        let mut p: sys::CUDA_KERNEL_NODE_PARAMS = std::mem::zeroed();
        assert_eq!(sys::cuGraphKernelNodeGetParams_v2(nodes[0], &mut p), E::CUDA_SUCCESS);
        assert_eq!((p.gridDimX, p.blockDimX, p.blockDimZ), (1, 1, 1));
        use cudarc::driver::DevicePtr;
        let mut at = y.device_ptr(&t.stream).0;
        let mut args = [(&raw mut at).cast::<c_void>()];
        p.kernelParams = args.as_mut_ptr();
        assert_eq!(
            sys::cuGraphExecKernelNodeSetParams_v2(graph.cu_graph_exec(), nodes[0], &p),
            E::CUDA_SUCCESS
        );
    }
    graph.launch().unwrap();
    assert_eq!(t.stream.clone_dtoh(&x).unwrap(), [7], "one of two nodes counts up x");
}

/// Begins a capture, does `what`, and ends it: the first error of both.
fn captured(t: &T, what: impl FnOnce() -> Result<(), DriverError>) -> (E, E) {
    t.stream.begin_capture(LOCAL).unwrap();
    let first = code(what());
    let end = t.stream.end_capture(sys::CUgraphInstantiate_flags(0));
    (first, end.err().map_or(E::CUDA_SUCCESS, |e| e.0))
}

#[test]
fn what_a_capture_forbids() {
    let t = test();
    let f = t.kernel(GRID, "increment");
    let mut x = t.stream.clone_htod(&[0u32]).unwrap();
    let outside = t.stream.record_event(None).unwrap();
    t.stream.synchronize().unwrap();
    let unsupported = (E::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, E::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_eq!(captured(&t, || t.stream.synchronize()), unsupported);
    assert_eq!(captured(&t, || t.ctx.synchronize()), unsupported);
    assert_eq!(captured(&t, || outside.synchronize()), unsupported);
    assert_eq!(captured(&t, || unsafe { result::malloc_sync(4) }.map(|_| ())), unsupported);
    assert_eq!(captured(&t, || t.stream.clone_dtoh(&x).map(|_| ())), unsupported);
    let wait = captured(&t, || t.stream.wait(&outside));
    assert_eq!(wait, (E::CUDA_ERROR_STREAM_CAPTURE_ISOLATION, E::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
    // After the first mistake, the capture takes nothing more.
    t.stream.begin_capture(LOCAL).unwrap();
    assert!(t.stream.synchronize().is_err());
    let more = unsafe { t.stream.launch_builder(&f).arg(&mut x).launch(shape(1, 1)) };
    assert_eq!(code(more.map(|_| ())), E::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert!(t.stream.end_capture(sys::CUgraphInstantiate_flags(0)).is_err());
    // An allocation is refused, and leaves the capture as it is.
    let alloc = captured(&t, || t.stream.alloc_zeros::<u32>(1).map(|_| ()));
    assert_eq!(alloc, (E::CUDA_ERROR_NOT_SUPPORTED, E::CUDA_SUCCESS));
    // Events of the capture are for its streams alone.
    let inside = t.ctx.new_event(None).unwrap();
    let wait = captured(&t, || {
        inside.record(&t.stream)?;
        inside.try_is_complete().map(|_| ())
    });
    assert_eq!(wait.0, E::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(code(inside.try_is_complete().map(|_| ())), E::CUDA_ERROR_CAPTURED_EVENT);
    assert_eq!(code(t.stream.wait(&inside)), E::CUDA_ERROR_CAPTURED_EVENT);
    // Work of a second stream must be joined.
    let other = t.ctx.new_stream().unwrap();
    t.stream.begin_capture(LOCAL).unwrap();
    other.join(&t.stream).unwrap();
    t.increment(&other, &f, &mut x);
    let end = t.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map(|_| ());
    assert_eq!(code(end), E::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    // The second stream cannot end the capture, nor can another thread.
    t.stream.begin_capture(LOCAL).unwrap();
    other.join(&t.stream).unwrap();
    let end = other.end_capture(sys::CUgraphInstantiate_flags(0)).map(|_| ());
    assert_eq!(code(end), E::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    std::thread::scope(|s| {
        let stream = &t.stream;
        let end =
            s.spawn(move || stream.end_capture(sys::CUgraphInstantiate_flags(0)).map(|_| ()).unwrap_err().0);
        assert_eq!(end.join().unwrap(), E::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    });
    assert!(t.stream.end_capture(sys::CUgraphInstantiate_flags(0)).is_err());
    // The legacy stream: it cannot capture, and a capturing blocking stream keeps it still.
    let legacy = t.ctx.default_stream();
    assert_eq!(code(legacy.begin_capture(LOCAL)), E::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
    unsafe { result::stream::begin_capture(blocking, LOCAL) }.unwrap();
    let implicit = code(legacy.memset_zeros(&mut x));
    assert_eq!(implicit, E::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    assert!(unsafe { result::stream::end_capture(blocking) }.is_err());
    // Nothing of all this broke anything.
    t.increment(&t.stream, &f, &mut x);
    assert_eq!(t.stream.clone_dtoh(&x).unwrap(), [1]);
}

/// Launches a kernel of `faults.ptx` on 64 floats: the error, that it sticks, and what is told.
fn faulty(name: &str, threads: u32, inputs: usize, told: [&str; 3]) -> E {
    let t = test();
    let f = t.kernel(FAULTS, name);
    let x = t.stream.clone_htod(&[1.0f32; 64]).unwrap();
    let out = t.stream.clone_htod(&[0.0f32; 64]).unwrap();
    let mut b = t.stream.launch_builder(&f);
    if inputs > 0 {
        b.arg(&x);
    }
    unsafe { b.arg(&out).launch(shape(1, threads)) }.unwrap();
    let e = code(t.stream.synchronize());
    // It stays broken: every later call gives the same code.
    assert_eq!(code(t.ctx.synchronize()), e);
    assert_eq!(code(t.stream.clone_dtoh(&x).map(|_| ())), e);
    assert_eq!(code(unsafe { result::malloc_sync(4) }.map(|_| ())), e);
    let text = t.fault();
    for part in told.iter().chain(&[&*format!("kernel `{name}`"), "PTX line", "thread ("]) {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Another context is not.
    let other = test();
    assert_eq!(other.stream.clone_dtoh(&other.stream.clone_htod(&[7u32]).unwrap()).unwrap(), [7]);
    e
}

#[test]
fn faults_of_kernels_are_errors_that_stick() {
    use E::*;
    let cases = [
        ("load_past_end", 64, 1, ["OutOfBounds", "ld.global", "(63,0,0)"], CUDA_ERROR_ILLEGAL_ADDRESS),
        ("store_past_end", 64, 0, ["OutOfBounds", "st.global", "(63,0,0)"], CUDA_ERROR_ILLEGAL_ADDRESS),
        ("misaligned", 32, 1, ["Misaligned", "ld.global", "(0,0,0)"], CUDA_ERROR_MISALIGNED_ADDRESS),
        ("shared_unwritten", 64, 0, ["Uninitialised", "ld.shared", "(4,0,0)"], CUDA_ERROR_LAUNCH_FAILED),
        ("race_block", 64, 0, ["Race", "shared", "no barrier"], CUDA_ERROR_LAUNCH_FAILED),
        ("race_warp", 32, 0, ["Race", "ld.volatile.shared", "no barrier"], CUDA_ERROR_LAUNCH_FAILED),
        ("divergent_barrier", 32, 0, ["Divergence", "bar.", "wait"], CUDA_ERROR_LAUNCH_FAILED),
    ];
    for (name, threads, inputs, told, expect) in cases {
        assert_eq!(faulty(name, threads, inputs, told), expect, "{name}");
    }
}

#[test]
fn memory_that_is_gone_or_was_never_written() {
    let t = test();
    let f = t.kernel(FAULTS, "copy");
    let (x, out) = (t.stream.clone_htod(&[1.0f32; 64]).unwrap(), t.stream.alloc_zeros::<f32>(64).unwrap());
    let at = {
        use cudarc::driver::DevicePtr;
        x.device_ptr(&t.stream).0
    };
    drop(x);
    unsafe { t.stream.launch_builder(&f).arg(&at).arg(&out).launch(shape(1, 64)) }.unwrap();
    assert_eq!(code(t.stream.synchronize()), E::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(t.fault().contains("freed"), "{}", t.fault());

    let t = test();
    let x = unsafe { t.stream.alloc::<f32>(4) }.unwrap();
    assert_eq!(code(t.stream.clone_dtoh(&x).map(|_| ())), E::CUDA_ERROR_LAUNCH_FAILED);
    assert!(t.fault().contains("nothing wrote"), "{}", t.fault());

    // A copy on the device hands on what was not written; a copy past the end is refused at the call and breaks nothing.
    let t = test();
    let x = unsafe { t.stream.alloc::<u32>(4) }.unwrap();
    let mut y = t.stream.alloc_zeros::<u32>(4).unwrap();
    t.stream.memcpy_htod(&[5u32, 6], &mut y).unwrap();
    t.stream.memcpy_dtod(&x.slice(0..2), &mut y.slice_mut(2..4)).unwrap();
    assert_eq!(t.stream.clone_dtoh(&y.slice(0..2)).unwrap(), [5, 6]);
    let past = unsafe {
        use cudarc::driver::DevicePtr;
        result::memset_d8_async(y.device_ptr(&t.stream).0 + 8, 0, 9, t.stream.cu_stream())
    };
    assert_eq!(code(past), E::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(t.stream.clone_dtoh(&y).map(|_| ())), E::CUDA_ERROR_LAUNCH_FAILED);
}

#[test]
fn memory_runs_out() {
    let t = test();
    let huge = t.ctx.total_mem().unwrap() + 1;
    assert_eq!(code(t.stream.alloc_zeros::<u8>(huge).map(|_| ())), E::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(code(unsafe { result::malloc_sync(huge) }), E::CUDA_ERROR_OUT_OF_MEMORY);
    // It is not sticky.
    assert_eq!(t.stream.clone_dtoh(&t.stream.alloc_zeros::<u8>(3).unwrap()).unwrap(), [0; 3]);
    assert_eq!(code(unsafe { result::malloc_sync(0) }), E::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn images_that_cannot_be_loaded() {
    let t = test();
    let load = |text: String| code(t.ctx.load_module(Ptx::from_src(text)).map(|_| ()));
    assert_eq!(load(BASIC.replace(".version 8.1", ".version 8.2")), E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert_eq!(load(BASIC.replace(".target sm_75", ".target sm_80")), E::CUDA_ERROR_INVALID_PTX);
    assert_eq!(load(BASIC.replace("fma.rn.f32", "frobnicate.f32")), E::CUDA_ERROR_INVALID_PTX);
    assert_eq!(load("no PTX at all".into()), E::CUDA_ERROR_INVALID_PTX);
    let cubin = Ptx::from_binary(b"\x7fELF\x02\x01\x01\0".to_vec());
    assert_eq!(code(t.ctx.load_module(cubin).map(|_| ())), E::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let module = t.ctx.load_module(Ptx::from_src(BASIC)).unwrap();
    assert_eq!(code(module.load_function("missing").map(|_| ())), E::CUDA_ERROR_NOT_FOUND);
    // The log names the line.
    let text = std::ffi::CString::new(BASIC.replace("fma.rn.f32", "frobnicate.f32")).unwrap();
    let mut log = [0u8; 512];
    let mut module = std::ptr::null_mut();
    use sys::CUjit_option::{CU_JIT_ERROR_LOG_BUFFER as LOG, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES as SIZE};
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
    let e = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            text.as_ptr().cast(),
            2,
            [LOG, SIZE].as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    assert_eq!(e, E::CUDA_ERROR_INVALID_PTX);
    let log = std::ffi::CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap();
    let line = BASIC.lines().position(|l| l.contains("fma.rn.f32")).unwrap() + 1;
    assert!(log.contains(&format!("PTX line {line} ")) && log.contains("frobnicate"), "{log}");
}

#[test]
fn handles_that_are_gone() {
    let t = test();
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
    unsafe { result::stream::destroy(stream) }.unwrap();
    assert_eq!(code(unsafe { result::stream::synchronize(stream) }), E::CUDA_ERROR_INVALID_HANDLE);
    let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
    unsafe { result::event::destroy(event) }.unwrap();
    assert_eq!(
        code(unsafe { result::event::record(event, t.stream.cu_stream()) }),
        E::CUDA_ERROR_INVALID_HANDLE
    );
    let module = module(BASIC);
    let f = unsafe { result::module::get_function(module, c"gemm".into()) }.unwrap();
    unsafe { result::module::unload(module) }.unwrap();
    let launch = unsafe { result::launch_kernel(f, (1, 1, 1), (1, 1, 1), 0, t.stream.cu_stream(), &mut []) };
    assert_eq!(code(launch), E::CUDA_ERROR_INVALID_HANDLE);
    let odd: sys::CUstream = std::ptr::without_provenance_mut(0xdead);
    assert_eq!(code(unsafe { result::stream::synchronize(odd) }), E::CUDA_ERROR_INVALID_HANDLE);
    let at = unsafe { result::malloc_sync(16) }.unwrap();
    unsafe { result::free_sync(at) }.unwrap();
    assert_eq!(code(unsafe { result::free_sync(at) }), E::CUDA_ERROR_INVALID_VALUE);
    assert!(DriverError(E::CUDA_ERROR_INVALID_HANDLE).to_string().contains("CUDA_ERROR_INVALID_HANDLE"));
}

#[test]
fn arguments_and_shapes_that_cannot_be() {
    let t = test();
    let f = t.kernel(FAULTS, "many_args");
    let x = t.stream.clone_htod(&[1.0f32]).unwrap();
    let launch = |s: LaunchConfig| {
        let r = unsafe {
            t.stream.launch_builder(&f).arg(&1i32).arg(&2.5f64).arg(&3i16).arg(&x).arg(&x).launch(s)
        };
        code(r.map(|_| ()))
    };
    assert_eq!(launch(shape(1, 1025)), E::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(shape(0, 1)), E::CUDA_ERROR_INVALID_VALUE);
    let large = LaunchConfig { shared_mem_bytes: 49 * 1024, ..shape(1, 1) };
    assert_eq!(launch(large), E::CUDA_ERROR_INVALID_VALUE);
    // As one buffer, its size is checked: 4 + 8 + 2 + 8 + 8 bytes, aligned, are 40.
    let f = unsafe { result::module::get_function(module(FAULTS), c"many_args".into()) }.unwrap();
    let buffer = [0u8; 64];
    let with = |size: usize| {
        let mut size = size;
        let key = |k: usize| std::ptr::without_provenance_mut::<c_void>(k);
        let mut extra = [key(1), buffer.as_ptr().cast_mut().cast(), key(2), (&raw mut size).cast(), key(0)];
        let none = std::ptr::null_mut();
        unsafe { sys::cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, t.stream.cu_stream(), none, extra.as_mut_ptr()) }
    };
    assert_eq!(
        (with(32), with(48), with(36)),
        (E::CUDA_ERROR_INVALID_VALUE, E::CUDA_ERROR_INVALID_VALUE, E::CUDA_ERROR_INVALID_VALUE)
    );
    assert_eq!(with(40), E::CUDA_SUCCESS);
    // Null pointers are not followed.
    let raw = |args: *mut *mut c_void| unsafe {
        sys::cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, t.stream.cu_stream(), args, std::ptr::null_mut())
    };
    assert_eq!(raw(std::ptr::null_mut()), E::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(raw([std::ptr::null_mut(); 5].as_mut_ptr()), E::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn shared_memory_is_opted_in_to() {
    let t = test();
    let f = t.kernel(BASIC, "block_sum");
    use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC;
    let x = t.stream.clone_htod(&[1.0f32; 128]).unwrap();
    let mut out = t.stream.alloc_zeros::<f32>(1).unwrap();
    let mut launch = |kib: u32| {
        let s = LaunchConfig { shared_mem_bytes: kib * 1024, ..shape(1, 128) };
        unsafe { t.stream.launch_builder(&f).arg(&x).arg(&mut out).arg(&128i32).launch(s) }.map(|_| ())
    };
    launch(48).unwrap();
    assert_eq!(code(launch(64)), E::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(f.set_attribute(DYNAMIC, 65 * 1024)), E::CUDA_ERROR_INVALID_VALUE);
    f.set_attribute(DYNAMIC, 64 * 1024).unwrap();
    launch(64).unwrap();
    assert_eq!(t.stream.clone_dtoh(&out).unwrap(), [128.0]);
    assert_eq!(
        (f.num_regs().unwrap(), f.shared_size_bytes().unwrap(), f.max_threads_per_block().unwrap()),
        (0, 0, 1024)
    );
    assert_eq!(f.occupancy_max_active_blocks_per_multiprocessor(128, 32 * 1024, None).unwrap(), 2);
}

#[test]
fn a_cooperative_grid_waits_for_all_its_blocks() {
    let t = test();
    let f = t.kernel(GRID, "grid_sum");
    let mut part = t.stream.alloc_zeros::<u32>(4096).unwrap();
    let mut out = t.stream.alloc_zeros::<u32>(4096).unwrap();
    let mut launch = |blocks: u32| {
        // It counts from 0 in each launch: blocks that find more there do not wait for all, and race.
        let mut bar = t.stream.alloc_zeros::<u32>(1).unwrap();
        let mut b = t.stream.launch_builder(&f);
        unsafe { b.arg(&mut part).arg(&mut out).arg(&mut bar).launch_cooperative(shape(blocks, 64)) }
            .map(|_| ())
    };
    launch(40).unwrap();
    // 40 multiprocessors hold 16 blocks of 64 threads each.
    launch(640).unwrap();
    assert_eq!(code(launch(641)), E::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    assert_eq!(t.stream.clone_dtoh(&out.slice(..1)).unwrap(), [640 * 641 / 2]);
}

#[test]
fn counts_are_exact() {
    let t = test();
    // 2 blocks of 64 threads: one f32 add, one fma, a branch that half of the second warp takes, a barrier.
    let tiny = ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry tiny(.param .u64 p, .param .u32 stride)\n{\n\
        .reg .pred %p<2>;\n.reg .b32 %r<6>;\n.reg .b64 %rd<5>;\n.reg .f32 %f<4>;\n.shared .align 4 .b8 s[4096];\n\
        ld.param.u64 %rd1, [p];\nld.param.u32 %r1, [stride];\nmov.u32 %r2, %tid.x;\nmul.lo.u32 %r3, %r2, %r1;\n\
        mul.wide.u32 %rd2, %r3, 4;\nadd.u64 %rd3, %rd1, %rd2;\nld.global.f32 %f1, [%rd3];\nadd.f32 %f2, %f1, %f1;\n\
        fma.rn.f32 %f3, %f2, %f1, %f2;\nmov.u64 %rd4, s;\nmov.u32 %r4, s;\nadd.u32 %r5, %r4, %r3;\nshl.b32 %r5, %r3, 2;\n\
        st.shared.f32 [%r5], %f3;\nbar.sync 0;\nsetp.ge.u32 %p1, %r2, 48;\n@%p1 bra E;\nrcp.approx.f32 %f3, %f3;\nE:\nret;\n}\n";
    let f = t.kernel(tiny, "tiny");
    t.soft.set("detail", 1).unwrap();
    let x = t.stream.clone_htod(&vec![1.0f32; 64 * 16]).unwrap();
    let run = |stride: u32| {
        t.soft.clear_counters(Scope::Context);
        unsafe { t.stream.launch_builder(&f).arg(&x).arg(&stride).launch(shape(2, 64)) }.unwrap();
        t.stream.synchronize().unwrap();
        assert_eq!(t.counters().totals.synchronisations, 1);
        t.counters().kernel("tiny")
    };
    let c = run(1);
    let expect = KernelCounters {
        launches: 1,
        blocks: 2,
        fp32: 128,
        fma32: 128,
        // mul, mul.wide, add.u64, add.u32, shl, setp.
        int: 6 * 128,
        special: 96,
        load_global: 128,
        store_shared: 128,
        // A branch by 2 * 16 threads, and a return by all.
        control: 32 + 128,
        barrier: 128,
        warp_barriers: 4,
        global_loads: 4,
        global_load_sectors: 16,
        shared_accesses: 4,
        shared_passes: 4,
        other: c.other,
        warp_instructions: c.warp_instructions,
        ..KernelCounters::default()
    };
    assert_eq!(c, expect);
    // Every 8th float: each thread has a sector of its own, and 8 threads share a bank.
    let c = run(8);
    assert_eq!((c.global_load_sectors, c.bank_conflicts), (4 * 32, 4 * 7));
    let c = run(2);
    assert_eq!((c.global_load_sectors, c.bank_conflicts), (4 * 8, 4));
}

/// What a pass over shared memory moves: a register of all lanes, two of a load for which neighbours ask together.
#[test]
fn passes_over_shared_memory() {
    let t = test();
    // A warp stores four numbers a lane side by side, then each lane loads `size` bytes at lane / divide % modulo * factor.
    let source = |load: &str| {
        format!(
            ".version 8.1\n.target sm_75\n.address_size 64\n\
            .visible .entry passes(.param .u32 divide, .param .u32 modulo, .param .u32 factor)\n{{\n\
            .reg .b32 %r<9>;\n.reg .f32 %f<5>;\n.shared .align 16 .b8 s[1024];\nld.param.u32 %r1, [divide];\n\
            ld.param.u32 %r2, [modulo];\nld.param.u32 %r3, [factor];\nmov.u32 %r4, %tid.x;\nmov.f32 %f1, 0f00000000;\n\
            mov.u32 %r5, s;\nshl.b32 %r6, %r4, 4;\nadd.u32 %r6, %r6, %r5;\n\
            st.shared.v4.f32 [%r6], {{%f1, %f1, %f1, %f1}};\nst.shared.v4.f32 [%r6+512], {{%f1, %f1, %f1, %f1}};\n\
            bar.sync 0;\ndiv.u32 %r4, %r4, %r1;\nrem.u32 %r4, %r4, %r2;\nmul.lo.u32 %r4, %r4, %r3;\n\
            add.u32 %r4, %r4, %r5;\n{load}\nret;\n}}\n"
        )
    };
    t.soft.set("detail", 1).unwrap();
    let passes = |load: &str, divide: u32, modulo: u32, factor: u32| {
        let f = t.kernel(&source(load), "passes");
        t.soft.clear_counters(Scope::Context);
        let mut launch = t.stream.launch_builder(&f);
        unsafe { launch.arg(&divide).arg(&modulo).arg(&factor).launch(shape(1, 32)) }.unwrap();
        t.stream.synchronize().unwrap();
        let c = t.counters().kernel("passes");
        assert_eq!(c.shared_accesses, 3);
        // The stores take four each.
        (c.shared_passes - 8, c.bank_conflicts)
    };
    let four = "ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r4];";
    assert_eq!(passes(four, 1, 32, 16), (4, 0), "side by side");
    assert_eq!(passes(four, 32, 1, 16), (2, 0), "all the same");
    assert_eq!(passes(four, 2, 16, 16), (2, 0), "pairs of neighbours");
    assert_eq!(passes(four, 1, 2, 16), (2, 0), "next but one");
    assert_eq!(passes(four, 1, 4, 16), (4, 0), "every fourth");
    assert_eq!(passes(four, 1, 16, 32), (8, 4), "as was counted on a GPU: halves ask for the same, apart");
    assert_eq!(passes(four, 16, 2, 32), (2, 0), "as was counted on a GPU: two addresses");
    let two = "ld.shared.v2.f32 {%f1, %f2}, [%r4];";
    assert_eq!(passes(two, 1, 32, 8), (2, 0), "side by side");
    assert_eq!(passes(two, 4, 8, 8), (1, 0), "fours of neighbours");
    let one = "ld.shared.f32 %f1, [%r4];";
    assert_eq!(passes(one, 32, 1, 4), (1, 0), "all the same");
    assert_eq!(passes(one, 1, 32, 8), (2, 1), "every second number");
}

#[test]
fn host_functions_run_in_their_stream_and_may_not_call_the_driver() {
    static CODES: std::sync::Mutex<Vec<u32>> = std::sync::Mutex::new(Vec::new());
    unsafe extern "C" fn note(_: *mut c_void) {
        let code = unsafe { sys::cuCtxSynchronize() };
        CODES.lock().unwrap().push(code as u32);
    }
    let t = test();
    unsafe { sys::cuLaunchHostFunc(t.stream.cu_stream(), Some(note), std::ptr::null_mut()).result() }
        .unwrap();
    assert!(CODES.lock().unwrap().is_empty());
    t.stream.synchronize().unwrap();
    assert_eq!(*CODES.lock().unwrap(), [E::CUDA_ERROR_NOT_PERMITTED as u32]);
}
