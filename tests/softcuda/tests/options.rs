//! Options of the whole process: each in a process of its own, with the shared object preloaded as for a program that knows nothing of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs, unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::process::Command;

use cudarc::driver::{CudaContext, DriverError, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nvrtc::Ptx;
use softcuda::Scope;
use sys::CUresult as E;

const GRID: &str = include_str!("../kernels/grid.ptx");
const BASIC: &str = include_str!("../kernels/basic.ptx");

/// Runs a case of `child` in a process of its own.
fn run(case: &str, env: &[(&str, &str)], preload: bool) -> String {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(["--exact", "child", "--ignored", "--nocapture"]).env("CASE", case).envs(env.iter().copied());
    if preload {
        c.env("LD_PRELOAD", softcuda::library().unwrap());
    }
    let out = c.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{case}: {text}");
    text
}

fn code<X: std::fmt::Debug>(r: Result<X, DriverError>) -> E {
    r.expect_err("the mistake was not caught").0
}

const ONE: LaunchConfig = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };

#[test]
#[ignore = "run by the other tests in a process of its own"]
fn child() {
    match std::env::var("CASE").unwrap().as_str() {
        "no device" => assert_eq!(code(CudaContext::new(0)), E::CUDA_ERROR_NO_DEVICE),
        "device" => {
            assert_eq!(CudaContext::device_count().unwrap(), 2);
            let ctx = CudaContext::new(1).unwrap();
            assert_eq!(ctx.compute_capability().unwrap(), (8, 6));
            assert_eq!(ctx.total_mem().unwrap(), 1000);
            let mut v = 0;
            assert_eq!(unsafe { sys::cuDriverGetVersion(&mut v) }, E::CUDA_SUCCESS);
            assert_eq!(v, 12040);
            let text = BASIC.replace(".version 8.1", ".version 8.4").replace("sm_75", "sm_86");
            ctx.load_module(Ptx::from_src(text)).unwrap();
            let text = BASIC.replace(".version 8.1", ".version 8.5");
            assert_eq!(
                code(ctx.load_module(Ptx::from_src(text)).map(|_| ())),
                E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            );
            let s = ctx.new_stream().unwrap();
            let x = s.clone_htod(&[1u8; 600]).unwrap();
            assert_eq!(code(s.clone_htod(&[1u8; 600]).map(|_| ())), E::CUDA_ERROR_OUT_OF_MEMORY);
            // A free that is still queued is found when memory runs out.
            drop(x);
            s.clone_htod(&[1u8; 600]).unwrap();
        }
        "planted" => {
            let ctx = CudaContext::new(0).unwrap();
            let s = ctx.new_stream().unwrap();
            let f = ctx.load_module(Ptx::from_src(GRID)).unwrap().load_function("increment").unwrap();
            let mut x = s.clone_htod(&[0u32]).unwrap();
            assert_eq!(code(s.clone_htod(&[0u32]).map(|_| ())), E::CUDA_ERROR_OUT_OF_MEMORY);
            s.clone_htod(&[0u32]).unwrap();
            let mut launch = || unsafe { s.launch_builder(&f).arg(&mut x).launch(ONE) };
            launch().unwrap();
            s.synchronize().unwrap();
            launch().unwrap();
            assert_eq!(code(s.synchronize()), E::CUDA_ERROR_LAUNCH_FAILED);
        }
        "global capture" => {
            let ctx = CudaContext::new(0).unwrap();
            unsafe { ctx.disable_event_tracking() };
            let s = ctx.new_stream().unwrap();
            s.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
            let other = std::thread::spawn(|| {
                let ctx = CudaContext::new(0).unwrap();
                ctx.bind_to_thread().unwrap();
                code(unsafe { result::malloc_sync(4) })
            });
            assert_eq!(other.join().unwrap(), E::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
            let end = s.end_capture(sys::CUgraphInstantiate_flags(0)).map(|_| ());
            assert_eq!(code(end), E::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        "arguments" => {
            static END: u8 = 0;
            let soft = softcuda::open().unwrap();
            let ctx = CudaContext::new(0).unwrap();
            let s = ctx.new_stream().unwrap();
            let f = ctx.load_module(Ptx::from_src(GRID)).unwrap().load_function("increment").unwrap();
            let mut x = s.clone_htod(&[0u32]).unwrap();
            soft.arguments_end_at(&END).unwrap();
            let e = unsafe { s.launch_builder(&f).arg(&END).launch(ONE) };
            assert_eq!(code(e.map(|_| ())), E::CUDA_ERROR_INVALID_VALUE, "too few");
            let e = unsafe { s.launch_builder(&f).arg(&mut x).arg(&1u32).arg(&END).launch(ONE) };
            assert_eq!(code(e.map(|_| ())), E::CUDA_ERROR_INVALID_VALUE, "too many");
            unsafe { s.launch_builder(&f).arg(&mut x).arg(&END).launch(ONE) }.unwrap();
            assert_eq!(s.clone_dtoh(&x).unwrap(), [1]);
            // Sizes cannot be seen in such an array: the host's tests compare them with what the module asks for.
            let sizes = softcuda::signatures(BASIC).unwrap();
            assert_eq!(sizes["gemm"], [8, 8, 8, 4, 4, 4]);
        }
        "reset" => {
            let soft = softcuda::open().unwrap();
            let ctx = CudaContext::new(0).unwrap();
            let s = ctx.new_stream().unwrap();
            soft.set("fail_launch", 1).unwrap();
            assert!(soft.set("no such option", 1).is_err());
            let f = ctx.load_module(Ptx::from_src(GRID)).unwrap().load_function("increment").unwrap();
            let mut x = s.clone_htod(&[0u32]).unwrap();
            unsafe { s.launch_builder(&f).arg(&mut x).launch(ONE) }.unwrap();
            assert!(soft.get("pending").unwrap() > 0 && soft.get("used").unwrap() > 0);
            assert_eq!(code(s.synchronize()), E::CUDA_ERROR_LAUNCH_FAILED);
            assert_eq!(soft.last_fault(Scope::Process).unwrap().kind, "Planted");
            soft.reset();
            assert_eq!((soft.get("used"), soft.last_fault(Scope::Process)), (Some(0), None));
            assert!(code(s.synchronize()) != E::CUDA_SUCCESS, "what was before is gone");
            let ctx = CudaContext::new(0).unwrap();
            let s = ctx.new_stream().unwrap();
            assert_eq!(s.clone_dtoh(&s.clone_htod(&[3u32]).unwrap()).unwrap(), [3]);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_preloaded_driver_takes_its_options_from_the_environment() {
    run("no device", &[("SOFTCUDA_DEVICES", "0")], true);
    run(
        "device",
        &[
            ("SOFTCUDA_DEVICES", "2"),
            ("SOFTCUDA_MEMORY", "1000"),
            ("SOFTCUDA_COMPUTE_CAPABILITY", "8.6"),
            ("SOFTCUDA_DRIVER_VERSION", "12040"),
        ],
        true,
    );
    run("global capture", &[], true);
}

#[test]
fn planted_failures_and_counters_in_a_file() {
    let file = std::env::temp_dir().join(format!("softcuda-counters-{}", std::process::id()));
    let path = file.to_str().unwrap();
    let out = run(
        "planted",
        &[("SOFTCUDA_FAIL_LAUNCH", "2"), ("SOFTCUDA_FAIL_ALLOC", "2"), ("SOFTCUDA_COUNTERS", path)],
        true,
    );
    assert!(out.contains("set to fail"), "{out}");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(text.lines().count() >= 2 && text.contains("\"of\":\"process\""), "{text}");
    assert!(
        text.contains("\"direct_launches\":2") && text.contains("\"increment\":{\"launches\":1"),
        "{text}"
    );
}

#[test]
fn controls_of_an_opened_driver() {
    run("arguments", &[], false);
    run("reset", &[], false);
}
