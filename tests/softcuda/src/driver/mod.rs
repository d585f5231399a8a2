//! The CUDA driver API, as far as `cudarc` and this project need it, over the software device. Linux only.
//!
//! - [`state`]: contexts, streams, events, captures, graphs, modules.
//! - `api`: the exported functions, named as CUDA names them.
//! - `host`: all that touches pointers of C.
//! - [`options`]: what the environment and the control functions set.
//!
//! What differs from a GPU's driver on purpose: reads of memory nothing wrote, races and diverging barriers end a launch with
//! `CUDA_ERROR_LAUNCH_FAILED`, as does a copy to the host of bytes that nothing wrote. A copy from or to memory that is not pinned and an
//! allocation cannot be captured. A context's fault is told in full on stderr. Host functions run while the driver is locked: they may
//! not wait for another thread that calls the driver.
//!
//! Not there: managed memory, peers, textures, IPC, external memory, clusters, linking, graphs built by hand.
#![allow(unsafe_code)]

mod api;
pub mod codes;
mod control;
mod host;
pub mod options;
pub mod state;

use std::cell::Cell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, PoisonError};

use codes::{Code, R};
use state::State;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| Mutex::new(State::new()));

thread_local! {
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// One call of the driver: it has the state for itself, and a panic does not leave it.
fn call(name: &str, f: impl FnOnce(&mut State) -> R<()>) -> u32 {
    if IN_HOST_FUNCTION.get() {
        return Code::NOT_PERMITTED.0;
    }
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    match catch_unwind(AssertUnwindSafe(|| f(&mut state))) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code.0,
        Err(_) => {
            eprintln!("softcuda: a mistake of softcuda itself in {name}");
            Code::UNKNOWN.0
        }
    }
}

/// Calls a host function of a stream; it may not call the driver.
fn call_host(function: usize, data: usize) {
    IN_HOST_FUNCTION.set(true);
    // SAFETY: `cuLaunchHostFunc` was given this function for this data.
    unsafe { host::call(function, data) };
    IN_HOST_FUNCTION.set(false);
}

/// Appends counts to a file as a line of JSON.
fn write_counters(file: &str, of: &str, counters: &crate::counters::Counters) {
    let line = format!(
        "{{\"of\":\"{of}\",\"process\":{},\"counters\":{}}}\n",
        std::process::id(),
        counters.to_json()
    );
    let done = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .and_then(|mut f| f.write_all(line.as_bytes()));
    if let Err(e) = done {
        eprintln!("softcuda: counters cannot be written to {file}: {e}");
    }
}
