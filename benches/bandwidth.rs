//! How fast the GPU copies, and how near to that the kernels come that do nothing but move memory. Arrays are at least
//! four times the L2 cache, so that they cannot stay in it.
//!
//! ```text
//! cargo bench --bench bandwidth                one JSON line for the device, then one for each measurement
//! cargo bench --bench bandwidth -- --test      on the software device: the answers are checked, nothing is timed
//! ```
//!
//! `gb_per_s` counts 10^9 bytes, each input read once and each output written once, over the device's own clock: a copy of
//! N bytes moves 2 N. The copy is the driver's own; its rate is the ceiling for the others (`of_copy`). Without a GPU it
//! says so in a line with `not_run` and ends with success.

use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUevent_flags_enum as Flags};
use cudarc::driver::{CudaContext, CudaSlice};
use recurve::backend::cuda::{Activation, Cuda, Missing, devices};
use recurve::backend::{Adam, AdamConfig, EmbeddingDims, EmbeddingForward, Ops, StepState};
use recurve::{Error, Result};
use serde_json::json;
use std::borrow::BorrowMut as _;

/// Timed passes of each measurement; the fastest and the median are reported.
const PASSES: usize = 9;
/// Calls between two readings of the device's clock: some milliseconds at these sizes.
const CALLS: usize = 8;
/// Width of the embedding that is gathered.
const EMBED: usize = 128;
/// Rows of the smaller table: 5 MB, which stay in the L2 cache and are not counted.
const VOCAB: usize = 10_000;

/// Elements of an array, 4 bytes each, and whether anything is timed.
#[derive(Clone, Copy)]
struct Size {
    n: usize,
    timed: bool,
}

/// One line of the output. `us` are the passes' microseconds for a call.
fn report(what: &str, size: Size, bytes: usize, copy: Option<f64>, mut us: Vec<f64>) -> f64 {
    if !size.timed {
        println!("{}", json!({ "what": what, "elements": size.n, "checked": true, "timed": false }));
        return 0.0;
    }
    us.sort_by(f64::total_cmp);
    let rate = |us: f64| bytes as f64 / (us * 1e3);
    let median = rate(us[us.len() / 2]);
    println!(
        "{}",
        json!({
            "what": what, "elements": size.n, "array_bytes": 4 * size.n, "bytes": bytes, "us": us[us.len() / 2],
            "gb_per_s": median, "best_gb_per_s": rate(us[0]), "of_copy": copy.map(|copy| median / copy), "checked": true,
        })
    );
    median
}

/// Microseconds of a call in each pass, after one that warms up.
fn passes(cuda: &Cuda, size: Size, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    call()?;
    cuda.synchronize()?;
    if !size.timed {
        return Ok(Vec::new());
    }
    (0..PASSES).map(|_| Ok(cuda.time_us(|| (0..CALLS).try_for_each(|_| call()))? / CALLS as f64)).collect()
}

fn ensure(right: bool, what: &str) -> Result<()> {
    if right { Ok(()) } else { Err(Error::Failed(format!("{what}: wrong answer; nothing is reported"))) }
}

/// The driver's copy from one array to another.
fn copy(size: Size) -> std::result::Result<f64, cudarc::driver::DriverError> {
    let ctx = CudaContext::new(0)?;
    let stream = ctx.new_stream()?;
    let values: Vec<u32> = (0..size.n as u32).collect();
    let from = stream.clone_htod(&values)?;
    let mut to: CudaSlice<u32> = stream.alloc_zeros(size.n)?;
    stream.memcpy_dtod(&from, &mut to)?;
    assert!(stream.clone_dtoh(&to)? == values, "copy: wrong answer");
    let mut us = Vec::new();
    for _ in 0..if size.timed { PASSES } else { 0 } {
        let begun = stream.record_event(Some(Flags::CU_EVENT_DEFAULT))?;
        for _ in 0..CALLS {
            stream.memcpy_dtod(&from, &mut to)?;
        }
        let ended = stream.record_event(Some(Flags::CU_EVENT_DEFAULT))?;
        us.push(f64::from(begun.elapsed_ms(&ended)?) * 1e3 / CALLS as f64);
    }
    Ok(report("copy by the driver", size, 8 * size.n, None, us))
}

fn fill(cuda: &Cuda, size: Size, copy: f64) -> Result<()> {
    let mut x = cuda.upload(&vec![f64::NAN; size.n])?;
    let us = passes(cuda, size, || cuda.fill(x.borrow_mut(), 0.5))?;
    ensure(cuda.download(&x)?.iter().all(|&x| x == 0.5), "fill")?;
    report("fill", size, 4 * size.n, Some(copy), us);
    Ok(())
}

