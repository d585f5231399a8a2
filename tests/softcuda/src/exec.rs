//! Blocks and warps: lanes at the lowest pc run together, and come together again when others reach their place.

use std::sync::Arc;

use crate::counters::{CLASSES, Class, KernelCounters};
use crate::fault::{Fault, FaultKind, line_text};
use crate::grid::{Act, Grid, Place};
use crate::memory::{Alloc, LOCAL_BASE, Memory, SHARED_BASE};
use crate::ptx::alu::{Row, truncate};
use crate::ptx::ir::*;
use crate::race::{Clock, Races};

/// Instructions a warp runs before the next warp has its turn.
const SLICE: u32 = 4096;

/// What one launch is.
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The text it was made from.
    pub source: &'a str,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads along each axis.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic: u32,
    /// The parameter block.
    pub params: &'a [u8],
    /// Allocations, by address.
    pub allocs: &'a [Arc<Alloc>],
    /// Whether sectors and bank conflicts are counted.
    pub detail: bool,
    /// The launch's number, if races between its blocks are looked for.
    pub races: Option<u64>,
    /// All memory, to explain an address that is in none of them.
    pub memory: &'a Memory,
}

/// A fault before its kernel, block and thread are known.
struct Hit {
    kind: FaultKind,
    lane: u32,
    address: Option<u64>,
    why: String,
}

fn hit<T>(kind: FaultKind, lane: usize, address: Option<u64>, why: impl Into<String>) -> Result<T, Box<Hit>> {
    Err(Box::new(Hit { kind, lane: lane as u32, address, why: why.into() }))
}

/// Lanes of a warp that wait at a block barrier.
#[derive(Clone, Copy)]
struct Waiting {
    id: u32,
    count: Option<u32>,
    pc: u32,
    lanes: u32,
    aligned: bool,
}

struct Warp {
    index: usize,
    rows: Vec<Row>,
    written: Vec<u32>,
    preds: Vec<u32>,
    pred_written: Vec<u32>,
    /// Where each lane stands that is not of the running group.
    pcs: [u32; 32],
    alive: u32,
    /// Lanes held at a warp-wide instruction.
    held: u32,
    bar: Option<Waiting>,
    clock: Clock,
    tids: [[u32; 3]; 32],
    local: Vec<u8>,
    local_valid: Vec<bool>,
    near: usize,
    /// The block's number in the grid.
    block: u64,
    /// It read what may be waited for: others have their turn first.
    pause: bool,
}

/// How a warp's turn ended.
enum Turn {
    More,
    Blocked,
    Done,
}

struct Shared {
    bytes: Vec<u8>,
    /// 0: no variable lies there; 1: nothing wrote it; 2: written.
    state: Vec<u8>,
    races: Races,
    /// What is known of the whole grid, while the block has its turn.
    grid: Option<Box<Grid>>,
}

/// A block being executed, and what a worker keeps from one block to the next.
pub struct Block<'a> {
    l: &'a Launch<'a>,
    id: [u32; 3],
    warps: Vec<Warp>,
    shared: Shared,
    template: Vec<Row>,
    template_written: Vec<u32>,
    /// What was counted.
    pub counts: Counts,
    /// In its last turn in a grid, a warp read what may be waited for.
    pub waits: bool,
}

/// What a worker counts.
#[derive(Default)]
pub struct Counts {
    /// Instructions of lanes by class.
    pub classes: [u64; CLASSES],
    /// The rest.
    pub detail: KernelCounters,
}

/// Lanes of a mask.
fn lanes(mut m: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if m == 0 {
            return None;
        }
        let l = m.trailing_zeros() as usize;
        m &= m - 1;
        Some(l)
    })
}

impl<'a> Block<'a> {
    /// A worker's block for this launch.
    pub fn new(l: &'a Launch<'a>) -> Self {
        let k = l.kernel;
        let threads: u32 = l.block.iter().product();
        let n = threads.div_ceil(32) as usize;
        let bytes = (k.dynamic_at + l.dynamic) as usize;
        let warps = (0..n)
            .map(|index| {
                let mut tids = [[0; 3]; 32];
                for (lane, t) in tids.iter_mut().enumerate() {
                    let i = (index * 32 + lane) as u32;
                    *t = [i % l.block[0], i / l.block[0] % l.block[1], i / l.block[0] / l.block[1]];
                }
                Warp {
                    index,
                    rows: Vec::new(),
                    written: Vec::new(),
                    preds: vec![0; k.preds as usize],
                    pred_written: vec![0; k.preds as usize],
                    pcs: [0; 32],
                    alive: 0,
                    held: 0,
                    bar: None,
                    clock: Clock::new(n),
                    tids,
                    local: vec![0; k.local_bytes as usize * 32],
                    local_valid: vec![false; k.local_bytes as usize * 32],
                    near: 0,
                    block: 0,
                    pause: false,
                }
            })
            .collect();
        let races = Races::new(bytes, n, k.narrow_shared);
        let mut b = Block {
            l,
            id: [0; 3],
            warps,
            shared: Shared { bytes: vec![0; bytes], state: vec![0; bytes], races, grid: None },
            template: vec![[0; 32]; k.rows as usize],
            template_written: vec![0; k.rows as usize],
            counts: Counts::default(),
            waits: false,
        };
        for (slot, f) in &k.fills {
            let v = match *f {
                Fill::Imm(v) => v,
                Fill::Param { offset, bytes, signed, width } => {
                    let mut raw = [0u8; 8];
                    let at = offset as usize;
                    raw[..bytes as usize].copy_from_slice(&l.params[at..at + bytes as usize]);
                    extend(u64::from_le_bytes(raw), u64::from(bytes), signed, width)
                }
                Fill::NTid(a) => u64::from(l.block[usize::from(a)]),
                Fill::NCtaId(a) => u64::from(l.grid[usize::from(a)]),
                Fill::NWarpId => n as u64,
                Fill::DynSmemSize => u64::from(l.dynamic),
                _ => 0,
            };
            b.template[*slot as usize] = [v; 32];
            b.template_written[*slot as usize] = u32::MAX;
        }
        b
    }

