//! Global memory: allocations with their bytes and, beside them, which bytes something wrote.
//!
//! Addresses are 64-bit numbers that name nothing of the host. They are never given twice, and a wide gap lies behind every allocation,
//! so that an access past its end or after its end of life finds no other.
//!
//! Beside them is also which block used a word last ([`Alloc::note`]): so races are found between blocks that nothing orders. Those of a
//! cooperative launch that order each other are [`grid`](crate::grid)'s.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use crate::fault::{Error, FaultKind};

/// Generic address of a block's shared memory.
pub const SHARED_BASE: u64 = 0x1000_0000_0000;
/// Generic address of a thread's local memory.
pub const LOCAL_BASE: u64 = 0x2000_0000_0000;
/// The first allocation's address.
const GLOBAL_BASE: u64 = 0x7f00_0000_0000;
/// Bytes no allocation uses, behind each.
const GAP: u64 = 1 << 20;

/// One allocation.
#[derive(Debug)]
pub struct Alloc {
    /// Its first address.
    pub base: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Constant memory: kernels may not write it.
    pub constant: bool,
    words: Vec<AtomicU32>,
    /// Four bits a word: which of its bytes were written.
    valid: Vec<AtomicU8>,
    /// Atomic operations of kernels exclude each other through this.
    pub atomics: Mutex<()>,
    /// Of each word, who used it last: 22 bits of the launch, whether all reads and whether all writes were strong, then the block that
    /// wrote it and the block that read it, 20 bits each, from 1.
    /// Made when a kernel first uses the allocation.
    users: OnceLock<Box<[AtomicU64]>>,
}

/// The number that stands for several blocks.
const SEVERAL: u64 = 0xf_ffff;
/// Most blocks of a launch whose uses of global memory are told apart.
pub const MAX_TRACKED: u64 = SEVERAL - 1;
/// All that wrote a word, or that read it, did so by strong accesses.
const STRONG_WRITES: u64 = 1 << 40;
const STRONG_READS: u64 = 1 << 41;
/// Where a launch's number begins.
const LAUNCH_BIT: u32 = 42;
/// Numbers that launches have.
pub const LAUNCH_NUMBERS: u64 = 1 << (64 - LAUNCH_BIT);

/// Another block's use of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// The block's number in the grid, None for several blocks.
    pub block: Option<u64>,
    /// Whether it wrote.
    pub wrote: bool,
}

fn spread(bits: u8) -> u32 {
    let mut m = 0;
    for i in 0..4 {
        if bits >> i & 1 == 1 {
            m |= 0xff << (8 * i);
        }
    }
    m
}

impl Alloc {
    /// Whether `len` bytes from `addr` lie in it.
    pub fn holds(&self, addr: u64, len: u64) -> bool {
        addr >= self.base && addr - self.base <= self.size && len <= self.size - (addr - self.base)
    }

    /// Reads up to 8 aligned bytes; false if some byte was never written. The range was checked by `holds`.
    pub fn read(&self, addr: u64, len: u64) -> (u64, bool) {
        let at = addr - self.base;
        let w = (at / 4) as usize;
        match len {
            4 => (u64::from(self.words[w].load(Relaxed)), self.valid[w].load(Relaxed) == 0xf),
            8 => {
                let v =
                    u64::from(self.words[w].load(Relaxed)) | u64::from(self.words[w + 1].load(Relaxed)) << 32;
                (v, self.valid[w].load(Relaxed) & self.valid[w + 1].load(Relaxed) == 0xf)
            }
            _ => {
                let need = ((1u8 << len) - 1) << (at % 4);
                let v = u64::from(self.words[w].load(Relaxed)) >> (8 * (at % 4)) & ((1 << (8 * len)) - 1);
                (v, self.valid[w].load(Relaxed) & need == need)
            }
        }
    }

    /// Writes up to 8 aligned bytes, or 1 to 3 inside a word.
    pub fn write(&self, addr: u64, len: u64, v: u64) {
        let at = addr - self.base;
        let w = (at / 4) as usize;
        match len {
            4 | 8 => {
                self.words[w].store(v as u32, Relaxed);
                self.valid[w].store(0xf, Relaxed);
                if len == 8 {
                    self.words[w + 1].store((v >> 32) as u32, Relaxed);
                    self.valid[w + 1].store(0xf, Relaxed);
                }
            }
            _ => {
                let bits = ((1u8 << len) - 1) << (at % 4);
                let (mask, v) = (spread(bits), (v as u32) << (8 * (at % 4)));
                // A neighbour's byte may be written by another block at this moment.
                let _ = self.words[w].fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | v & mask));
                self.valid[w].fetch_or(bits, Relaxed);
            }
        }
    }
}

