//! Memory of the host, and values that C callers pass by pointer. All raw pointers of the driver are used here.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CStr, c_char};
use std::ptr::{with_exposed_provenance as at, with_exposed_provenance_mut as at_mut};

use super::codes::{Code, R};

/// Copies from the host.
///
/// # Safety
/// `len` bytes at `from` can be read and are not written meanwhile.
pub unsafe fn read(from: usize, len: usize) -> Vec<u8> {
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(at::<u8>(from), len) }.to_vec()
}

/// Copies to the host.
///
/// # Safety
/// The bytes at `to` can be written and are not used meanwhile.
pub unsafe fn write(to: usize, bytes: &[u8]) {
    // SAFETY: as the caller promises.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at_mut::<u8>(to), bytes.len()) }
}

/// Where a result of a call goes. It comes from the C caller and nowhere else: by the driver API's contract it is null, or points to
/// memory for a `T` that this call may write.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the result; a null pointer is the caller's mistake.
    pub fn set(&self, value: T) -> R<()> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and then it can be written by the contract of the type.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Writes the result unless the caller does not want it.
    pub fn set_if(&self, value: T) {
        let _ = self.set(value);
    }

    /// Whether the caller passed none.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Writes as many of `values` as the caller has room for.
    pub fn set_all(&self, values: impl IntoIterator<Item = T>, room: usize) {
        if !self.0.is_null() {
            for (i, v) in values.into_iter().take(room).enumerate() {
                // SAFETY: the caller passes an array of `room` elements.
                unsafe { self.0.add(i).write(v) };
            }
        }
    }
}

impl<T: Copy> Out<T> {
    /// The same place, to be read.
    pub fn as_in(&self) -> In<T> {
        In(self.0)
    }

    /// Writes one element of an array that the caller passed.
    pub fn set_nth(&self, i: usize, value: T) {
        if !self.0.is_null() {
            // SAFETY: the callers of this pass indices below the array's length that the C caller gave.
            unsafe { self.0.add(i).write(value) };
        }
    }
}

impl Out<u64> {
    /// Writes an int where the caller has room for that only.
    pub fn set_int(&self, value: i32) -> R<()> {
        Out(self.0.cast::<i32>()).set(value)
    }
}

/// A value or an array that the C caller passes: null, or readable for the call.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// From a pointer that the C caller passed inside a structure.
    pub fn from_raw(p: *const T) -> In<T> {
        In(p)
    }

    /// The value.
    pub fn get(&self) -> R<T> {
        self.nth(0)
    }

    /// An element of the array.
    pub fn nth(&self, i: usize) -> R<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and the callers of this pass indices below the array's length that the C caller gave.
        Ok(unsafe { self.0.add(i).read() })
    }
}

impl In<c_char> {
    /// The text, which ends in a zero byte.
    pub fn text(&self) -> R<&str> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the driver API's strings end in a zero byte.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| Code::INVALID_VALUE)
    }

    /// The first four bytes, as far as there are so many before a zero byte.
    pub fn magic(&self) -> [u8; 4] {
        let mut out = [0; 4];
        for (i, o) in out.iter_mut().enumerate() {
            match self.nth(i) {
                Ok(c) if c != 0 => *o = c as u8,
                _ => break,
            }
        }
        out
    }
}

/// Reads memory of this process that may not be there at all: None where it is not.
pub fn probe(from: usize, out: &mut [u8]) -> Option<()> {
    if out.is_empty() {
        return Some(());
    }
    let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    let remote = libc::iovec { iov_base: at_mut(from), iov_len: out.len() };
    // SAFETY: the kernel checks the remote range and fails where it cannot be read; the local one is `out`.
    let n = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    if n < 0 && matches!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) {
        // A sandbox without this call: trust the caller, as the real driver does.
        // SAFETY: the driver API's contract: kernel arguments can be read.
        out.copy_from_slice(&unsafe { read(from, out.len()) });
        return Some(());
    }
    (usize::try_from(n) == Ok(out.len())).then_some(())
}

/// The kernel arguments of a launch as one block: `params` holds a pointer for each, `sizes` and `offsets` are the kernel's.
pub fn arguments(params: usize, layout: &[(u32, u32)], total: u32, end: u64) -> Result<Vec<u8>, String> {
    let mut block = vec![0; total as usize];
    let pointer = |i: usize| {
        let mut raw = [0; 8];
        probe(params + i * 8, &mut raw)
            .ok_or_else(|| format!("the array of arguments cannot be read at argument {i}"))?;
        Ok::<_, String>(u64::from_le_bytes(raw))
    };
    if params == 0 {
        return if layout.is_empty() { Ok(block) } else { Err("no arguments were given".into()) };
    }
    for (i, (offset, size)) in layout.iter().enumerate() {
        let p = pointer(i)?;
        if end != 0 && p == end {
            return Err(format!("{} arguments are taken, {i} were given", layout.len()));
        }
        let to = &mut block[*offset as usize..(*offset + *size) as usize];
        probe(p as usize, to)
            .ok_or_else(|| format!("argument {i} of {size} bytes cannot be read at {p:#x}"))?;
    }
    if end != 0 && pointer(layout.len())? != end {
        return Err(format!("{} arguments are taken, more were given", layout.len()));
    }
    Ok(block)
}

/// Pinned memory of the host. Returns its address.
pub fn allocate(size: usize) -> Option<usize> {
    let layout = Layout::from_size_align(size.max(1), 4096).ok()?;
    // SAFETY: the layout is not of size 0.
    let p = unsafe { alloc_zeroed(layout) };
    (!p.is_null()).then(|| p.expose_provenance())
}

/// Ends pinned memory.
///
/// # Safety
/// `allocate(size)` returned `address`, and nothing uses it any more.
pub unsafe fn release(address: usize, size: usize) {
    if let Ok(layout) = Layout::from_size_align(size.max(1), 4096) {
        // SAFETY: as the caller promises.
        unsafe { dealloc(at_mut::<u8>(address), layout) };
    }
}

/// Calls a host function that was queued on a stream.
///
/// # Safety
/// `function` is a `CUhostFn` that may be called with `data`.
pub unsafe fn call(function: usize, data: usize) {
    // SAFETY: the caller says that it is such a function; a function pointer is as large as a usize on the systems this builds for.
    let f: extern "C" fn(usize) = unsafe { std::mem::transmute(at::<()>(function)) };
    f(data);
}
