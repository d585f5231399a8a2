//! The shared object where there is one.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::{FaultReport, Scope};
use crate::counters::Counters;

/// The name by which programs open the CUDA driver, and the shared object's own.
const NAME: &str = "libcuda.so";
/// `RTLD_NOLOAD` of Linux: only what is loaded already.
const RTLD_NOLOAD: i32 = 4;

/// Where the shared object is: beside the running test, or as `SOFTCUDA_LIBRARY` says. For child processes, preload it:
/// `LD_PRELOAD=<this path>`.
pub fn library() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("SOFTCUDA_LIBRARY") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().map_err(|e| format!("the running program's path is not known: {e}"))?;
    let dirs: Vec<_> =
        exe.ancestors().skip(1).take(3).flat_map(|d| [d.to_path_buf(), d.join("deps")]).collect();
    let found = dirs.iter().map(|d| d.join("libsoftcuda.so")).find(|p| p.is_file());
    found.ok_or_else(|| {
        format!(
            "libsoftcuda.so is not beside {}: it is built with every test that has softcuda as a dependency; \
             `cargo build -p softcuda` builds it by itself, and SOFTCUDA_LIBRARY names another place",
            exe.display()
        )
    })
}

/// Opens the shared object as the CUDA driver of this process, once. It must come before the process's first call of `cudarc`.
pub fn open() -> Result<&'static Soft, String> {
    static SOFT: OnceLock<Result<Soft, String>> = OnceLock::new();
    SOFT.get_or_init(Soft::load).as_ref().map_err(String::clone)
}

type Fetch = extern "C" fn(u32, *mut u8, usize) -> usize;

/// The open shared object.
#[derive(Debug)]
pub struct Soft {
    reset: extern "C" fn() -> u32,
    set: extern "C" fn(*const c_char, u64) -> u32,
    get: extern "C" fn(*const c_char) -> u64,
    counters: Fetch,
    clear: extern "C" fn(u32) -> u32,
    fault: Fetch,
}

impl Soft {
    fn load() -> Result<Soft, String> {
        let path = library()?;
        let path = path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?;
        // SAFETY: the library's initialisers are those of the Rust runtime; it is never closed.
        let lib = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|e| format!("{} cannot be opened: {e}", path.display()))?;
        let lib: &'static Library = Box::leak(Box::new(lib));
        // SAFETY: each symbol is this crate's export of this name, whose type stands at the field.
        let soft = unsafe {
            Soft {
                reset: *lib.get(b"softcudaReset").map_err(|e| e.to_string())?,
                set: *lib.get(b"softcudaSet").map_err(|e| e.to_string())?,
                get: *lib.get(b"softcudaGet").map_err(|e| e.to_string())?,
                counters: *lib.get(b"softcudaCounters").map_err(|e| e.to_string())?,
                clear: *lib.get(b"softcudaClearCounters").map_err(|e| e.to_string())?,
                fault: *lib.get(b"softcudaLastFault").map_err(|e| e.to_string())?,
            }
        };
        // SAFETY: nothing is loaded by this, and a handle to a loaded library is all that is asked for.
        let bare = unsafe { Library::open(Some(NAME), RTLD_NOW | RTLD_NOLOAD) }.map_err(|e| {
            format!("{NAME} is not found by its name after {} was opened: {e}", path.display())
        })?;
        // SAFETY: the type is the export's.
        let same = unsafe { bare.get::<extern "C" fn() -> u32>(b"softcudaReset") }
            .is_ok_and(|f| std::ptr::fn_addr_eq(*f, soft.reset));
        if !same {
            return Err(format!("another {NAME} was opened before {}", path.display()));
        }
        std::mem::forget(bare);
        Ok(soft)
    }

    /// Ends all contexts and takes everything back to how it was at the start. Only when no other test of the process uses the driver.
    pub fn reset(&self) {
        (self.reset)();
    }

    /// Sets an option, by its field's name in the driver's `Options`: `memory`, `fail_launch`, `detail` and so on. It holds for the process.
    pub fn set(&self, option: &str, value: u64) -> Result<(), String> {
        let name = CString::new(option).map_err(|e| e.to_string())?;
        match (self.set)(name.as_ptr(), value) {
            0 => Ok(()),
            _ => Err(format!("softcuda has no option `{option}`")),
        }
    }

    /// An option's value; `pending` is the number of queued pieces of work, `used` the bytes allocated.
    pub fn get(&self, option: &str) -> Option<u64> {
        let name = CString::new(option).ok()?;
        Some((self.get)(name.as_ptr())).filter(|v| *v != u64::MAX)
    }

    /// The host promises from now on that each array of kernel arguments ends in this address, one entry behind the last argument, and
    /// wrong numbers of arguments are found. Without the promise nobody can see how long such an array is.
    pub fn arguments_end_at<T>(&self, end: &'static T) -> Result<(), String> {
        self.set("arguments_end", std::ptr::from_ref(end).addr() as u64)
    }

    /// What was counted.
    pub fn counters(&self, scope: Scope) -> Counters {
        Counters::from_text(&fetch(self.counters, scope))
    }

    /// Sets counts to 0.
    pub fn clear_counters(&self, scope: Scope) {
        (self.clear)(scope as u32);
    }

    /// The last fault.
    pub fn last_fault(&self, scope: Scope) -> Option<FaultReport> {
        let text = fetch(self.fault, scope);
        if text.is_empty() {
            return None;
        }
        let (kind, text) = text.split_once('\n').unwrap_or(("", &text));
        Some(FaultReport { kind: kind.into(), text: text.into() })
    }
}

fn fetch(f: Fetch, scope: Scope) -> String {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = f(scope as u32, buffer.as_mut_ptr(), buffer.len());
        if n <= buffer.len() {
            buffer.truncate(n);
            return String::from_utf8_lossy(&buffer).into_owned();
        }
        buffer.resize(n, 0);
    }
}