impl Alloc {
    /// Notes that `block` of a launch uses the words at `addr`. Says which other block of the launch used one of them, if one of the two
    /// wrote, and not both accesses are strong (relaxed or volatile). The range was checked by `holds`.
    #[inline]
    pub fn note(
        &self,
        addr: u64,
        len: u64,
        launch: u64,
        block: u64,
        write: bool,
        strong: bool,
    ) -> Option<Use> {
        let users = self.users.get_or_init(|| (0..self.words.len()).map(|_| AtomicU64::new(0)).collect());
        let me = block + 1;
        let first = ((addr - self.base) / 4) as usize;
        for user in &users[first..first + len as usize / 4] {
            let mut old = user.load(Relaxed);
            loop {
                let now = if old >> LAUNCH_BIT == launch { old } else { launch << LAUNCH_BIT };
                let (writer, reader) = (now >> 20 & SEVERAL, now & SEVERAL);
                if writer != 0 && writer != me && !(strong && now & STRONG_WRITES != 0) {
                    return Some(Use { block: Some(writer - 1), wrote: true });
                }
                let new = if write {
                    if reader != 0 && reader != me && !(strong && now & STRONG_READS != 0) {
                        return Some(Use { block: (reader != SEVERAL).then(|| reader - 1), wrote: false });
                    }
                    let only =
                        if strong && (writer == 0 || now & STRONG_WRITES != 0) { STRONG_WRITES } else { 0 };
                    now & !(SEVERAL << 20 | STRONG_WRITES) | me << 20 | only
                } else {
                    let only =
                        if strong && (reader == 0 || now & STRONG_READS != 0) { STRONG_READS } else { 0 };
                    let who = if reader == 0 || reader == me { me } else { SEVERAL };
                    now & !STRONG_READS | who | only
                };
                if new == old {
                    break;
                }
                match user.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                    Ok(_) => break,
                    Err(seen) => old = seen,
                }
            }
        }
        None
    }

    /// The byte at `addr` counts as not written.
    fn forget(&self, addr: u64) {
        let at = addr - self.base;
        self.valid[(at / 4) as usize].fetch_and(!(1 << (at % 4)), Relaxed);
    }
}

/// All allocations, alive and gone.
#[derive(Debug)]
pub struct Memory {
    next: u64,
    live: BTreeMap<u64, Arc<Alloc>>,
    freed: Vec<(u64, u64)>,
    used: u64,
    limit: u64,
}

impl Memory {
    /// Memory that gives out at most `limit` bytes at once.
    pub fn new(limit: u64) -> Self {
        Self::of_device(0, limit)
    }

    /// The same for one of several devices: their addresses differ.
    pub fn of_device(index: u16, limit: u64) -> Self {
        Memory {
            next: GLOBAL_BASE + (u64::from(index) << 48),
            live: BTreeMap::new(),
            freed: Vec::new(),
            used: 0,
            limit,
        }
    }

    /// Bytes given out, and the most that can be.
    pub fn usage(&self) -> (u64, u64) {
        (self.used, self.limit)
    }

    /// Changes how many bytes can be given out; what is given out stays.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// A new allocation, nothing of it written.
    pub fn alloc(&mut self, size: u64, constant: bool) -> Result<u64, Error> {
        let free = self.limit.saturating_sub(self.used);
        if size > free {
            return Err(Error::Memory(format!(
                "{size} bytes were asked for, {free} of {} are free",
                self.limit
            )));
        }
        let words = size.div_ceil(4) as usize;
        let a = Alloc {
            base: self.next,
            size,
            constant,
            words: (0..words).map(|_| AtomicU32::new(0xcdcd_cdcd)).collect(),
            valid: (0..words).map(|_| AtomicU8::new(0)).collect(),
            atomics: Mutex::new(()),
            users: OnceLock::new(),
        };
        self.next += size.next_multiple_of(256) + GAP;
        self.used += size;
        let base = a.base;
        self.live.insert(base, Arc::new(a));
        Ok(base)
    }

    /// Ends an allocation, named by its first address.
    pub fn free(&mut self, base: u64) -> Result<(), Error> {
        let Some(a) = self.live.remove(&base) else {
            return Err(Error::Memory(format!("free of {base:#x}: {}", self.why(base, 1).1)));
        };
        self.used -= a.size;
        self.freed.push((base, a.size));
        Ok(())
    }

    /// The allocation that holds `len` bytes from `addr`.
    pub fn find(&self, addr: u64, len: u64) -> Result<&Arc<Alloc>, Error> {
        let hit = self.live.range(..=addr).next_back().map(|(_, a)| a).filter(|a| a.holds(addr, len));
        hit.ok_or_else(|| Error::Memory(format!("{len} bytes at {addr:#x}: {}", self.why(addr, len).1)))
    }