    /// Runs block `id` to its end. `spend` takes instructions from the launch's budget, and says false when there are none left.
    pub fn run(&mut self, id: [u32; 3], spend: &dyn Fn(u64) -> bool) -> Result<(), Fault> {
        self.start(id);
        while !self.round(spend)? {}
        Ok(())
    }

    /// Lane-instructions executed.
    pub fn lane_instructions(&self) -> u64 {
        self.counts.classes[..CLASSES - 1].iter().sum()
    }

    /// A [`round`](Self::round) of one of the blocks of `grid`.
    pub fn round_in(
        &mut self,
        grid: &mut Option<Box<Grid>>,
        spend: &dyn Fn(u64) -> bool,
    ) -> Result<bool, Fault> {
        self.shared.grid = grid.take();
        let ended = self.round(spend);
        *grid = self.shared.grid.take();
        self.waits = self.warps.iter().any(|w| w.alive != 0 && w.pause);
        ended
    }

    /// Gives every warp of the block a turn. Says whether the block has ended.
    pub fn round(&mut self, spend: &dyn Fn(u64) -> bool) -> Result<bool, Fault> {
        {
            let mut progress = false;
            for w in 0..self.warps.len() {
                let warp = &mut self.warps[w];
                if warp.alive == 0 || warp.bar.is_some_and(|b| b.lanes == warp.alive) {
                    continue;
                }
                let mut spent = 0;
                let mut pc = 0;
                let turn = warp.turn(self.l, &mut self.shared, &mut spent, &mut self.counts, &mut pc);
                match turn {
                    Err(h) => return Err(self.fault(*h, w, pc)),
                    Ok(Turn::Blocked) => {}
                    Ok(Turn::More | Turn::Done) => progress = true,
                }
                progress |= spent > 0;
                if !spend(u64::from(spent)) {
                    let h = Hit {
                        kind: FaultKind::Budget,
                        lane: 0,
                        address: None,
                        why: "the launch used up its instructions: an endless loop?".into(),
                    };
                    let pc = self.warps[w].pcs.iter().copied().min().unwrap_or(pc);
                    return Err(self.fault(h, w, pc));
                }
            }
            progress |= self.release()?;
            if self.warps.iter().all(|w| w.alive == 0) {
                return Ok(true);
            }
            if !progress {
                return Err(self.stuck());
            }
            Ok(false)
        }
    }

    /// Makes ready to run block `id`.
    pub fn start(&mut self, id: [u32; 3]) {
        self.id = id;
        let (k, l) = (self.l.kernel, self.l);
        self.shared.state.fill(0);
        for (at, size) in k.shared.iter().copied().chain([(k.dynamic_at, l.dynamic)]) {
            self.shared.state[at as usize..(at + size) as usize].fill(1);
        }
        self.shared.races.clear();
        let threads: u32 = l.block.iter().product();
        let n = self.warps.len();
        for (index, w) in self.warps.iter_mut().enumerate() {
            w.rows.clone_from(&self.template);
            w.written.clone_from(&self.template_written);
            w.pred_written.fill(0);
            w.pcs = [0; 32];
            let here = threads - index as u32 * 32;
            w.alive = if here >= 32 { u32::MAX } else { (1 << here) - 1 };
            w.held = 0;
            w.block = (u64::from(id[2]) * u64::from(l.grid[1]) + u64::from(id[1])) * u64::from(l.grid[0])
                + u64::from(id[0]);
            w.bar = None;
            w.clock = Clock::new(n);
            w.local_valid.fill(false);
            for (slot, f) in &k.fills {
                let row = &mut w.rows[*slot as usize];
                for (lane, r) in row.iter_mut().enumerate() {
                    let lane32 = lane as u32;
                    *r = match *f {
                        Fill::Tid(a) => u64::from(w.tids[lane][usize::from(a)]),
                        Fill::CtaId(a) => u64::from(id[usize::from(a)]),
                        Fill::LaneId => lane as u64,
                        Fill::WarpId => index as u64,
                        Fill::LaneMask(0) => 1 << lane,
                        Fill::LaneMask(1) => (1 << lane) - 1,
                        Fill::LaneMask(2) => (2 << lane) - 1,
                        Fill::LaneMask(3) => u64::from(!(((2u64 << lane32) - 1) as u32)),
                        Fill::LaneMask(_) => u64::from(!((1u32 << lane32) - 1)),
                        _ => break,
                    };
                }
            }
        }
    }

    /// Opens every block barrier that all its threads have reached.
    fn release(&mut self) -> Result<bool, Fault> {
        let mut opened = false;
        // A block that waits for others comes here often, with nothing to open.
        let ids = (0..self.warps.len()).filter_map(|w| self.full(w)).fold(0, |ids, b| ids | 1u32 << b.id);
        for id in lanes(ids).map(|id| id as u32) {
            let at: Vec<usize> =
                (0..self.warps.len()).filter(|w| self.full(*w).is_some_and(|b| b.id == id)).collect();
            let Some(first) = at.first().and_then(|w| self.full(*w)) else { continue };
            let ready = match first.count {
                Some(n) => at.len() as u32 * 32 >= n,
                None => self.warps.iter().enumerate().all(|(w, warp)| warp.alive == 0 || at.contains(&w)),
            };
            if !ready {
                continue;
            }
            if let Some(other) =
                at.iter().find(|w| first.count.is_none() && self.full(**w).is_some_and(|b| b.pc != first.pc))
            {
                let line = self.l.kernel.code[first.pc as usize].line;
                let why =
                    format!("threads of the block wait at different barriers: others stand at line {line}");
                let pc = self.full(*other).map_or(0, |b| b.pc);
                let h = Hit {
                    kind: FaultKind::Divergence,
                    lane: self.warps[*other].alive.trailing_zeros(),
                    address: None,
                    why,
                };
                return Err(self.fault(h, *other, pc));
            }
            let mut seen = vec![0; self.warps.len()];
            for w in &at {
                for (s, t) in seen.iter_mut().zip(&self.warps[*w].clock.seen) {
                    *s = (*s).max(*t);
                }
                seen[*w] = self.warps[*w].clock.now;
            }
            if let Some(grid) = &mut self.shared.grid {
                grid.barrier(self.warps[at[0]].block as usize, &at);
            }
            for w in at {
                let warp = &mut self.warps[w];
                warp.clock.seen.clone_from(&seen);
                warp.clock.pass(warp.alive);
                warp.bar = None;
                for l in lanes(warp.alive) {
                    warp.pcs[l] += 1;
                }
                opened = true;
            }
        }
        Ok(opened)
    }

