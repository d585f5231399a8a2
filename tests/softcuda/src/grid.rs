//! Races between the blocks of a cooperative launch whose kernel orders them itself: by releases and acquires, and by fences.
//!
//! Every warp knows of every warp of the grid the time up to which its accesses are ordered before the warp's own: a vector clock. A
//! release, or a strong write after a fence, leaves the clock at its address; an atomic operation adds to what lies there, a store
//! replaces it. An acquire that reads there, or a fence after a strong read, takes it. A block barrier joins the clocks of the warps that
//! meet. Two accesses of different blocks, one of them a write and one of them weak, must be ordered by these clocks. What the
//! host and launches before wrote is ordered before everything.
//!
//! What it does not see: lanes of a warp count as ordered by the warp's own order, so a missing warp barrier before a release or after an
//! acquire is not found. Warps of one block are not compared with each other, and where they use a place without a barrier, another
//! block's earlier access may be compared with the first of them only. An acquire takes what lies there in this schedule: a wait
//! that is too short shows only where a block goes on too early. So blocks that wait have a turn after every block that released.
//!
//! What is known of a cell of memory is a set of accesses. Neighbours have mostly the same, so that sets are kept once and
//! cells hold numbers of them.

use std::collections::HashMap;
use std::rc::Rc;

use crate::memory::Use;
use crate::ptx::ir::{Kernel, Op, Order};

/// Kinds of accesses, two bits: whether it writes, and whether it is weak.
const WRITE: u32 = 1;
const WEAK: u32 = 2;
const KIND: u32 = WRITE | WEAK;
const KIND_BITS: u32 = 2;
/// In a cell: something was released there.
const SYNC: u32 = 1 << 31;
/// Steps from set to set that are remembered.
const STEPS: usize = 1 << 13;
/// Accesses held in sets before those are looked for that no cell has any more.
const MIN_HELD: usize = 1 << 21;
/// No access.
const NOBODY: u32 = u32::MAX;

/// What a warp does to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It loads.
    Read,
    /// It stores.
    Write,
    /// An atomic operation that writes.
    Update,
}

/// Where an access is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The allocation's number in the launch.
    pub alloc: usize,
    /// The allocation's bytes.
    pub size: u64,
    /// The first byte's offset in it.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// The last access of its kind by a warp: the warp and the kind, and the warp's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Access {
    who: u32,
    time: u32,
}

/// What a warp knows.
#[derive(Debug, Clone)]
struct Clock {
    /// Of the warps of its own block; its own time is among them.
    own: Vec<u32>,
    /// Of all others. Shared by those that know the same: the warps of a block do after a barrier.
    far: Rc<[u32]>,
}

#[derive(Debug)]
struct Warp {
    clock: Clock,
    /// Steps from set to set since its time moved on: none or one where it has accessed nothing or one cell.
    steps: u32,
    /// What it knew at its last fence: its strong writes release that.
    fenced: Option<Clock>,
    /// What its strong reads found: its next fence acquires that.
    found: Option<Vec<u32>>,
    /// What it acquired last, and what it found last: the key of the place and its stamp. A loop that waits need not join again.
    acquired: (u64, u64),
    noted: (u64, u64),
}

/// What was released at an address.
#[derive(Debug)]
struct Released {
    clock: Vec<u32>,
    /// Changes with the clock.
    stamp: u64,
    /// The warp, if one warp alone released it: its own strong stores that follow go on releasing that.
    by: Option<usize>,
}

/// A step from set to set by an access.
#[derive(Debug, Clone, Copy)]
struct Step {
    access: Access,
    old: u32,
    new: u32,
}

const NO_STEP: Step = Step { access: Access { who: NOBODY, time: 0 }, old: 0, new: 0 };