fn adam(cuda: &Cuda, size: Size, copy: f64) -> Result<()> {
    let grads = cuda.upload(&vec![0.25; size.n])?;
    let [mut params, mut m, mut v] =
        [cuda.upload(&vec![1.0; size.n])?, zeros(cuda, size)?, zeros(cuda, size)?];
    let mut t = 0;
    let us = passes(cuda, size, || {
        t += 1;
        let step = StepState::new(t, 1e-4, 0, 1);
        let a = Adam { grads: &grads, params: &mut params, m: &mut m, v: &mut v };
        cuda.adam(&AdamConfig::default(), &step, a)
    })?;
    // A gradient that never changes moves every parameter by the learning rate in every step.
    let expected = 1.0 - 1e-4 * t as f64;
    // Roundings of one unit in the last place of 1 (6e-8) in each of t steps, and eps over the gradient (4e-7 of a step).
    let found = cuda.download(&params)?;
    ensure(found.iter().all(|p| (p - expected).abs() <= 1e-7 * (t + 1) as f64), "adam")?;
    // Reads the gradients; reads and writes parameters and both moments.
    report("adam", size, 7 * 4 * size.n, Some(copy), us);
    Ok(())
}

fn zeros(cuda: &Cuda, size: Size) -> Result<<Cuda as Ops>::OwnedBuf> {
    cuda.upload(&vec![0.0; size.n])
}

/// Rows of a table in no order: of one with `vocab` rows, in the cache; or of one that is an array like the others, with as many
/// rows as are gathered, each of which is read once.
fn embedding(cuda: &Cuda, size: Size, copy: f64, vocab: Option<usize>) -> Result<()> {
    let n = size.n / EMBED;
    let d = EmbeddingDims { n, v: vocab.unwrap_or(n), e: EMBED };
    let scattered = |row: u64| row.wrapping_mul(2_654_435_761);
    let ids: Vec<u32> = match vocab {
        Some(vocab) => (0..n as u64).map(|row| (scattered(row) as u32 as usize % vocab) as u32).collect(),
        // The factor is a prime beyond n: every row comes once.
        None => (0..n as u64).map(|row| (scattered(row) % n as u64) as u32).collect(),
    };
    let what = match vocab {
        Some(_) => "embedding_forward, table in the cache",
        None => "embedding_forward",
    };
    let table = cuda.upload(&(0..d.v * EMBED).map(|at| (at / EMBED) as f64).collect::<Vec<_>>())?;
    let mut out = cuda.upload(&vec![f64::NAN; d.n * EMBED])?;
    let uploaded = cuda.upload_ids(&ids)?;
    let us = passes(cuda, size, || {
        cuda.embedding_forward(d, EmbeddingForward { table: &table, ids: &uploaded, out: &mut out })
    })?;
    let found = cuda.download(&out)?;
    let right = found.chunks(EMBED).zip(&ids).all(|(row, &id)| row.iter().all(|&x| x == f64::from(id)));
    ensure(right, what)?;
    let read = if vocab.is_some() { 0 } else { d.v * EMBED };
    report(what, size, 4 * (read + d.n * EMBED + d.n), Some(copy), us);
    Ok(())
}

fn activation(cuda: &Cuda, size: Size, copy: f64) -> Result<()> {
    let x = zeros(cuda, size)?;
    let mut out = cuda.upload(&vec![f64::NAN; size.n])?;
    let us = passes(cuda, size, || cuda.activate(Activation::Tanh, &x, &mut out))?;
    ensure(cuda.download(&out)?.iter().all(|&x| x == 0.0), "tanh")?;
    report("tanh of every element", size, 8 * size.n, Some(copy), us);
    Ok(())
}

fn run() -> Result<()> {
    let timed = std::env::args().any(|argument| argument == "--bench")
        && std::env::args().all(|argument| argument != "--test");
    if !timed {
        softcuda::open().map_err(Error::Failed)?;
    }
    let not_run = |why: String| {
        println!("{}", json!({ "not_run": why }));
        Ok(())
    };
    match devices() {
        Ok(_) => {}
        Err(Missing::Driver) => return not_run("no NVIDIA driver".into()),
        Err(Missing::Unusable(why)) => return not_run(why),
    }
    let cuda = Cuda::new(0)?;
    if timed && cuda.is_software() {
        return not_run(format!("{} is no GPU: it is never timed", cuda.device_name()));
    }
    let failed = |error: cudarc::driver::DriverError| Error::device("cuda:0", error.to_string());
    let context = CudaContext::new(0).map_err(failed)?;
    let attribute = |which| context.attribute(which).ok().filter(|&value| value > 0);
    let l2 = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).unwrap_or(64 << 20) as usize;
    // Four times the cache for each array of 4-byte elements.
    let size = if timed { Size { n: l2, timed } } else { Size { n: 3000, timed } };
    let (major, minor) = cuda.compute_capability();
    println!(
        "{}",
        json!({
            "device": cuda.device_name(), "software": cuda.is_software(), "image": cuda.image().to_string(),
            "compute_capability": format!("{major}.{minor}"), "driver": cuda.driver_version(), "memory_bytes": cuda.memory(),
            "l2_bytes": l2, "multiprocessors": attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            "clock_khz": attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
        })
    );
    let copy = copy(size).map_err(failed)?;
    fill(&cuda, size, copy)?;
    adam(&cuda, size, copy)?;
    embedding(&cuda, size, copy, None)?;
    embedding(&cuda, size, copy, Some(VOCAB))?;
    activation(&cuda, size, copy)
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bandwidth: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
