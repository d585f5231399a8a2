//! softcuda's own exports: options, counts and faults, for tests that hold the library open.

use std::ffi::c_char;

use super::host::{In, Out};
use super::{STATE, api, call, codes::Code};
use crate::counters::Counters;

/// Copies text to the caller, as much as there is room for. Returns the length of all of it.
fn give(text: &str, out: &Out<u8>, room: usize) -> usize {
    out.set_all(text.bytes(), room);
    text.len()
}

/// Ends all contexts and takes everything back to how it was when the process started, options from the environment included.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaReset() -> u32 {
    call("softcudaReset", |s| {
        s.reset();
        Ok(())
    })
}

/// Sets an option by its name.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaSet(name: In<c_char>, value: u64) -> u32 {
    call("softcudaSet", |s| {
        *s.options.at(name.text()?).ok_or(Code::INVALID_VALUE)? = value;
        s.apply();
        Ok(())
    })
}

/// An option by its name, u64::MAX if there is none of it.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaGet(name: In<c_char>) -> u64 {
    let mut out = u64::MAX;
    call("softcudaGet", |s| {
        out = match name.text()? {
            "pending" => s.pending() as u64,
            "used" => s.devices.iter().map(|d| d.device.usage().0).sum(),
            name => *s.options.at(name).ok_or(Code::INVALID_VALUE)?,
        };
        Ok(())
    });
    out
}

/// Counts as text, of all contexts that are or were (0) or of the calling thread's (1). Returns the text's length.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaCounters(scope: u32, out: Out<u8>, room: usize) -> usize {
    let mut n = 0;
    call("softcudaCounters", |s| {
        let mut all = Counters::default();
        if scope == 0 {
            all.add(&s.retired);
            s.contexts.values().for_each(|c| all.add(&c.counters));
        } else {
            all.add(&s.contexts.get(&api::current()).ok_or(Code::INVALID_CONTEXT)?.counters);
        }
        n = give(&all.to_text(), &out, room);
        Ok(())
    });
    n
}

/// Sets counts to 0, all of them (0) or those of the calling thread's context (1).
#[unsafe(no_mangle)]
pub extern "C" fn softcudaClearCounters(scope: u32) -> u32 {
    call("softcudaClearCounters", |s| {
        if scope == 0 {
            s.retired = Counters::default();
            s.contexts.values_mut().for_each(|c| c.counters = Counters::default());
        } else {
            s.contexts.get_mut(&api::current()).ok_or(Code::INVALID_CONTEXT)?.counters = Counters::default();
        }
        Ok(())
    })
}

/// The last fault, of all (0) or in the calling thread's context (1): its kind, a line break, its text. Returns the length, 0 for none.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaLastFault(scope: u32, out: Out<u8>, room: usize) -> usize {
    let mut n = 0;
    call("softcudaLastFault", |s| {
        let text = if scope == 0 {
            s.fault.as_ref()
        } else {
            s.contexts.get(&api::current()).and_then(|c| c.fault.as_ref())
        };
        n = text.map_or(0, |t| give(t, &out, room));
        Ok(())
    });
    n
}

/// At the end of the process: the counts of contexts that are still there.
pub extern "C" fn at_exit() {
    if let Ok(s) = STATE.try_lock()
        && let Some(file) = &s.options.counters
    {
        let mut all = s.retired.clone();
        s.contexts.values().for_each(|c| all.add(&c.counters));
        super::write_counters(file, "process", &all);
    }
}