/// What is known of a cooperative launch.
#[derive(Debug)]
pub struct Grid {
    /// Warps of a block.
    per_block: usize,
    warps: Vec<Warp>,
    /// Whether the kernel has fences.
    fences: bool,
    /// A cell is a word, or less where the kernel has narrower accesses: 2, 1 or 0 bits of the offset lie inside.
    shift: u32,
    /// Of each allocation, once it is used: of each cell its set, and [`SYNC`].
    cells: Vec<Vec<u32>>,
    /// Accesses by `who`. Set 0 is empty.
    sets: Vec<Box<[Access]>>,
    free: Vec<u32>,
    /// Sets by a hash of what they hold.
    index: HashMap<u64, u32>,
    held: usize,
    most_held: usize,
    last: Step,
    steps: Vec<Step>,
    scratch: Vec<Access>,
    released: HashMap<u64, Released>,
    stamp: u64,
    /// Something was released since this was last cleared.
    pub news: bool,
}

fn join(into: &mut [u32], from: &[u32]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

fn mix(h: u64, v: u64) -> u64 {
    (h ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

impl Clock {
    /// Adds to `into` what this warp of the block that begins at warp `base` knows.
    fn add_to(&self, into: &mut [u32], base: usize) {
        join(into, &self.far);
        if let Some(own) = into.get_mut(base..) {
            join(own, &self.own);
        }
    }

    /// Learns `from`.
    fn learn(&mut self, from: &[u32], base: usize) {
        join(Rc::make_mut(&mut self.far), from);
        if let Some(own) = from.get(base..) {
            join(&mut self.own, own);
        }
    }
}

impl Grid {
    /// For a launch of `blocks` blocks of `per_block` warps, and so many allocations.
    pub fn new(k: &Kernel, blocks: usize, per_block: usize, allocs: usize) -> Self {
        let total = blocks * per_block;
        let far: Rc<[u32]> = vec![0; total].into();
        let warps = (0..total)
            .map(|w| {
                let mut own = vec![0; per_block];
                own[w % per_block] = 1;
                Warp {
                    clock: Clock { own, far: far.clone() },
                    steps: 0,
                    fenced: None,
                    found: None,
                    acquired: (0, 0),
                    noted: (0, 0),
                }
            })
            .collect();
        Grid {
            per_block,
            warps,
            fences: k.code.iter().any(|i| matches!(i.op, Op::Fence { .. })),
            shift: k.global_cell,
            cells: vec![Vec::new(); allocs],
            sets: vec![Box::default()],
            free: Vec::new(),
            index: HashMap::new(),
            held: 0,
            most_held: MIN_HELD,
            last: NO_STEP,
            steps: vec![NO_STEP; STEPS],
            scratch: Vec::new(),
            released: HashMap::new(),
            stamp: 0,
            news: false,
        }
    }

    /// The first warp of a warp's block.
    fn base(&self, warp: usize) -> usize {
        warp - warp % self.per_block
    }

    /// Notes a weak read of the word at offset `at` by `warp`, if that is the step that it made last: the quick way of
    /// [`touch`](Self::touch).
    #[inline]
    pub fn read_again(&mut self, alloc: usize, at: u64, warp: usize) -> bool {
        let Some(cell) = self.cells[alloc].get_mut((at >> 2) as usize) else { return false };
        if self.last.access.who != (warp as u32) << KIND_BITS | WEAK || self.shift != 2 {
            return false;
        }
        if *cell == self.last.old {
            *cell = self.last.new;
        }
        *cell == self.last.new
    }

    /// Notes that `warp`, counted through the grid, does `act` at `p`. An error is another block's access that is not ordered before it.
    #[inline]
    pub fn touch(&mut self, p: Place, warp: usize, act: Act, o: Order) -> Result<(), Use> {
        let kind = if act == Act::Read { 0 } else { WRITE } | if o.device { 0 } else { WEAK };
        let who = (warp as u32) << KIND_BITS | kind;
        let cells = (p.at >> self.shift) as usize..=((p.at + p.len - 1) >> self.shift) as usize;
        if self.cells[p.alloc].is_empty() {
            self.cells[p.alloc] = vec![0; (p.size >> self.shift) as usize + 1];
        }
        let mut sync = 0;
        for i in cells {
            let cell = self.cells[p.alloc][i];
            let old = cell & !SYNC;
            sync |= cell & SYNC;
            if self.last.access.who == who && self.last.new == old {
                continue;
            }
            if self.last.access.who != who || self.last.old != old {
                self.last = self.step(old, who)?;
            }
            self.cells[p.alloc][i] = cell & SYNC | self.last.new;
        }
        let releases = act != Act::Read && (o.release || o.device && self.warps[warp].fenced.is_some());
        if sync != 0 || releases {
            self.order(p, warp, act, o);
        }
        Ok(())
    }

    /// The step from set `old` by an access of `who` now.
    fn step(&mut self, old: u32, who: u32) -> Result<Step, Use> {
        let (warp, kind) = ((who >> KIND_BITS) as usize, who & KIND);
        let base = self.base(warp);
        self.warps[warp].steps = self.warps[warp].steps.saturating_add(1);
        let clock = &self.warps[warp].clock;
        let access = Access { who, time: clock.own[warp - base] };
        let slot = mix(mix(u64::from(old), u64::from(who)), u64::from(access.time)) as usize % STEPS;
        let known = self.steps[slot];
        if known.access == access && known.old == old {
            return Ok(known);
        }
        let mut next = std::mem::take(&mut self.scratch);
        next.clear();
        let mut pending = Some(access);
        for e in &self.sets[old as usize] {
            let (other, theirs) = ((e.who >> KIND_BITS) as usize, e.who & KIND);
            let own = other.wrapping_sub(base) < self.per_block;
            let seen = if own { clock.own[other - base] } else { clock.far[other] };
            let ordered = e.time <= seen;
            if !ordered && !own && (kind | theirs) & KIND == KIND {
                self.scratch = next;
                let block = Some((other / self.per_block) as u64);
                return Err(Use { block, wrote: theirs & WRITE != 0 });
            }
            // Whatever is ordered after this access is ordered after that one too; it may go if this clashes wherever it would.
            if ordered && theirs & !kind == 0 {
                continue;
            }
            if e.who > who
                && let Some(me) = pending.take()
            {
                next.push(me);
            }
            next.push(*e);
        }
        next.extend(pending);
        let new = self.set(&next);
        self.scratch = next;
        let step = Step { access, old, new };
        self.steps[slot] = step;
        Ok(step)
    }

    /// The number of the set that holds `what`.
    fn set(&mut self, what: &[Access]) -> u32 {
        let hash = what.iter().fold(0, |h, a| mix(h, u64::from(a.who) << 32 | u64::from(a.time)));
        if let Some(id) = self.index.get(&hash)
            && *self.sets[*id as usize] == *what
        {
            return *id;
        }
        // What a set takes beside its accesses counts as four more.
        if self.held + what.len() + 4 > self.most_held {
            self.sweep();
        }
        self.held += what.len() + 4;
        let id = match self.free.pop() {
            Some(id) => {
                self.sets[id as usize] = what.into();
                id
            }
            None => {
                self.sets.push(what.into());
                self.sets.len() as u32 - 1
            }
        };
        self.index.insert(hash, id);
        id
    }

    /// Frees the sets that no cell has.
    fn sweep(&mut self) {
        let mut live = vec![false; self.sets.len()];
        live[0] = true;
        for cell in self.cells.iter().flatten() {
            live[(cell & !SYNC) as usize] = true;
        }
        self.index.retain(|_, id| live[*id as usize]);
        self.free.clear();
        self.held = 0;
        for (id, set) in self.sets.iter_mut().enumerate() {
            if live[id] {
                self.held += set.len() + 4;
            } else {
                *set = Box::default();
                self.free.push(id as u32);
            }
        }
        self.most_held = MIN_HELD.max(self.held * 2);
        self.steps.fill(NO_STEP);
        self.last = NO_STEP;
    }

    /// The warp's time moves on: what it does from now on was not released before.
    fn tick(&mut self, warp: usize) {
        let at = warp % self.per_block;
        let me = &mut self.warps[warp];
        me.clock.own[at] = me.clock.own[at].saturating_add(1);
        me.steps = 0;
        self.last = NO_STEP;
    }

    /// What an access acquires and releases.
    fn order(&mut self, p: Place, warp: usize, act: Act, o: Order) {
        let base = self.base(warp);
        let first = p.at >> self.shift;
        let key = |cell: u64| (p.alloc as u64) << 40 | cell;
        let me = &mut self.warps[warp];
        if act != Act::Write
            && o.device
            && let Some(r) = self.released.get(&key(first))
        {
            let this = (key(first), r.stamp);
            if o.acquire {
                if me.acquired != this {
                    me.clock.learn(&r.clock, base);
                    me.acquired = this;
                }
            } else if self.fences && me.noted != this {
                let found = me.found.get_or_insert_with(|| vec![0; r.clock.len()]);
                join(found, &r.clock);
                me.noted = this;
            }
        }
        if act == Act::Read {
            return;
        }
        let mut clock =
            if o.release { Some(me.clock.clone()) } else { me.fenced.clone().filter(|_| o.device) };
        // Whoever reads what a strong write wrote is ordered after it as well. After a fence that is said only of a write that comes
        // first, as it mostly does: what lies between is not released.
        let whole = o.release || me.steps <= 1;
        if let Some(clock) = clock.as_mut().filter(|_| whole) {
            clock.own[warp - base] = me.clock.own[warp - base];
        }
        if act == Act::Write {
            for cell in first..=(p.at + p.len - 1) >> self.shift {
                let kept = clock.is_none()
                    && o.device
                    && self.released.get(&key(cell)).is_some_and(|r| r.by == Some(warp));
                if !kept && self.cells[p.alloc][cell as usize] & SYNC != 0 {
                    self.released.remove(&key(cell));
                    self.cells[p.alloc][cell as usize] &= !SYNC;
                }
            }
        }
        let Some(clock) = clock else { return };
        let total = clock.far.len();
        let fresh = || Released { clock: vec![0; total], stamp: 0, by: Some(warp) };
        let r = self.released.entry(key(first)).or_insert_with(fresh);
        clock.add_to(&mut r.clock, base);
        r.by = r.by.filter(|w| *w == warp);
        self.stamp += 1;
        r.stamp = self.stamp;
        self.cells[p.alloc][first as usize] |= SYNC;
        self.news = true;
        if whole {
            self.tick(warp);
        }
    }

    /// A fence: it acquires what strong reads before it found, and what strong writes after it release is what is known here.
    pub fn fence(&mut self, warp: usize, acquire: bool, release: bool) {
        let base = self.base(warp);
        let me = &mut self.warps[warp];
        if acquire && let Some(found) = me.found.take() {
            me.clock.learn(&found, base);
        }
        if release {
            me.fenced = Some(me.clock.clone());
            self.tick(warp);
        }
    }

    /// Warps of `block` meet at a block barrier.
    pub fn barrier(&mut self, block: usize, met: &[usize]) {
        let base = block * self.per_block;
        let Some(first) = met.first() else { return };
        let mut all = self.warps[base + first].clock.clone();
        let mut same = all.far.clone();
        for w in met {
            let theirs = &self.warps[base + w].clock;
            join(&mut all.own, &theirs.own);
            // Most know the same, and then it is the same vector.
            if !Rc::ptr_eq(&same, &theirs.far) {
                join(Rc::make_mut(&mut all.far), &theirs.far);
                same = theirs.far.clone();
            }
        }
        for w in met {
            self.warps[base + w].clock.clone_from(&all);
            self.tick(base + w);
        }
    }
}