    /// The barrier a whole warp waits at.
    fn full(&self, w: usize) -> Option<Waiting> {
        let warp = &self.warps[w];
        warp.bar.filter(|b| warp.alive != 0 && b.lanes == warp.alive)
    }

    /// Nothing can go on: which thread waits, and for what.
    fn stuck(&self) -> Fault {
        for (w, warp) in self.warps.iter().enumerate() {
            if warp.held != 0 {
                let lane = warp.held.trailing_zeros();
                let why = "threads of the warp wait here for others that do not come: not all that the mask names reach this instruction";
                let h = Hit { kind: FaultKind::Divergence, lane, address: None, why: why.into() };
                return self.fault(h, w, warp.pcs[lane as usize]);
            }
        }
        for (w, warp) in self.warps.iter().enumerate() {
            if let Some(b) = warp.bar {
                let why =
                    format!("threads wait at barrier {} for others of the block that do not reach it", b.id);
                let h =
                    Hit { kind: FaultKind::Divergence, lane: b.lanes.trailing_zeros(), address: None, why };
                return self.fault(h, w, b.pc);
            }
        }
        self.fault(
            Hit {
                kind: FaultKind::Divergence,
                lane: 0,
                address: None,
                why: "no thread of the block can go on".into(),
            },
            0,
            0,
        )
    }

    fn fault(&self, h: Hit, warp: usize, pc: u32) -> Fault {
        let line = self.l.kernel.code.get(pc as usize).map_or(0, |i| i.line);
        Fault {
            kind: h.kind,
            kernel: self.l.kernel.name.clone(),
            line,
            text: line_text(self.l.source, line),
            block: self.id,
            thread: self.warps[warp].tids[(h.lane & 31) as usize],
            address: h.address,
            why: h.why,
        }
    }
}

/// `bytes` of a value extended to a register of `width` bits.
fn extend(v: u64, bytes: u64, signed: bool, width: u32) -> u64 {
    if signed && bytes < 8 {
        let shift = 64 - 8 * bytes as u32;
        truncate((((v << shift) as i64) >> shift) as u64, width)
    } else {
        v
    }
}

impl Warp {
    /// The lanes that run next: those at the lowest pc among the free ones, and the lowest pc of the rest.
    fn pick(&self) -> Option<(u32, u32, u32)> {
        let free = self.alive & !self.held & !self.bar.map_or(0, |b| b.lanes);
        let pc = lanes(free).map(|l| self.pcs[l]).min()?;
        let mask = lanes(free).filter(|l| self.pcs[*l] == pc).fold(0, |m, l| m | 1 << l);
        let next = lanes(free & !mask).map(|l| self.pcs[l]).min().unwrap_or(u32::MAX);
        Some((pc, mask, next))
    }

    fn turn(
        &mut self,
        l: &Launch,
        sh: &mut Shared,
        spent: &mut u32,
        counts: &mut Counts,
        at: &mut u32,
    ) -> Result<Turn, Box<Hit>> {
        let code = &l.kernel.code;
        self.pause = false;
        while *spent < SLICE && !self.pause {
            let Some((mut pc, mut mask, next)) = self.pick() else {
                if self.alive == 0 {
                    return Ok(Turn::Done);
                }
                // Lanes held at a warp-wide instruction may go on now that others have left.
                if !self.retry(l, at)? {
                    return Ok(Turn::Blocked);
                }
                continue;
            };
            // Straight on until lanes part, wait or meet others.
            loop {
                let i = &code[pc as usize];
                *at = pc;
                *spent += 1;
                let mut run = mask;
                if let Some(g) = i.guard {
                    self.need_pred(g.at, mask)?;
                    let p = self.preds[g.at as usize];
                    run &= if g.not { !p } else { p };
                }
                counts.classes[i.class as usize] += u64::from(run.count_ones());
                counts.detail.warp_instructions += 1;
                match &i.op {
                    Op::Bra { target } => {
                        if run == 0 {
                            pc += 1;
                        } else if run == mask && next == u32::MAX {
                            pc = *target;
                        } else {
                            self.set_pcs(run, *target);
                            self.set_pcs(mask & !run, pc + 1);
                            break;
                        }
                    }
                    Op::Exit => {
                        self.alive &= !run;
                        self.set_pcs(mask & !run, pc + 1);
                        break;
                    }
                    Op::Bar { id, count, aligned } => {
                        self.set_pcs(mask & !run, pc + 1);
                        self.set_pcs(run, pc);
                        if run != 0 {
                            counts.classes[Class::WarpBarrier as usize] += 1;
                            self.arrive(run, pc, *id, *count, *aligned)?;
                        }
                        break;
                    }
                    Op::WarpBar { mask: m } | Op::Shfl { mask: m, .. } | Op::Vote { mask: m, .. } => {
                        if run != 0 {
                            let first = run.trailing_zeros() as usize;
                            self.need(*m, run)?;
                            let want = self.rows[*m as usize][first] as u32;
                            if run & !want != 0 {
                                return hit(
                                    FaultKind::Divergence,
                                    (run & !want).trailing_zeros() as usize,
                                    None,
                                    format!("the thread is not named by the instruction's mask {want:#010x}"),
                                );
                            }
                            if want & self.alive == run {
                                self.together(&i.op, run)?;
                            } else {
                                self.set_pcs(mask & !run, pc + 1);
                                self.set_pcs(run, pc);
                                self.held |= run;
                                self.retry(l, at)?;
                                break;
                            }
                        }
                        pc += 1;
                    }
                    op => {
                        if run != 0 {
                            if l.detail {
                                self.detail(op, run, &mut counts.detail);
                            }
                            self.step(op, run, l, sh)?;
                        }
                        pc += 1;
                    }
                }
                if pc >= next || *spent >= SLICE || self.pause {
                    self.set_pcs(mask, pc);
                    break;
                }
                mask &= self.alive;
            }
        }
        Ok(Turn::More)
    }