    /// Live allocations by address.
    pub fn snapshot(&self) -> Vec<Arc<Alloc>> {
        self.live.values().cloned().collect()
    }

    /// Why `len` bytes at `addr` cannot be used.
    pub fn why(&self, addr: u64, len: u64) -> (FaultKind, String) {
        if let Some((b, s)) = self.freed.iter().find(|(b, s)| addr >= *b && addr < b + s.max(&1)) {
            return (
                FaultKind::UseAfterFree,
                format!("it lies {} bytes into an allocation of {s} bytes that was freed", addr - b),
            );
        }
        let near =
            self.live.range(..=addr).next_back().map(|(_, a)| a).filter(|a| addr - a.base < a.size + GAP);
        let why = match near {
            Some(a) => {
                format!("{len} bytes at offset {} of an allocation of {} bytes", addr - a.base, a.size)
            }
            None if addr < 4096 => "a null pointer".into(),
            None => "no allocation lies there".into(),
        };
        (FaultKind::OutOfBounds, why)
    }

    /// Copies from the host. Every byte counts as written.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), Error> {
        let a = self.find(addr, bytes.len() as u64)?;
        let mut at = 0;
        while at < bytes.len() {
            let here = addr + at as u64;
            let n = if here.is_multiple_of(4) && bytes.len() - at >= 4 { 4 } else { 1 };
            let mut v = [0; 8];
            v[..n].copy_from_slice(&bytes[at..at + n]);
            a.write(here, n as u64, u64::from_le_bytes(v));
            at += n;
        }
        Ok(())
    }

    /// Fills with copies of `pattern`. Every byte counts as written.
    pub fn fill(&self, addr: u64, pattern: &[u8], count: u64) -> Result<(), Error> {
        let a = self.find(addr, pattern.len() as u64 * count)?;
        let n = pattern.len() as u64;
        if 4 % n == 0 && addr.is_multiple_of(n) {
            let word = u64::from_le_bytes(std::array::from_fn(|i| pattern[i % pattern.len()]));
            let (mut at, end) = (addr, addr + n * count);
            while at < end {
                let step = if at.is_multiple_of(4) && end - at >= 4 { 4 } else { n };
                a.write(at, step, word & ((1 << (8 * step)) - 1));
                at += step;
            }
            return Ok(());
        }
        (0..count).try_for_each(|i| self.write(addr + i * n, pattern))
    }

    /// Copies `len` bytes to `to`, in this memory or another's. What nothing wrote stays so in the copy.
    pub fn copy(&self, from: u64, into: &Memory, to: u64, len: u64) -> Result<(), Error> {
        let (a, b) = (self.find(from, len)?, into.find(to, len)?);
        // By way of a buffer: the ranges may overlap.
        let mut bytes = Vec::with_capacity(len as usize);
        let mut at = 0;
        while at < len {
            let n = if (from + at).is_multiple_of(4) && (to + at).is_multiple_of(4) && len - at >= 4 {
                4
            } else {
                1
            };
            let (v, valid) = a.read(from + at, n);
            if n == 4 && !valid {
                bytes.extend((0..4).map(|i| a.read(from + at + i, 1)));
            } else {
                bytes.extend((0..n).map(|i| (v >> (8 * i) & 0xff, valid)));
            }
            at += n;
        }
        let mut at = 0;
        while at < len {
            let here = &bytes[at as usize..];
            if (to + at).is_multiple_of(4) && here.len() >= 4 && here[..4].iter().all(|b| b.1) {
                b.write(to + at, 4, (0..4).fold(0, |v, i| v | here[i].0 << (8 * i)));
                at += 4;
            } else {
                if here[0].1 {
                    b.write(to + at, 1, here[0].0);
                } else {
                    b.forget(to + at);
                }
                at += 1;
            }
        }
        Ok(())
    }

    /// Copies to the host. Reading what nothing wrote is an error, as it is for a kernel.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), Error> {
        let a = self.find(addr, out.len() as u64)?;
        let mut at = 0;
        while at < out.len() {
            let here = addr + at as u64;
            let n = if here.is_multiple_of(4) && out.len() - at >= 4 { 4 } else { 1 };
            let (v, valid) = a.read(here, n as u64);
            if !valid {
                return Err(Error::Memory(format!(
                    "copy to the host: nothing wrote the bytes at {here:#x}, offset {}",
                    here - a.base
                )));
            }
            out[at..at + n].copy_from_slice(&v.to_le_bytes()[..n]);
            at += n;
        }
        Ok(())
    }
}
