//! Races in shared memory: who wrote and who read each cell last, and whether a barrier stands between. Those between blocks, in global
//! memory, are found in `memory` and `grid`.
//!
//! A warp has a clock that moves at every barrier it passes, and knows of every other warp the clock up to which a block barrier has
//! ordered it. Two accesses of different threads, one of them a write, must be ordered by these clocks; inside a warp, the later thread
//! must have passed a barrier since. Shuffles, votes, fences and lockstep order nothing. Two atomic operations do not race.

/// The clocks of one warp.
#[derive(Debug, Clone)]
pub struct Clock {
    /// The warp's own time, from 1.
    pub now: u32,
    /// Of each lane: the time at which it last passed a barrier.
    pub lane: [u32; 32],
    /// Of each warp of the block: the time up to which its accesses are ordered before this warp's.
    pub seen: Vec<u32>,
}

impl Clock {
    /// Clocks at the start of a block of `warps` warps.
    pub fn new(warps: usize) -> Self {
        Clock { now: 1, lane: [1; 32], seen: vec![0; warps] }
    }

    /// A barrier among the lanes of `mask`.
    pub fn pass(&mut self, mask: u32) {
        self.now += 1;
        for l in 0..32 {
            if mask >> l & 1 == 1 {
                self.lane[l] = self.now;
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Write {
    clock: u32,
    thread: u16,
    atomic: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Read {
    clock: u32,
    lanes: u32,
}

/// What is known of every cell of a block's shared memory: a cell is a word, or a byte where the kernel has narrow accesses.
#[derive(Debug)]
pub struct Races {
    shift: u32,
    warps: usize,
    writes: Vec<Write>,
    reads: Vec<Read>,
}

/// Who the other thread is, and whether it wrote.
#[derive(Debug, PartialEq, Eq)]
pub struct Clash {
    /// The other thread, by its number in the block.
    pub thread: u32,
    /// Whether the other access was a write.
    pub wrote: bool,
}

impl Races {
    /// For `bytes` of shared memory and `warps` warps.
    pub fn new(bytes: usize, warps: usize, by_byte: bool) -> Self {
        let shift = if by_byte { 0 } else { 2 };
        let cells = bytes.div_ceil(1 << shift);
        Races {
            shift,
            warps,
            writes: vec![Write::default(); cells],
            reads: vec![Read::default(); cells * warps],
        }
    }

    /// Whether a cell is a byte.
    #[inline]
    pub fn by_byte(&self) -> bool {
        self.shift == 0
    }

    /// Forgets everything: another block begins.
    pub fn clear(&mut self) {
        self.writes.fill(Write::default());
        self.reads.fill(Read::default());
    }

    /// Notes a read of the one cell at `at` by `lane` of `warp` if nothing is against it: the quick way of [`access`](Self::access).
    #[inline]
    pub fn read_cell(&mut self, at: usize, warp: usize, lane: usize, clock: &Clock) -> bool {
        let cell = at >> self.shift;
        let Some(w) = self.writes.get(cell) else { return false };
        if w.clock > 0 && usize::from(w.thread) != warp * 32 + lane {
            let their_warp = usize::from(w.thread / 32);
            let ordered = if their_warp == warp {
                clock.lane[lane & 31] > w.clock
            } else {
                clock.seen[their_warp] >= w.clock
            };
            if !ordered {
                return false;
            }
        }
        let Some(r) = self.reads.get_mut(cell * self.warps + warp) else { return false };
        if r.clock != clock.now {
            *r = Read { clock: clock.now, lanes: 0 };
        }
        r.lanes |= 1 << (lane & 31);
        true
    }

    /// Notes an access of `len` bytes at `at` by `lane` of `warp`.
    #[allow(clippy::too_many_arguments)]
    pub fn access(
        &mut self,
        at: usize,
        len: usize,
        warp: usize,
        lane: usize,
        clock: &Clock,
        write: bool,
        atomic: bool,
    ) -> Option<Clash> {
        let me = (warp * 32 + lane) as u16;
        for cell in (at >> self.shift)..=((at + len - 1) >> self.shift) {
            let w = self.writes[cell];
            if w.clock > 0 && w.thread != me && !(atomic && w.atomic) {
                let their_warp = usize::from(w.thread / 32);
                let ordered = if their_warp == warp {
                    clock.lane[lane] > w.clock
                } else {
                    clock.seen[their_warp] >= w.clock
                };
                if !ordered {
                    return Some(Clash { thread: u32::from(w.thread), wrote: true });
                }
            }
            let reads = &mut self.reads[cell * self.warps..(cell + 1) * self.warps];
            if write {
                for (other, r) in reads.iter().enumerate() {
                    let lanes = if other == warp { r.lanes & !(1 << lane) } else { r.lanes };
                    let ordered =
                        if other == warp { clock.lane[lane] > r.clock } else { clock.seen[other] >= r.clock };
                    if r.clock > 0 && lanes != 0 && !ordered {
                        return Some(Clash {
                            thread: other as u32 * 32 + lanes.trailing_zeros(),
                            wrote: false,
                        });
                    }
                }
                self.writes[cell] = Write { clock: clock.now, thread: me, atomic };
            } else {
                let r = &mut reads[warp];
                if r.clock != clock.now {
                    *r = Read { clock: clock.now, lanes: 0 };
                }
                r.lanes |= 1 << lane;
            }
        }
        None
    }
}