    /// Counts the sectors of an access to global memory and the bank conflicts of one to shared memory.
    fn detail(&self, op: &Op, m: u32, k: &mut KernelCounters) {
        let (space, size, a, off, load) = match op {
            Op::Ld { space, ty, d, a, off, .. } => (*space, ty.bytes() * d.len() as u64, *a, *off, true),
            Op::St { space, ty, s, a, off, .. } => (*space, ty.bytes() * s.len() as u64, *a, *off, false),
            _ => return,
        };
        let addrs = &self.rows[a as usize];
        let first = addrs[m.trailing_zeros() as usize].wrapping_add_signed(off);
        match Self::resolve(space, first).0 {
            Space::Global | Space::Const => {
                let mut sectors = [0u64; 32];
                let mut n = 0;
                for l in lanes(m) {
                    // An aligned access of at most 16 bytes lies in one sector.
                    let s = addrs[l].wrapping_add_signed(off) / 32;
                    if !sectors[..n].contains(&s) {
                        sectors[n] = s;
                        n += 1;
                    }
                }
                if load {
                    k.global_loads += 1;
                    k.global_load_sectors += n as u64;
                } else {
                    k.global_stores += 1;
                    k.global_store_sectors += n as u64;
                }
            }
            Space::Shared => {
                k.shared_accesses += 1;
                let addr = |l: usize| addrs[l].wrapping_add_signed(off);
                // A pass moves one register of 32 lanes, so accesses of 8 and 16 bytes are done by halves and quarters of the warp; a
                // load of them moves two at once if lanes l and l^1, or l and l^2, ask for the same wherever both ask (NVIDIA's
                // description of LDS.U; two passes for such a load of 16 bytes were counted on compute capability 8.6 and 9.0:
                // forums.developer.nvidia.com/t/373160).
                let pairs =
                    |with: usize| lanes(m).all(|l| m >> (l ^ with) & 1 == 0 || addr(l) == addr(l ^ with));
                let doubled = load && size > 4 && (pairs(1) || pairs(2));
                let part = if size <= 4 { 32 } else { (128 / size as usize) << u32::from(doubled) };
                for p in 0..32 / part {
                    let here = (m as u64 >> (p * part) & ((1u64 << part) - 1)) as u32;
                    if here == 0 {
                        continue;
                    }
                    let mut words = [0u64; 64];
                    let mut n = 0;
                    for l in lanes(here) {
                        let w = addr(p * part + l) / 4;
                        for w in w..w + size.div_ceil(4) {
                            if !words[..n].contains(&w) && n < 64 {
                                words[n] = w;
                                n += 1;
                            }
                        }
                    }
                    let mut banks = [0u64; 32];
                    words[..n].iter().for_each(|w| banks[(w % 32) as usize] += 1);
                    let passes = banks.iter().copied().max().unwrap_or(0);
                    k.shared_passes += passes;
                    k.bank_conflicts += passes.saturating_sub(1);
                }
            }
            _ => {}
        }
    }

    fn set_pcs(&mut self, mask: u32, pc: u32) {
        for l in lanes(mask) {
            self.pcs[l] = pc;
        }
    }

    /// Lets held lanes go on whose partners have all come or ended.
    fn retry(&mut self, l: &Launch, at: &mut u32) -> Result<bool, Box<Hit>> {
        for lane in lanes(self.held) {
            let pc = self.pcs[lane];
            let op = &l.kernel.code[pc as usize].op;
            let m = match op {
                Op::WarpBar { mask } | Op::Shfl { mask, .. } | Op::Vote { mask, .. } => *mask,
                _ => continue,
            };
            let want = self.rows[m as usize][lane] as u32 & self.alive;
            // Lanes may meet at different warp barriers; a shuffle or vote must be the same instruction.
            let here = lanes(self.held & want).filter(|o| {
                let other = self.pcs[*o];
                other == pc
                    || matches!(
                        (op, &l.kernel.code[other as usize].op),
                        (Op::WarpBar { .. }, Op::WarpBar { .. })
                    )
            });
            let here = here.fold(0, |m, o| m | 1u32 << o);
            if here == want {
                *at = pc;
                self.together(op, here)?;
                self.held &= !here;
                for o in lanes(here) {
                    self.pcs[o] += 1;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn arrive(
        &mut self,
        run: u32,
        pc: u32,
        id: Slot,
        count: Option<Slot>,
        aligned: bool,
    ) -> Result<(), Box<Hit>> {
        self.need(id, run)?;
        let lane = run.trailing_zeros() as usize;
        let id = self.rows[id as usize][lane] as u32;
        let count = count.map(|c| self.rows[c as usize][lane] as u32);
        if id > 15 {
            return hit(
                FaultKind::Divergence,
                lane,
                None,
                format!("barrier {id}, where a block has 0 to 15"),
            );
        }
        if count.is_some_and(|c| c == 0 || !c.is_multiple_of(32)) {
            return hit(
                FaultKind::Divergence,
                lane,
                None,
                "a barrier's count of threads is a multiple of 32",
            );
        }
        match &mut self.bar {
            None => self.bar = Some(Waiting { id, count, pc, lanes: run, aligned }),
            Some(b) if !b.aligned && !aligned && b.id == id => b.lanes |= run,
            Some(b) => {
                let why = format!(
                    "the warp reaches a barrier in parts: {} of its threads came to barrier {} before",
                    b.lanes.count_ones(),
                    b.id
                );
                return hit(FaultKind::Divergence, lane, None, why);
            }
        }
        Ok(())
    }

    /// Every lane of `mask` has written row `s`.
    #[inline]
    fn need(&self, s: Slot, mask: u32) -> Result<(), Box<Hit>> {
        let missing = mask & !self.written[s as usize];
        if missing == 0 {
            Ok(())
        } else {
            hit(
                FaultKind::Uninitialised,
                missing.trailing_zeros() as usize,
                None,
                "an operand is a register that nothing wrote, or whose value is not defined",
            )
        }
    }

    #[inline]
    fn need_pred(&self, s: Slot, mask: u32) -> Result<(), Box<Hit>> {
        let missing = mask & !self.pred_written[s as usize];
        if missing == 0 {
            Ok(())
        } else {
            hit(
                FaultKind::Uninitialised,
                missing.trailing_zeros() as usize,
                None,
                "a predicate is read that nothing wrote",
            )
        }
    }

    #[inline]
    fn put(&mut self, d: Slot, mask: u32, v: &Row) {
        let row = &mut self.rows[d as usize];
        if mask == u32::MAX {
            *row = *v;
        } else {
            for l in lanes(mask) {
                row[l] = v[l];
            }
        }
        self.written[d as usize] |= mask;
    }

    fn put_pred(&mut self, d: Slot, mask: u32, v: u32) {
        let p = &mut self.preds[d as usize];
        *p = *p & !mask | v & mask;
        self.pred_written[d as usize] |= mask;
    }

    fn pred(&self, p: PredRef, mask: u32) -> Result<u32, Box<Hit>> {
        self.need_pred(p.at, mask)?;
        let v = self.preds[p.at as usize];
        Ok(if p.not { !v } else { v })
    }

    /// An instruction that the lanes of a warp do together.
    fn together(&mut self, op: &Op, mask: u32) -> Result<(), Box<Hit>> {
        match op {
            Op::WarpBar { .. } => self.clock.pass(mask),
            Op::Vote { mode, d, a, .. } => {
                let v = self.pred(*a, mask)? & mask;
                match mode {
                    VoteMode::Ballot => self.put(*d, mask, &[u64::from(v); 32]),
                    VoteMode::All => self.put_pred(*d, mask, if v == mask { u32::MAX } else { 0 }),
                    VoteMode::Any => self.put_pred(*d, mask, if v != 0 { u32::MAX } else { 0 }),
                    VoteMode::Uni => self.put_pred(*d, mask, if v == mask || v == 0 { u32::MAX } else { 0 }),
                }
            }
            Op::Shfl { mode, d, p, a, b, c, .. } => {
                self.need(*b, mask)?;
                self.need(*c, mask)?;
                let (src, written) = (self.rows[*a as usize], self.written[*a as usize]);
                let (mut out, mut inside, mut defined) = ([0; 32], 0u32, 0u32);
                for l in lanes(mask) {
                    let b = (self.rows[*b as usize][l] & 31) as i32;
                    let c = self.rows[*c as usize][l] as i32;
                    let (seg, clamp) = (c >> 8 & 31, c & 31);
                    let lane = l as i32;
                    let (top, low) = (lane & seg | clamp & !seg, lane & seg);
                    let (j, ok) = match mode {
                        ShflMode::Up => (lane - b, lane - b >= top),
                        ShflMode::Down => (lane + b, lane + b <= top),
                        ShflMode::Bfly => (lane ^ b, (lane ^ b) <= top),
                        ShflMode::Idx => (low | b & !seg, (low | b & !seg) <= top),
                    };
                    let j = if ok { j as usize & 31 } else { l };
                    inside |= u32::from(ok) << l;
                    // What a lane outside the mask holds is not defined: the result counts as not written.
                    if mask >> j & 1 == 1 && written >> j & 1 == 1 {
                        out[l] = src[j];
                        defined |= 1 << l;
                    }
                }
                self.put(*d, mask, &out);
                self.written[*d as usize] &= !(mask & !defined);
                if let Some(p) = p {
                    self.put_pred(*p, mask, inside);
                }
            }
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn step(&mut self, op: &Op, m: u32, l: &Launch, sh: &mut Shared) -> Result<(), Box<Hit>> {
        let mut out = [0; 32];
        match op {
            Op::Nop => {}
            Op::Bin { f, d, a, b } => {
                self.need(*a, m)?;
                self.need(*b, m)?;
                f(&self.rows[*a as usize], &self.rows[*b as usize], &mut out);
                self.put(*d, m, &out);
            }
            Op::Tri { f, d, a, b, c } => {
                self.need(*a, m)?;
                self.need(*b, m)?;
                self.need(*c, m)?;
                f(&self.rows[*a as usize], &self.rows[*b as usize], &self.rows[*c as usize], &mut out);
                self.put(*d, m, &out);
            }
            Op::Un { f, d, a } => {
                self.need(*a, m)?;
                f(&self.rows[*a as usize], &mut out);
                self.put(*d, m, &out);
            }
            // Compilers move values that are not defined on the path taken: a move hands that on, a use is the mistake.
            Op::Mov { d, a } => {
                let (v, w) = (self.rows[*a as usize], self.written[*a as usize]);
                self.put(*d, m, &v);
                self.written[*d as usize] &= w | !m;
            }
            Op::Selp { d, a, b, p } => {
                let p = self.pred(*p, m)?;
                let (x, y) = (&self.rows[*a as usize], &self.rows[*b as usize]);
                for i in 0..32 {
                    out[i] = if p >> i & 1 == 1 { x[i] } else { y[i] };
                }
                let w = self.written[*a as usize] & p | self.written[*b as usize] & !p;
                self.put(*d, m, &out);
                self.written[*d as usize] &= w | !m;
            }
            Op::Cvt { c, d, a } => {
                self.need(*a, m)?;
                let x = &self.rows[*a as usize];
                for i in lanes(m) {
                    out[i] = c.apply(x[i]);
                }
                self.put(*d, m, &out);
            }
            Op::Setp { f, d, q, a, b, comb, c } => {
                self.need(*a, m)?;
                self.need(*b, m)?;
                let r = f(&self.rows[*a as usize], &self.rows[*b as usize]);
                let (v, n) = match comb {
                    Comb::None => (r, !r),
                    comb => {
                        let c = self.pred(*c, m)?;
                        (combine(*comb, r, c), combine(*comb, !r, c))
                    }
                };
                self.put_pred(*d, m, v);
                if let Some(q) = q {
                    self.put_pred(*q, m, n);
                }
            }
            Op::PMov { d, a } => {
                let v = self.pred(*a, m)?;
                self.put_pred(*d, m, v);
            }
            Op::PBin { f, d, a, b } => {
                let v = combine(*f, self.pred(*a, m)?, self.pred(*b, m)?);
                self.put_pred(*d, m, v);
            }
            Op::PConst { d, value } => self.put_pred(*d, m, if *value { u32::MAX } else { 0 }),
            Op::Pack { d, parts, bits } => {
                for (i, p) in parts.iter().enumerate() {
                    self.need(*p, m)?;
                    let row = &self.rows[*p as usize];
                    for (o, v) in out.iter_mut().zip(row) {
                        *o |= truncate(*v, *bits) << (i as u32 * bits);
                    }
                }
                self.put(*d, m, &out);
            }
            Op::Unpack { parts, a, bits } => {
                self.need(*a, m)?;
                let row = self.rows[*a as usize];
                for (i, p) in parts.iter().enumerate() {
                    if let Some(p) = p {
                        for (o, v) in out.iter_mut().zip(&row) {
                            *o = truncate(*v >> (i as u32 * bits), *bits);
                        }
                        self.put(*p, m, &out);
                    }
                }
            }
            Op::Ld { space, ty, width, d, a, off, o } => {
                self.load(*space, *ty, *width, d, *a, *off, *o, m, l, sh)?
            }
            Op::St { space, ty, s, a, off, o } => self.store(*space, *ty, s, *a, *off, *o, m, l, sh)?,
            Op::Fence { acquire, release } => {
                if let Some(grid) = &mut sh.grid {
                    grid.fence(self.in_grid(), *acquire, *release);
                }
            }
            Op::Atom { .. } => self.atomic(op, m, l, sh)?,
            Op::ActiveMask { d } => self.put(*d, m, &[u64::from(m); 32]),
            Op::Trap => {
                return hit(FaultKind::Trap, m.trailing_zeros() as usize, None, "the kernel executed a trap");
            }
            Op::Bra { .. }
            | Op::Exit
            | Op::Bar { .. }
            | Op::WarpBar { .. }
            | Op::Shfl { .. }
            | Op::Vote { .. } => {}
        }
        Ok(())
    }

    /// Which memory an address of `space` is in, as an address of that memory.
    #[inline]
    fn resolve(space: Space, addr: u64) -> (Space, u64) {
        match space {
            Space::Generic if addr >> 40 == SHARED_BASE >> 40 => (Space::Shared, addr - SHARED_BASE),
            Space::Generic if addr >> 40 == LOCAL_BASE >> 40 => (Space::Local, addr - LOCAL_BASE),
            Space::Generic => (Space::Global, addr),
            s => (s, addr),
        }
    }

    #[inline]
    fn alloc<'l>(&mut self, addr: u64, n: u64, lane: usize, l: &'l Launch) -> Result<&'l Alloc, Box<Hit>> {
        if let Some(a) = l.allocs.get(self.near)
            && a.holds(addr, n)
        {
            return Ok(a);
        }
        let at = l.allocs.partition_point(|a| a.base <= addr);
        if at > 0 && l.allocs[at - 1].holds(addr, n) {
            self.near = at - 1;
            return Ok(&l.allocs[at - 1]);
        }
        let (kind, why) = l.memory.why(addr, n);
        hit(kind, lane, Some(addr), format!("access outside memory: {why}"))
    }

    /// The warp's number in the grid.
    #[inline]
    fn in_grid(&self) -> usize {
        self.block as usize * self.clock.seen.len() + self.index
    }

    /// Notes a use of global memory that [`alloc`](Self::alloc) has just found; another block's use of it in the same launch is a race
    /// where one of the two writes.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn global_race(
        &mut self,
        a: &Alloc,
        at: u64,
        n: u64,
        lane: usize,
        l: &Launch,
        sh: &mut Shared,
        (act, order): (Act, Order),
    ) -> Result<(), Box<Hit>> {
        if a.constant {
            return Ok(());
        }
        let write = act != Act::Read;
        let (other, how) = if let Some(grid) = &mut sh.grid {
            self.pause |= order.device && !write;
            let place = Place { alloc: self.near, size: a.size, at: at - a.base, len: n };
            let Err(other) = grid.touch(place, self.in_grid(), act, order) else { return Ok(()) };
            (other, ", and no release and acquire stand between")
        } else {
            // Atomic operations are not looked at here.
            let Some(launch) = l.races.filter(|_| n >= 4 && act != Act::Update) else { return Ok(()) };
            let Some(other) = a.note(at, n, launch, self.block, write, order.strong) else { return Ok(()) };
            (other, "")
        };
        let who = match other.block {
            Some(b) => format!("block number {b}"),
            None => "several other blocks".into(),
        };
        let why = format!(
            "race between blocks: offset {} of an allocation of {} bytes is {}, {who} of the same launch {} it{how}",
            at - a.base,
            a.size,
            if write { "written" } else { "read" },
            if other.wrote { "wrote" } else { "read" }
        );
        hit(FaultKind::Race, lane, Some(at), why)
    }

    /// Checks `n` bytes of shared memory at `at` and notes the access.
    #[inline]
    fn shared(
        &self,
        sh: &mut Shared,
        at: u64,
        n: usize,
        lane: usize,
        write: bool,
        atomic: bool,
    ) -> Result<usize, Box<Hit>> {
        let end = sh.state.len() as u64;
        if at >= end || end - at < n as u64 || sh.state[at as usize..at as usize + n].contains(&0) {
            return hit(
                FaultKind::OutOfBounds,
                lane,
                Some(at),
                format!("{n} bytes at offset {at} of shared memory lie outside every variable of it"),
            );
        }
        let i = at as usize;
        if (!write || atomic) && sh.state[i..i + n].contains(&1) {
            return hit(
                FaultKind::Uninitialised,
                lane,
                Some(at),
                format!("{n} bytes at offset {at} of shared memory are read that nothing wrote"),
            );
        }
        if let Some(c) = sh.races.access(i, n, self.index, lane, &self.clock, write, atomic) {
            let (mine, theirs) =
                (if write { "written" } else { "read" }, if c.wrote { "wrote" } else { "read" });
            let why = format!(
                "race: offset {at} of shared memory is {mine}, thread number {} {theirs} it, and no barrier stands between",
                c.thread
            );
            return hit(FaultKind::Race, lane, Some(at), why);
        }
        Ok(i)
    }

    fn local(&self, l: &Launch, at: u64, n: usize, lane: usize) -> Result<usize, Box<Hit>> {
        let size = l.kernel.local_bytes as usize;
        let inside =
            l.kernel.local.iter().any(|(b, s)| at >= u64::from(*b) && at + n as u64 <= u64::from(b + s));
        if !inside {
            return hit(
                FaultKind::OutOfBounds,
                lane,
                Some(at),
                format!("{n} bytes at offset {at} lie outside the thread's local variables"),
            );
        }
        Ok(lane * size + at as usize)
    }

    #[allow(clippy::too_many_arguments)]
    fn load(
        &mut self,
        space: Space,
        ty: Ty,
        width: u32,
        d: &[Option<Slot>],
        a: Slot,
        off: i64,
        order: Order,
        m: u32,
        l: &Launch,
        sh: &mut Shared,
    ) -> Result<(), Box<Hit>> {
        self.need(a, m)?;
        let n = ty.bytes();
        let total = n * d.len() as u64;
        let addrs = self.rows[a as usize];
        let quick = match d {
            [Some(d)] if n == 4 && (width == 32 || !ty.is_signed()) => {
                let quick = self.load_words(space, *d, &addrs, off, order, m, l, sh);
                self.written[*d as usize] |= quick;
                quick
            }
            _ => 0,
        };
        if quick == m {
            return Ok(());
        }
        for lane in lanes(m & !quick) {
            let addr = addrs[lane].wrapping_add_signed(off);
            if !addr.is_multiple_of(total) {
                return hit(
                    FaultKind::Misaligned,
                    lane,
                    Some(addr),
                    format!("a load of {total} bytes at an address that is no multiple of it"),
                );
            }
            let (space, at) = Self::resolve(space, addr);
            for (e, d) in d.iter().enumerate() {
                let at = at + e as u64 * n;
                let (v, ok) = match space {
                    Space::Shared => {
                        let i = self.shared(sh, at, n as usize, lane, false, false)?;
                        (bytes_of(&sh.bytes[i..i + n as usize]), true)
                    }
                    Space::Local => {
                        let i = self.local(l, at, n as usize, lane)?;
                        (
                            bytes_of(&self.local[i..i + n as usize]),
                            !self.local_valid[i..i + n as usize].contains(&false),
                        )
                    }
                    _ => {
                        let alloc = self.alloc(at, n, lane, l)?;
                        self.global_race(alloc, at, n, lane, l, sh, (Act::Read, order))?;
                        alloc.read(at, n)
                    }
                };
                if !ok {
                    return hit(
                        FaultKind::Uninitialised,
                        lane,
                        Some(addr),
                        "memory is read that nothing wrote",
                    );
                }
                if let Some(d) = d {
                    self.rows[*d as usize][lane] = extend(v, n, ty.is_signed(), width);
                }
            }
        }
        for d in d.iter().flatten() {
            self.written[*d as usize] |= m;
        }
        Ok(())
    }

    /// Loads words of shared or global memory for the first lanes of `m`, up to one that needs a closer look. Returns the lanes done.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn load_words(
        &mut self,
        space: Space,
        d: Slot,
        addrs: &Row,
        off: i64,
        order: Order,
        m: u32,
        l: &Launch,
        sh: &mut Shared,
    ) -> u32 {
        let mut done = 0;
        let row = &mut self.rows[d as usize];
        match space {
            Space::Shared => {
                for lane in lanes(m) {
                    let at = addrs[lane].wrapping_add_signed(off);
                    let i = at as usize;
                    let (Some(state), Some(bytes)) =
                        (sh.state.get(i..i.wrapping_add(4)), sh.bytes.get(i..i.wrapping_add(4)))
                    else {
                        break;
                    };
                    if !at.is_multiple_of(4)
                        || state != [2; 4]
                        || sh.races.by_byte()
                        || !sh.races.read_cell(i, self.index, lane, &self.clock)
                    {
                        break;
                    }
                    row[lane] = bytes_of(bytes);
                    done |= 1 << lane;
                }
            }
            Space::Global | Space::Const => {
                let Some(a) = l.allocs.get(self.near) else { return 0 };
                let races = l.races.filter(|_| !a.constant);
                let mut grid = sh.grid.as_deref_mut().filter(|_| !a.constant);
                let me = self.block as usize * self.clock.seen.len() + self.index;
                self.pause |= grid.is_some() && order.device;
                for lane in lanes(m) {
                    let at = addrs[lane].wrapping_add_signed(off);
                    if !at.is_multiple_of(4) || !a.holds(at, 4) {
                        break;
                    }
                    let (v, valid) = a.read(at, 4);
                    if !valid
                        || races.is_some_and(|r| a.note(at, 4, r, self.block, false, order.strong).is_some())
                    {
                        break;
                    }
                    if let Some(g) = &mut grid
                        && (order.device || !g.read_again(self.near, at - a.base, me))
                    {
                        let place = Place { alloc: self.near, size: a.size, at: at - a.base, len: 4 };
                        if g.touch(place, me, Act::Read, order).is_err() {
                            break;
                        }
                    }
                    row[lane] = v;
                    done |= 1 << lane;
                }
            }
            _ => {}
        }
        done
    }

    #[allow(clippy::too_many_arguments)]
    fn store(
        &mut self,
        space: Space,
        ty: Ty,
        s: &[Slot],
        a: Slot,
        off: i64,
        order: Order,
        m: u32,
        l: &Launch,
        sh: &mut Shared,
    ) -> Result<(), Box<Hit>> {
        self.need(a, m)?;
        for s in s {
            self.need(*s, m)?;
        }
        let n = ty.bytes();
        let total = n * s.len() as u64;
        for lane in lanes(m) {
            let addr = self.rows[a as usize][lane].wrapping_add_signed(off);
            if !addr.is_multiple_of(total) {
                return hit(
                    FaultKind::Misaligned,
                    lane,
                    Some(addr),
                    format!("a store of {total} bytes at an address that is no multiple of it"),
                );
            }
            let (space, at) = Self::resolve(space, addr);
            for (e, s) in s.iter().enumerate() {
                let at = at + e as u64 * n;
                let v = self.rows[*s as usize][lane];
                let raw = v.to_le_bytes();
                match space {
                    Space::Shared => {
                        let i = self.shared(sh, at, n as usize, lane, true, false)?;
                        sh.bytes[i..i + n as usize].copy_from_slice(&raw[..n as usize]);
                        sh.state[i..i + n as usize].fill(2);
                    }
                    Space::Local => {
                        let i = self.local(l, at, n as usize, lane)?;
                        self.local[i..i + n as usize].copy_from_slice(&raw[..n as usize]);
                        self.local_valid[i..i + n as usize].fill(true);
                    }
                    _ => {
                        let alloc = self.alloc(at, n, lane, l)?;
                        if alloc.constant {
                            return hit(FaultKind::ReadOnly, lane, Some(addr), "constant memory is written");
                        }
                        self.global_race(alloc, at, n, lane, l, sh, (Act::Write, order))?;
                        alloc.write(at, n, v);
                    }
                }
            }
        }
        Ok(())
    }

    fn atomic(&mut self, op: &Op, m: u32, l: &Launch, sh: &mut Shared) -> Result<(), Box<Hit>> {
        let Op::Atom { space, op, ty, d, a, off, b, c, o } = op else { return Ok(()) };
        for s in [a, b, c] {
            self.need(*s, m)?;
        }
        let n = ty.bytes();
        for lane in lanes(m) {
            let addr = self.rows[*a as usize][lane].wrapping_add_signed(*off);
            if !addr.is_multiple_of(n) {
                return hit(
                    FaultKind::Misaligned,
                    lane,
                    Some(addr),
                    format!("an atomic of {n} bytes at an address that is no multiple of it"),
                );
            }
            let (b, c) = (self.rows[*b as usize][lane], self.rows[*c as usize][lane]);
            let (space, at) = Self::resolve(*space, addr);
            let old = match space {
                Space::Shared => {
                    let i = self.shared(sh, at, n as usize, lane, true, true)?;
                    let old = bytes_of(&sh.bytes[i..i + n as usize]);
                    let new = combine_atomic(*op, *ty, old, b, c);
                    sh.bytes[i..i + n as usize].copy_from_slice(&new.to_le_bytes()[..n as usize]);
                    old
                }
                Space::Local => {
                    return hit(FaultKind::OutOfBounds, lane, Some(addr), "an atomic on local memory");
                }
                _ => {
                    let alloc = self.alloc(at, n, lane, l)?;
                    if alloc.constant {
                        return hit(FaultKind::ReadOnly, lane, Some(addr), "constant memory is written");
                    }
                    // One that gives its old value may be how a block waits.
                    self.pause |= sh.grid.is_some() && d.is_some();
                    let _one = alloc.atomics.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    let (old, ok) = alloc.read(at, n);
                    if !ok {
                        return hit(
                            FaultKind::Uninitialised,
                            lane,
                            Some(addr),
                            "an atomic reads memory that nothing wrote",
                        );
                    }
                    // One that compares and does not find its value only reads.
                    let act = if *op == AtomOp::Cas && old != b { Act::Read } else { Act::Update };
                    if sh.grid.is_some() {
                        self.global_race(alloc, at, n, lane, l, sh, (act, *o))?;
                    }
                    alloc.write(at, n, combine_atomic(*op, *ty, old, b, c));
                    old
                }
            };
            if let Some(d) = d {
                self.rows[*d as usize][lane] = old;
                self.written[*d as usize] |= 1 << lane;
            }
        }
        Ok(())
    }
}

fn combine(c: Comb, a: u32, b: u32) -> u32 {
    match c {
        Comb::None => a,
        Comb::And => a & b,
        Comb::Or => a | b,
        Comb::Xor => a ^ b,
    }
}

#[inline]
fn bytes_of(b: &[u8]) -> u64 {
    let mut raw = [0; 8];
    raw[..b.len()].copy_from_slice(b);
    u64::from_le_bytes(raw)
}

fn combine_atomic(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let bits = ty.bytes() as u32 * 8;
    let less = match ty {
        Ty::S32 => (b as i32) < old as i32,
        Ty::S64 => (b as i64) < old as i64,
        _ => b < old,
    };
    let new = match (op, ty) {
        (AtomOp::Add, Ty::F32) => {
            u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits())
        }
        (AtomOp::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (AtomOp::Add, _) => old.wrapping_add(b),
        (AtomOp::Min, _) => {
            if less {
                b
            } else {
                old
            }
        }
        (AtomOp::Max, _) => {
            if less {
                old
            } else {
                b
            }
        }
        (AtomOp::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        (AtomOp::And, _) => old & b,
        (AtomOp::Or, _) => old | b,
        (AtomOp::Xor, _) => old ^ b,
        (AtomOp::Exch, _) => b,
        (AtomOp::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
    };
    truncate(new, bits)
}
